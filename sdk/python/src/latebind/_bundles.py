"""Writes bundle files (docs/interop.md): what the server signed of who gets which packages, and those packages, in one tar.

The same statement and packages make the same bytes. Reading, and all checks, are in `device/bundle.py`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from latebind._files import READ_SIZE, disk_errors, place, remove
from latebind._tar import END, header, padding

STATEMENT = "bundle.json"


@dataclass(frozen=True, slots=True)
class BundledPackage:
    """A package as it was signed. `files` are (sha256, size) of its manifest's files, in order."""

    digest: str
    manifest: bytes
    signature: bytes
    files: Sequence[tuple[str, int]]


def member_names(digest: str) -> tuple[str, str]:
    """Where a package's manifest and signature are in a bundle."""
    return f"packages/{digest}/manifest.json", f"packages/{digest}/signature.json"


def blob_name(sha256: str) -> str:
    """Where a file is in a bundle."""
    return f"blobs/{sha256}"


def write_bundle(
    path: Path,
    statement: Mapping[str, Any],
    packages: Sequence[BundledPackage],
    open_blob: Callable[[str], BinaryIO],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write a bundle, which appears whole or not at all; its size in bytes. `open_blob` gives a file by its SHA-256.

    `packages` are those of the statement, each once, in the order in which it names them first. `progress` takes the bytes written so far.
    Raises ValueError for a file above 8 GiB or one that has not the size its manifest says, DiskFull.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    written = 0
    try:
        with disk_errors(path), temporary.open("xb") as file:
            for piece in _pieces(statement, packages, open_blob):
                file.write(piece)
                written += len(piece)
                progress(written)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        remove(temporary)
    return written


def compact(value: Any) -> bytes:
    """JSON without spaces: no byte of it may change without changing its meaning."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _pieces(statement: Mapping[str, Any], packages: Sequence[BundledPackage], open_blob: Callable[[str], BinaryIO]) -> Iterator[bytes]:
    yield from _member(STATEMENT, compact(statement))
    there: set[str] = set()
    for package in packages:
        for name, data in zip(member_names(package.digest), (package.manifest, package.signature), strict=True):
            yield from _member(name, data)
        for sha256, size in package.files:
            if sha256 in there:
                continue
            there.add(sha256)
            yield header(blob_name(sha256), size)
            copied = 0
            with open_blob(sha256) as blob:
                while piece := blob.read(READ_SIZE):
                    copied += len(piece)
                    yield piece
            if copied != size:
                raise ValueError(f"the file {sha256[:12]} has {copied} bytes where its manifest says {size}")
            yield padding(size)
    yield END


def _member(name: str, data: bytes) -> Iterator[bytes]:
    yield header(name, len(data))
    yield data
    yield padding(len(data))
