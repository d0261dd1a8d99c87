"""Files that appear whole or not at all: a unique temporary file on the same disk, fsync, rename, fsync of the folder.

Nothing here knows what the files hold, and nothing depends on a lock for being correct.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from latebind.errors import DiskFull

READ_SIZE = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no room" (disk, quota, file size limit) into `DiskFull`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"no room to write {path.name!r} in {path.parent}: {os.strerror(error.errno)}") from error
        raise


def write_whole(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part, whatever dies in between.

    With `durable` it also survives a power cut once this returns. Raises DiskFull.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        with disk_errors(path):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            place(temporary, path, durable=durable)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def place(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Give a finished (and synced) temporary file its name."""
    temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The JSON in a file, or None when there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`write_whole` of a value as JSON."""
    write_whole(path, json.dumps(value, separators=(",", ":")).encode(), mode=mode)


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def sha256_of(path: Path) -> str:
    """Lower-case hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_SIZE):
            digest.update(piece)
    return digest.hexdigest()


def xxh3_of(data: bytes) -> str:
    """Hex XXH3-64 of bytes: a check against decay and mistakes, not against an attacker."""
    return xxhash.xxh3_64_hexdigest(data)


def xxh3_of_file(path: Path) -> str:
    """Hex XXH3-64 of a file, read in pieces."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while piece := file.read(READ_SIZE):
            digest.update(piece)
    return digest.hexdigest()
