"""Run in a child when the service starts: tries what the walls must stop, so that a level is claimed only where it holds.

It is no test of everything (tests/packager/test_hostile_children.py is), only of each wall once.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Return `{"ok": true, "reached": […]}` with what could be reached; it is empty where the walls hold.

    `job`: `canaries` are places where the service, or a warm parent, finds a file; `process` is the service's process id, or None.
    """
    reached = []
    for canary in job["canaries"]:
        with contextlib.suppress(OSError):
            Path(canary).read_bytes()
            reached.append("a file of the service")
    for path in (__file__, os.__file__):
        with contextlib.suppress(OSError), Path(path).open("ab"):
            reached.append("its own code, to write")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM):
        reached.append("a socket")
    if job["process"] is not None:
        with contextlib.suppress(OSError):
            os.kill(job["process"], 0)
            reached.append("a process")
        with contextlib.suppress(OSError):
            list(Path(f"/proc/{job['process']}/fd").iterdir())
            reached.append("the service's descriptors")
    with contextlib.suppress(OSError):
        os.kill(os.getppid(), 0)
        reached.append("its guard")
    with contextlib.suppress(OSError):
        if os.fork() == 0:
            os._exit(0)
        reached.append("a new process")
    Path("out/probe").write_bytes(b"probe")
    return {"ok": True, "reached": reached}
