"""What namespaces and digests look like, in every adapter."""

from __future__ import annotations

import re

from kit.blobs import BlobNotFound

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256 in lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def check_namespace(namespace: str) -> str:
    """Return the namespace. Raises `ValueError` for one that could be a path."""
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"not a namespace: {namespace!r}")
    return namespace


def check_digest(sha256: str) -> str:
    """Return the digest of a blob that is looked for. Raises `BlobNotFound` for what is none."""
    if not is_digest(sha256):
        raise BlobNotFound("there is no such blob")
    return sha256
