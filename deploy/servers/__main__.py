"""`python -m deploy.servers`: the real servers of this checkout, below build/servers."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from deploy.processes import Progress
from deploy.servers.install import NotInstalled
from deploy.servers.kinds import KINDS
from deploy.servers.server import Server, ServerFailed

FOLDER = Path("build/servers")
ENV_FILE = FOLDER / "servers.env"
_PREFIX = "LATEBIND_TEST_"


def up(names: list[str]) -> int:
    """Start the servers that do not run, all at once, and write their addresses."""
    progress = Progress(sys.stderr)
    servers = [_server(name, progress) for name in names]
    failed = False

    def start(server: Server) -> None:
        nonlocal failed
        name = server.kind.name
        try:
            server.start()
        except (ServerFailed, NotInstalled) as error:
            failed = True
            progress.tell(name, f"FAILED: {error}")
        else:
            progress.tell(name, f"ready: {server.place}" if server.started_here else f"runs already: {server.place}")

    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(start, servers))
    if not failed:
        write_addresses()
        print(f"addresses: {ENV_FILE} (stop with: make servers-stop)", file=sys.stderr)
    return int(failed)


def install_all(names: list[str]) -> int:
    """Install without starting, for images and caches."""
    progress = Progress(sys.stderr)
    try:
        for name in names:
            progress.tell(name, str(KINDS[name].install(partial(progress.tell, name))))
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def stop(names: list[str]) -> int:
    """Stop what runs."""
    progress = Progress(sys.stderr)

    def end(server: Server) -> None:
        if server.pid is not None:
            server.stop()
            progress.tell(server.kind.name, "stopped")

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(end, [_server(name, progress) for name in names]))
    return 0


def status(names: list[str]) -> int:
    """Say what runs; exit code 1 when something does not."""
    ready = {name: _server(name, Progress(sys.stderr)) for name in names}
    for name, server in ready.items():
        print(f"{name:<11} {f'ready  {server.place}' if server.is_ready() else 'not running'}")
    return int(not all(server.is_ready() for server in ready.values()))


def write_addresses() -> None:
    """Write the addresses of every server that runs, as `LATEBIND_TEST_…=…` lines, whole or not at all."""
    lines = [
        f"{_PREFIX}{key}={value}\n"
        for name in KINDS
        if (server := Server(name, FOLDER / name)).pid
        for key, value in server.addresses.items()
    ]
    partial = ENV_FILE.with_suffix(".partial")
    partial.write_text("".join(lines))
    partial.replace(ENV_FILE)


def _server(name: str, progress: Progress) -> Server:
    return Server(name, FOLDER / name, tell=partial(progress.tell, name))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 a server failed or does not run."""
    parser = argparse.ArgumentParser("python -m deploy.servers", description=__doc__)
    parser.add_argument("command", choices=["up", "stop", "status", "install"])
    parser.add_argument("servers", nargs="*", help=f"which (default: all): {', '.join(KINDS)}")
    given = parser.parse_args(arguments)
    unknown = set(given.servers) - set(KINDS)
    if unknown:
        parser.error(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    commands = {"up": up, "stop": stop, "status": status, "install": install_all}
    return commands[given.command](given.servers or list(KINDS))


if __name__ == "__main__":
    sys.exit(main())
