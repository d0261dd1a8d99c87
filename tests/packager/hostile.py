"""Children that are hostile from their first line: in place of the code that examines a model runs what a model could have taken it over
with, inside all the walls of a level."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from services.packager.isolation import cage, landlock
from services.packager.isolation.cage import Level

ROOT = Path(__file__).parents[2]


def safe_levels() -> list[Level]:
    """The levels that this machine should be able to give: `make setup` installs bubblewrap as root."""
    found = [Level.STRONG] if cage.bubblewrap() else []
    return [*found, Level.FALLBACK] if landlock.abi() >= landlock.LEAST_ABI else found


def hostile(body: str, mark: str = "") -> Callable[[], cage.Runtime]:
    """Return what to put in place of `cage.engine`: a child that runs `body`, which may return an answer for `job`."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    start = (
        f"# {mark}\nimport sys, json, os, time, signal; sys.path.insert(0, {str(ROOT)!r})\n"
        "from services.packager.isolation.entry import serve\n"
        # Where the answer goes: the first descriptor that is free when it is kept aside.
        f"ANSWER = 3\ndef work(job):\n{lines}\n    return {{}}\n"
        "serve(lambda: work)"
    )
    runtime = cage.Runtime(Path(sys.executable), start, cage.engine().read)
    return lambda: runtime


def marked(mark: str) -> list[int]:
    """Return the processes that carry the mark in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
