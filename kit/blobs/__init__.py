"""The blob store port: whole, immutable byte strings under (namespace, sha256). Adapters: `files`, `minio` (any S3).

The namespace is the account: the same bytes in two accounts are two blobs, so nobody learns what another account owns.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from kit.checks import Findings
from kit.clock import Clock
from kit.errors import NotFound, Problem


class BlobNotFound(NotFound):
    """No blob with this digest in this namespace."""

    code = "BLOB_NOT_FOUND"


class BlobMismatch(Problem):
    """The bytes that arrived are not the bytes that were announced (digest or size). Nothing was stored."""

    status = 422
    code = "BLOB_MISMATCH"


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """`sha256` in lower-case hex, `size` in bytes."""

    sha256: str
    size: int


class BlobStore(Protocol):
    """Content-addressed; a blob is there whole or not at all; what `put` returned survives a crash."""

    async def put(self, namespace: str, chunks: AsyncIterable[bytes], *, sha256: str | None = None, size: int | None = None) -> BlobInfo:
        """Store the stream in constant memory. A blob that is there already is kept. Raises `BlobMismatch` against `sha256` or `size`."""
        ...

    def open(self, namespace: str, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Iterate over the bytes from `start`, at most `length`. Raises `BlobNotFound` before the first chunk."""
        ...

    async def stat(self, namespace: str, sha256: str) -> BlobInfo:
        """Return size and digest. Raises `BlobNotFound`."""
        ...

    async def delete(self, namespace: str, sha256: str) -> None:
        """Remove the blob; one that is not there is fine."""
        ...

    async def link(self, namespace: str, sha256: str, *, expires_in_s: int) -> str:
        """Return an address (absolute, or a path on the gateway) that serves the blob without another credential until it expires.

        Raises `BlobNotFound`.
        """
        ...

    async def ping(self) -> None:
        """Raise `Unavailable` when the store cannot be used now."""
        ...

    def examine(self) -> Findings:
        """Look for what could be wrong with the store, in words (`latebindd doctor`). Raises `Unavailable` when it cannot go on."""
        ...


#: scheme -> adapter; the contract suite runs over these.
SCHEMES = ("file", "s3", "s3+http")


@asynccontextmanager
async def open_blobs(url: str, *, link_secret: bytes, clock: Clock | None = None) -> AsyncIterator[BlobStore]:
    """Open the store that the URL names: `file:/path/to/folder` or `s3://key:secret@host/bucket` (`s3+http://` without TLS).

    `link_secret` signs links to local files (`kit.blobs.links`); `clock` says when they expire.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        from kit.blobs.files import open_file_blobs  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_file_blobs(url, link_secret=link_secret, clock=clock) as blobs:
            yield blobs
        return
    if scheme in {"s3", "s3+http"}:
        from kit.blobs.minio import open_s3_blobs  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_s3_blobs(url) as blobs:
            yield blobs
        return
    raise ValueError(f"no blob adapter for {scheme!r}: use one of {', '.join(SCHEMES)}")
