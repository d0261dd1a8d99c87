"""What `latebindd doctor` does with any blob store: writes a blob, reads a part of it, deletes it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from kit.blobs import BlobNotFound, BlobStore
from kit.checks import Findings, fault, ok
from kit.errors import Unavailable

#: No account has this name: accounts' names have no dot.
NAMESPACE = "latebind.doctor"
_LOOK_AT_ACCESS = "the key needs the right to put, get and delete objects of the bucket"


async def examine_use(blobs: BlobStore) -> Findings:
    """Use the store the way the services do. What was written is deleted again."""
    body = secrets.token_bytes(1000)
    try:
        info = await blobs.put(NAMESPACE, _stream(body), size=len(body))
    except Unavailable as refused:
        yield fault("write", refused.detail, _LOOK_AT_ACCESS)
        return
    yield ok("write", "a blob was written")
    try:
        read = b"".join([chunk async for chunk in blobs.open(NAMESPACE, info.sha256, start=10, length=500)])
    except Unavailable as refused:
        yield fault("read", refused.detail, _LOOK_AT_ACCESS)
    else:
        if read == body[10:510]:
            yield ok("read", "a part of it was read")
        else:
            yield fault("read", "a range comes back as other bytes", "the store has to serve ranges: use another one")
    try:
        await blobs.delete(NAMESPACE, info.sha256)
        await blobs.stat(NAMESPACE, info.sha256)
    except BlobNotFound:
        yield ok("delete", "it was deleted")
    except Unavailable as refused:
        yield fault("delete", refused.detail, _LOOK_AT_ACCESS)
    else:
        yield fault("delete", "a deleted blob is still there", "switch versioning and object lock of the bucket off")


async def _stream(body: bytes) -> AsyncIterator[bytes]:
    yield body
