"""`python -m deploy.sandbox`: installs bubblewrap, which the packager's strong sandbox needs. Without it Landlock is taken."""

from __future__ import annotations

import sys

from deploy.servers.install import NotInstalled, need_programs


def main() -> int:
    """Install it where this user may; otherwise say how, which is no failure: the fallback holds on Linux 6.2 and newer."""
    try:
        need_programs({"bwrap": "bubblewrap"}, lambda text: print(text, file=sys.stderr))
    except NotInstalled as error:
        print(f"the packager's strong sandbox is not to be had: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
