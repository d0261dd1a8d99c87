"""What only object stores can get wrong: their own restart, parts that break off, and the acceptance of a store (SEC-C15)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from urllib.parse import urlsplit

import httpx2
import pytest
from minio import Minio

from deploy.servers import Server
from kit.blobs import BlobNotFound, BlobStore, open_blobs
from kit.errors import Unavailable
from tests import real_servers

pytestmark = [pytest.mark.cluster, pytest.mark.parametrize("kind", ["seaweedfs", "minio"])]
SECRET = b"l" * 32


async def stream(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1 << 20):
        yield body[start : start + (1 << 20)]


async def read(blobs: BlobStore, sha256: str) -> bytes:
    return b"".join([chunk async for chunk in blobs.open("acme", sha256)])


async def answers(blobs: BlobStore) -> bool:
    try:
        await blobs.ping()
    except Unavailable:
        return False
    return True


def sdk(url: str) -> tuple[Minio, str]:
    """The library itself, and the name of the bucket."""
    parts = urlsplit(url)
    client = Minio(f"{parts.hostname}:{parts.port}", access_key=parts.username, secret_key=parts.password, secure=False, region="us-east-1")
    return client, parts.path.strip("/")


async def test_what_was_acknowledged_survives_a_kill_of_the_store(kind: str, own_server: Callable[[str], Server]) -> None:
    server = own_server(kind)
    async with open_blobs(server.url, link_secret=SECRET) as blobs:
        bodies = [os.urandom(50_000 * (number + 1)) for number in range(8)]
        kept = await asyncio.gather(*(blobs.put("acme", stream(body)) for body in bodies))
        server.kill()
        began = time.monotonic()
        for call in (blobs.ping(), blobs.stat("acme", kept[0].sha256), blobs.put("acme", stream(b"while it is down"))):
            with pytest.raises(Unavailable):
                await call
        assert time.monotonic() - began < 20
        server.start()
        async with asyncio.timeout(10):  # for a moment after a silence nobody is let through (ADR 0146)
            while not await answers(blobs):
                await asyncio.sleep(0.05)
        # The connections of before are dead; nobody has to know.
        for info, body in zip(kept, bodies, strict=True):
            assert await read(blobs, info.sha256) == body
        assert await read(blobs, (await blobs.put("acme", stream(b"after"))).sha256) == b"after"


async def test_a_kill_of_the_store_in_the_middle_of_a_blob_is_said_not_shortened(kind: str, own_server: Callable[[str], Server]) -> None:
    server = own_server(kind)
    async with open_blobs(server.url, link_secret=SECRET) as blobs:
        info = await blobs.put("acme", stream(os.urandom(40 << 20)))
        arrived = 0
        with pytest.raises(Unavailable):
            async for chunk in blobs.open("acme", info.sha256):
                arrived += len(chunk)
                if arrived == len(chunk):
                    server.kill()
        assert 0 < arrived < info.size


async def test_a_blob_in_parts_that_is_given_up_is_whole_or_not_there(kind: str) -> None:
    url = real_servers.s3(kind)
    body = os.urandom(40 << 20)
    digest = hashlib.sha256(body).hexdigest()
    read_to_the_end = asyncio.Event()

    async def watched() -> AsyncIterator[bytes]:
        async for chunk in stream(body):
            yield chunk
        read_to_the_end.set()

    async with open_blobs(url, link_secret=SECRET) as blobs:
        putting = asyncio.create_task(blobs.put("acme", watched()))
        await read_to_the_end.wait()
        await asyncio.sleep(0.05)  # parts are on their way
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        with contextlib.suppress(BlobNotFound):
            assert await read(blobs, digest) == body
        info = await blobs.put("acme", stream(body), sha256=digest, size=len(body))
        assert await read(blobs, info.sha256) == body


async def test_the_store_is_acceptable(kind: str) -> None:
    """Conditional put, checksum, read after write, ranges: what an operator's own store is held against."""
    client, bucket = sdk(real_servers.s3(kind))
    client.make_bucket(bucket_name=bucket)
    link = client.get_presigned_url("PUT", bucket, "acme/one", expires=timedelta(seconds=60))
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    async with httpx2.AsyncClient(timeout=10) as http:
        assert (await http.put(link, content=b"first", headers={"content-md5": wrong})).status_code == 400
        assert (await http.put(link, content=b"first", headers={"if-none-match": "*"})).status_code == 200
        assert (await http.put(link, content=b"second", headers={"if-none-match": "*"})).status_code == 412
        get = client.get_presigned_url("GET", bucket, "acme/one", expires=timedelta(seconds=60))
        assert (await http.get(get)).content == b"first"
        assert (await http.get(get, headers={"range": "bytes=1-3"})).content == b"irs"
        assert (await http.get(get.replace("acme/one", "acme/two"))).status_code == 403
