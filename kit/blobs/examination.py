"""What `latebindd doctor` does with any blob store: writes a blob, reads a part of it, follows a link to it, deletes it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from kit.blobs import BlobNotFound, BlobStore
from kit.checks import Findings, clocks, fault, note, ok
from kit.errors import Unavailable

#: No account has this name: names of accounts have no dot.
NAMESPACE = "latebind.doctor"
_LINK_S = 60
_FETCH_S = 5.0
_RIGHTS = "the key needs the right to put, get and delete objects of the bucket, and the store needs room: look into its log"
_ADDRESS = "set public_url in LATEBIND_BLOBS_URL to the address under which devices reach the store, scheme and port included"


async def examine_use(blobs: BlobStore) -> Findings:
    """Use the store the way the services do. What was written is deleted again."""
    body = secrets.token_bytes(1000)
    try:
        sha256 = (await blobs.put(NAMESPACE, _stream(body), size=len(body))).sha256
    except Unavailable as refused:
        yield fault("write", refused.detail, _RIGHTS)
        return
    yield ok("write", "a blob was written")
    try:
        read = b"".join([chunk async for chunk in blobs.open(NAMESPACE, sha256, start=10, length=500)])
        link = await blobs.link(NAMESPACE, sha256, expires_in_s=_LINK_S)
    except Unavailable as refused:
        yield fault("read", refused.detail, _RIGHTS)
    else:
        if read == body[10:510]:
            yield ok("read", "a part of it was read")
        else:
            yield fault("read", "a range comes back as other bytes", "use a store that serves ranges")
        async for finding in _follow(link, body):
            yield finding
    try:
        await blobs.delete(NAMESPACE, sha256)
        await blobs.stat(NAMESPACE, sha256)
    except BlobNotFound:
        yield ok("delete", "it was deleted")
    except Unavailable as refused:
        yield fault("delete", refused.detail, _RIGHTS)
    else:
        yield fault("delete", "a deleted blob is still there", "switch object lock of the bucket off")


async def _follow(link: str, body: bytes) -> Findings:
    """Do what a device does with a link, from this machine; and what somebody without the link would do."""
    if not link.startswith(("http://", "https://")):
        yield ok("links", "are served by the gateway")
        return
    host = httpx2.URL(link).netloc.decode()
    async with httpx2.AsyncClient(timeout=_FETCH_S, follow_redirects=False, trust_env=False) as client:
        try:
            answer = await client.get(link)
            without = await client.get(link.partition("?")[0])
        except httpx2.TransportError as error:
            yield fault("links", f"{host}, where links send devices, does not answer ({type(error).__name__})", _ADDRESS)
            return
    if answer.status_code == 200 and answer.content == body:
        yield ok("links", f"are served by {host}")
    else:
        yield fault("links", f"{host} answers a link with {answer.status_code}", f"the host is part of the signature: {_ADDRESS}")
    if without.status_code == 200:
        yield fault("privacy", "blobs can be read without a signature", "take the public policy off the bucket")
    else:
        yield ok("privacy", "without a signature nothing is served")
    if link.startswith("http://"):
        yield note("encryption", "links have no TLS", "fine on one machine; devices of others should get https:// (public_url)")
    if theirs := answer.headers.get("date"):
        yield clocks(parsedate_to_datetime(theirs).astimezone(UTC), datetime.now(UTC))


async def _stream(body: bytes) -> AsyncIterator[bytes]:
    yield body
