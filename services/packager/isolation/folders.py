"""Folders that hostile code wrote into: how much they hold, and how to remove them whatever it did."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sys
import time
from pathlib import Path

_ABANDONED_S = 3600


def used(folder: Path) -> int:
    """Add up the disk blocks below a folder, in bytes. Nesting deeper than any path can be counts as endless."""
    total = 0
    rest = [str(folder)]
    while rest:
        total += 4096
        try:
            with os.scandir(rest.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        rest.append(entry.path)
                    else:
                        total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return sys.maxsize
    return total


def remove(folder: Path) -> None:
    """Remove a folder whatever its permissions, however deep: inner folders are moved up first, so no path grows beyond the limit."""
    moved = 0
    while entries := _entries(folder):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)
                continue
            Path(entry.path).chmod(0o700)
            for inner in _entries(Path(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    moved += 1
                    Path(inner.path).rename(folder / f"{secrets.token_hex(8)}-{moved}")
                else:
                    Path(inner.path).unlink(missing_ok=True)
            Path(entry.path).rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def clean_up(scratch: Path) -> None:
    """Remove what killed processes left below `scratch`: folders with a file `lock` that nobody holds."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in scratch.iterdir():
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # Another process is just making it, or just removing it; or one died in the middle of that, long ago.
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < time.time() - _ABANDONED_S:
                    remove(folder)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
