"""What every blob store promises (kit.blobs)."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kit.blobs import SCHEMES, BlobInfo, BlobMismatch, BlobNotFound, BlobStore, open_blobs
from kit.errors import Invalid, Unavailable
from tests import real_servers

URLS = {
    "file": lambda folder: f"file:{folder}/blobs",
    "s3+http on seaweedfs": lambda _folder: real_servers.s3("seaweedfs"),
    "s3+http on minio": lambda _folder: real_servers.s3("minio"),
}
CASES = [name if name == "file" else pytest.param(name, marks=pytest.mark.cluster) for name in URLS]
SECRET = b"l" * 32


def test_every_adapter_has_cases() -> None:
    # `s3` is `s3+http` with TLS in front.
    assert {name.split()[0] for name in URLS} | {"s3"} == set(SCHEMES)


@pytest.fixture(params=CASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return URLS[request.param](tmp_path)


@pytest.fixture
async def blobs(url: str) -> AsyncIterator[BlobStore]:
    async with open_blobs(url, link_secret=SECRET) as opened:
        yield opened


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


async def read(blobs: BlobStore, sha256: str, namespace: str = "acme", **part: Any) -> bytes:
    return b"".join([chunk async for chunk in blobs.open(namespace, sha256, **part)])


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize(
    "body", [b"", b"x", os.urandom(100_000), os.urandom(3 << 20)], ids=["empty", "one byte", "small", "several chunks"]
)
async def test_what_was_put_is_read(blobs: BlobStore, body: bytes) -> None:
    pieces = [body[start : start + 70_001] for start in range(0, len(body), 70_001)]
    info = await blobs.put("acme", stream(*pieces), sha256=digest(body), size=len(body))
    assert info == BlobInfo(digest(body), len(body))
    assert await blobs.stat("acme", info.sha256) == info
    assert await read(blobs, info.sha256) == body


async def test_parts_are_read_from_any_place(blobs: BlobStore) -> None:
    body = os.urandom((2 << 20) + 5)
    info = await blobs.put("acme", stream(body))
    for start, length in ((0, 1), (5, 10), (1 << 20, 7), ((1 << 20) - 1, (1 << 20) + 3), (len(body) - 1, None), (len(body), None), (3, 0)):
        assert await read(blobs, info.sha256, start=start, length=length) == body[start:][:length]
    assert await read(blobs, info.sha256, start=10, length=1 << 40) == body[10:]


async def test_putting_again_keeps_the_first(blobs: BlobStore) -> None:
    first = await blobs.put("acme", stream(b"same"))
    assert await blobs.put("acme", stream(b"sa", b"me")) == first
    assert await read(blobs, first.sha256) == b"same"


async def test_many_put_the_same_at_once(blobs: BlobStore) -> None:
    body = os.urandom(200_000)
    infos = await asyncio.gather(*(blobs.put("acme", stream(body[:1000], body[1000:])) for _ in range(20)))
    assert set(infos) == {BlobInfo(digest(body), len(body))}
    assert await read(blobs, digest(body)) == body


async def test_namespaces_do_not_see_each_other(blobs: BlobStore) -> None:
    info = await blobs.put("acme", stream(b"secret"))
    for call in (blobs.stat("other", info.sha256), blobs.link("other", info.sha256, expires_in_s=60)):
        with pytest.raises(BlobNotFound):
            await call
    with pytest.raises(BlobNotFound):
        await read(blobs, info.sha256, namespace="other")


async def test_other_bytes_than_announced_leave_nothing(blobs: BlobStore) -> None:
    wanted, body = digest(b"wanted"), b"arrived"
    for announced in ({"sha256": wanted}, {"size": 6}, {"size": 8}, {"sha256": wanted, "size": len(body)}):
        with pytest.raises(BlobMismatch) as refused:
            await blobs.put("acme", stream(body), **announced)  # type: ignore[arg-type]
        assert refused.value.status == 422
    for sha256 in (wanted, digest(body)):
        with pytest.raises(BlobNotFound):
            await blobs.stat("acme", sha256)


async def test_more_than_announced_is_noticed_before_it_is_all_read(blobs: BlobStore) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1000)

    with pytest.raises(BlobMismatch):
        await blobs.put("acme", endless(), size=10_000)
    assert taken == 11


async def test_a_stream_that_breaks_leaves_nothing(blobs: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await blobs.put("acme", broken())
    with pytest.raises(BlobNotFound):
        await blobs.stat("acme", digest(b"half"))


async def test_a_cancelled_put_leaves_nothing(blobs: BlobStore) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"half"
        begun.set()
        await asyncio.sleep(60)

    putting = asyncio.create_task(blobs.put("acme", stuck()))
    await begun.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    with pytest.raises(BlobNotFound):
        await blobs.stat("acme", digest(b"half"))


async def test_what_is_not_there_is_not_found(blobs: BlobStore) -> None:
    missing = digest(b"missing")
    for call in (blobs.stat("acme", missing), blobs.link("acme", missing, expires_in_s=60)):
        with pytest.raises(BlobNotFound):
            await call
    with pytest.raises(BlobNotFound):
        await anext(aiter(blobs.open("acme", missing)))


async def test_delete_removes_and_may_be_repeated(blobs: BlobStore) -> None:
    info = await blobs.put("acme", stream(b"gone soon"))
    await blobs.delete("acme", info.sha256)
    await blobs.delete("acme", info.sha256)
    with pytest.raises(BlobNotFound):
        await blobs.stat("acme", info.sha256)
    await blobs.put("acme", stream(b"gone soon"))
    assert await read(blobs, info.sha256) == b"gone soon"


@pytest.mark.parametrize("namespace", ["", "..", ".", "../acme", "a/b", "/etc", "Acme", "a\0b", "-a", ".tmp", "a" * 101])
async def test_a_namespace_cannot_be_a_path(blobs: BlobStore, namespace: str) -> None:
    with pytest.raises(ValueError, match="not a namespace"):
        await blobs.put(namespace, stream(b"x"))
    with pytest.raises(ValueError, match="not a namespace"):
        await blobs.stat(namespace, digest(b"x"))


@pytest.mark.parametrize("sha256", ["", "..", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
async def test_what_is_no_digest_is_never_found(blobs: BlobStore, sha256: str) -> None:
    with pytest.raises(BlobNotFound):
        await blobs.stat("acme", sha256)
    with pytest.raises(BlobNotFound):
        await read(blobs, sha256)
    with pytest.raises(BlobNotFound):
        await blobs.delete("acme", sha256)
    with pytest.raises(Invalid):
        await blobs.put("acme", stream(b"x"), sha256=sha256)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_reader_that_stops_early_frees_what_it_held(blobs: BlobStore) -> None:
    info = await blobs.put("acme", stream(os.urandom(4 << 20)))
    opened = descriptors()
    for _ in range(20):
        chunks = blobs.open("acme", info.sha256)
        await anext(aiter(chunks))
        await chunks.aclose()  # type: ignore[attr-defined]
    await blobs.stat("acme", info.sha256)
    for _ in range(50):
        if descriptors() <= opened:
            break
        await asyncio.sleep(0.02)
    assert descriptors() <= opened


async def test_ping_answers(blobs: BlobStore) -> None:
    await blobs.ping()


@pytest.mark.cluster
@pytest.mark.parametrize("server", ["seaweedfs", "minio"])
async def test_a_link_serves_the_blob_until_it_expires_and_nothing_else(server: str) -> None:
    async with open_blobs(real_servers.s3(server), link_secret=SECRET) as blobs, httpx2.AsyncClient() as client:
        body = os.urandom(100_000)
        info = await blobs.put("acme", stream(body))
        link = await blobs.link("acme", info.sha256, expires_in_s=60)
        assert (await client.get(link)).content == body
        part = await client.get(link, headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, body[10:20])
        other = await blobs.put("other", stream(b"secret"))
        assert (
            await client.get(link.replace(f"acme/{info.sha256[:2]}/{info.sha256}", f"other/{other.sha256[:2]}/{other.sha256}"))
        ).status_code == 403
        short = await blobs.link("acme", info.sha256, expires_in_s=1)
        await asyncio.sleep(2.1)
        assert (await client.get(short)).status_code == 403


@pytest.mark.cluster
@pytest.mark.parametrize("server", ["seaweedfs", "minio"])
async def test_a_wrong_secret_and_a_store_that_is_not_there_are_unavailable(server: str) -> None:
    url = real_servers.s3(server)
    for wrong in (url.replace("latebind-secret", "another-secret"), "s3+http://key:secret@127.0.0.1:9/bucket"):
        async with open_blobs(wrong, link_secret=SECRET) as blobs:
            with pytest.raises(Unavailable):
                await blobs.ping()
            with pytest.raises(Unavailable):
                await blobs.put("acme", stream(b"x"))


PUTTING = """
    import asyncio, hashlib, sys
    from kit.blobs import open_blobs
    from kit.logs import configure_logging

    async def stream(number):
        for part in range(20):
            yield f"{number}-{part}-".encode() * 3000

    async def main():
        async with open_blobs(sys.argv[1], link_secret=b"l" * 32) as blobs:
            async def put(start):
                for number in range(start, 100000, 4):
                    info = await blobs.put("acme", stream(number))
                    print(number, info.sha256, info.size, flush=True)
            await asyncio.gather(*(put(start) for start in range(4)))

    configure_logging()
    asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 5, 23])
async def test_a_blob_is_there_whole_or_not_at_all_after_kill(url: str, victim: Callable[..., Any], lines: int) -> None:
    acknowledged = [line.split() for line in victim(PUTTING, url).kill_after(lines)]
    async with open_blobs(url, link_secret=SECRET) as blobs:
        for _, sha256, size in acknowledged:
            assert await blobs.stat("acme", sha256) == BlobInfo(sha256, int(size))
            assert digest(await read(blobs, sha256)) == sha256
        for number in range(int(acknowledged[-1][0]) + 40):
            body = b"".join(f"{number}-{part}-".encode() * 3000 for part in range(20))
            try:
                found = await read(blobs, digest(body))
            except BlobNotFound:
                continue
            assert found == body
