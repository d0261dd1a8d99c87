"""Takes in the stream of a blob, in pieces worth a write, and checks it against what was announced; equal in every adapter."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable

from kit.blobs import BlobInfo, BlobMismatch
from kit.blobs.naming import is_digest
from kit.errors import Invalid

#: Bytes per read, and per write of what arrives.
CHUNK_BYTES = 1 << 20


async def receive(chunks: AsyncIterable[bytes], *, size: int | None, write: Callable[[list[bytes]], Awaitable[None]]) -> None:
    """Hand the stream to `write`, about `CHUNK_BYTES` at a time. Raises `BlobMismatch` as soon as more arrived than `size`."""
    waiting: list[bytes] = []
    waiting_bytes = arrived = 0
    async for chunk in chunks:
        arrived += len(chunk)
        if size is not None and arrived > size:
            raise BlobMismatch(f"more bytes arrived than the {size} that were announced")
        waiting.append(bytes(chunk))
        waiting_bytes += len(chunk)
        if waiting_bytes >= CHUNK_BYTES:
            await write(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        await write(waiting)


def check_announced_digest(sha256: str | None) -> None:
    """Raise `Invalid` for an announced digest that is none."""
    if sha256 is not None and not is_digest(sha256):
        raise Invalid("sha256 is 64 lower-case hex digits")


def check_arrived(arrived: BlobInfo, sha256: str | None, size: int | None) -> None:
    """Raise `BlobMismatch` when what arrived is not what was announced."""
    if sha256 is not None and arrived.sha256 != sha256:
        raise BlobMismatch("the bytes that arrived have another SHA-256 than was announced", sha256=arrived.sha256)
    if size is not None and arrived.size != size:
        raise BlobMismatch(f"{arrived.size} bytes arrived, {size} were announced", size=arrived.size)
