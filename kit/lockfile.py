"""A lock file that keeps a second process away from data that belongs to one process.

The kernel lets go when the process dies, however it dies, so a lock is never left behind. It does not work across machines.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.errors import Unavailable


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. Raises `Unavailable`, naming `what`, when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(f"another process uses {what}; it belongs to one process at a time") from None
        yield
    finally:
        os.close(handle)
