"""What namespaces and digests look like, and what an announcement of a blob is checked against; equal in every adapter."""

from __future__ import annotations

import re

from kit.blobs import BlobInfo, BlobMismatch, BlobNotFound
from kit.errors import Invalid

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_namespace(namespace: str) -> str:
    """Return the namespace. Raises `ValueError` for one that could be a path."""
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"not a namespace: {namespace!r}")
    return namespace


def check_digest(sha256: str) -> str:
    """Return the digest of a blob that is looked for. Raises `BlobNotFound` for what is none."""
    if not _DIGEST.fullmatch(sha256):
        raise BlobNotFound("there is no such blob")
    return sha256


def check_announced_digest(sha256: str | None) -> None:
    """Raise `Invalid` for an announced digest that is none."""
    if sha256 is not None and not _DIGEST.fullmatch(sha256):
        raise Invalid("sha256 is 64 lower-case hex digits")


def check_not_more(arrived: int, size: int | None) -> None:
    """Raise `BlobMismatch` as soon as more bytes arrived than were announced."""
    if size is not None and arrived > size:
        raise BlobMismatch(f"more bytes arrived than the {size} that were announced")


def check_arrived(arrived: BlobInfo, sha256: str | None, size: int | None) -> None:
    """Raise `BlobMismatch` when what arrived is not what was announced."""
    if sha256 is not None and arrived.sha256 != sha256:
        raise BlobMismatch("the bytes that arrived have another SHA-256 than was announced", sha256=arrived.sha256)
    if size is not None and arrived.size != size:
        raise BlobMismatch(f"{arrived.size} bytes arrived, {size} were announced", size=arrived.size)
