"""Signed links to local blobs and the application that serves them (kit.blobs.links)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kit.blobs.files import CHUNK_BYTES, FileBlobs, open_file_blobs
from kit.blobs.links import LinkInvalid, check_link, create_links_app, sign_link
from kit.clock import FakeClock
from kit.http import ASGIApp

SECRET = b"l" * 32
BODY = bytes(range(256)) * 4


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: int = 0
    ended: bool = False


@pytest.fixture
async def blobs(tmp_path: Path, clock: FakeClock) -> AsyncIterator[FileBlobs]:
    async with open_file_blobs(f"file:{tmp_path}/blobs", link_secret=SECRET, clock=clock) as opened:
        yield opened


@pytest.fixture
def app(blobs: FileBlobs, clock: FakeClock) -> ASGIApp:
    return create_links_app(blobs, link_secret=SECRET, clock=clock)


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def call(app: ASGIApp, link: str, method: str = "GET", **headers: str) -> Answer:
    path, _, query = link.partition("?")
    answer = Answer()
    forever = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await forever.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert not answer.ended
        if message["type"] == "http.response.start":
            assert not answer.status
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message["body"]
            answer.chunks += 1
            answer.ended = not message.get("more_body", False)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": named}, receive, send)
    assert answer.ended
    return answer


@pytest.fixture
async def link(blobs: FileBlobs) -> str:
    info = await blobs.put("acme", stream(BODY))
    return await blobs.link("acme", info.sha256, expires_in_s=60)


async def test_a_link_serves_the_blob(app: ASGIApp, link: str) -> None:
    answer = await call(app, link)
    sha256 = hashlib.sha256(BODY).hexdigest()
    assert (answer.status, answer.body) == (200, BODY)
    assert answer.headers["etag"] == f'"{sha256}"'
    assert answer.headers["content-length"] == str(len(BODY))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "immutable" in answer.headers["cache-control"]


async def test_head_has_the_headers_and_no_body(app: ASGIApp, link: str) -> None:
    answer = await call(app, link, "HEAD", range="bytes=0-1")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", str(len(BODY)))


async def test_an_empty_blob_is_served(app: ASGIApp, blobs: FileBlobs) -> None:
    info = await blobs.put("acme", stream())
    link = await blobs.link("acme", info.sha256, expires_in_s=60)
    assert ((await call(app, link)).status, (await call(app, link)).body) == (200, b"")
    assert (await call(app, link, range="bytes=0-")).status == 416


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes=1000-", 1000, 1023),
        ("bytes=1000-99999", 1000, 1023),
        ("bytes=-10", 1014, 1023),
        ("bytes=-99999", 0, 1023),
        ("bytes= 5 - 9", 5, 9),
    ],
)
async def test_one_range_is_served(app: ASGIApp, link: str, wanted: str, first: int, last: int) -> None:
    answer = await call(app, link, range=wanted)
    assert (answer.status, answer.body) == (206, BODY[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/1024"
    assert answer.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize("wanted", ["bytes=1024-", "bytes=99999-100000", "bytes=-0", "bytes=0-1,5-6", "bytes=" + ",".join(["0-1"] * 5000)])
async def test_a_range_that_cannot_be_served_is_416(app: ASGIApp, link: str, wanted: str) -> None:
    answer = await call(app, link, range=wanted)
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */1024")
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body)["code"] == "RANGE_NOT_SATISFIABLE"


@pytest.mark.parametrize("wanted", ["bytes=9-5", "bytes=-", "bytes=a-b", "items=0-1", "bytes", "bytes=1-2-3", "bytes=" + "9" * 30 + "-"])
async def test_a_range_that_is_not_valid_is_ignored(app: ASGIApp, link: str, wanted: str) -> None:
    answer = await call(app, link, range=wanted)
    assert (answer.status, answer.body) == (200, BODY)


async def test_if_range_wants_the_same_blob(app: ASGIApp, link: str) -> None:
    etag = f'"{hashlib.sha256(BODY).hexdigest()}"'
    assert (await call(app, link, range="bytes=0-1", if_range=etag)).status == 206
    assert (await call(app, link, range="bytes=0-1", if_range='"other"')).status == 200
    assert (await call(app, link, range="bytes=0-1", if_range="W/" + etag)).status == 200


async def test_what_the_client_has_is_304(app: ASGIApp, link: str) -> None:
    etag = f'"{hashlib.sha256(BODY).hexdigest()}"'
    for tags in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = await call(app, link, if_none_match=tags)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
    assert (await call(app, link, if_none_match='"x"')).status == 200


async def test_a_link_expires(app: ASGIApp, link: str, clock: FakeClock) -> None:
    clock.advance(59)
    assert (await call(app, link)).status == 200
    clock.advance(1)
    answer = await call(app, link)
    assert (answer.status, json.loads(answer.body)["code"]) == (403, "LINK_INVALID")


async def test_a_forged_link_tells_nothing_about_the_blob(app: ASGIApp, link: str) -> None:
    path, _, query = link.partition("?")
    missing = path[:-64] + "0" * 64
    expires, _, signature = query.partition("&")
    forged = [
        path,
        f"{path}?{expires}",
        f"{path}?{signature}",
        f"{path}?{query}x",
        f"{path}?{query[:-5]}",
        f"{path}?expires=99999999999&{signature}",
        f"{path}?expires=&signature=",
        f"{path}?expires=x&signature=é",
        f"{missing}?{query}",
        f"{path.replace('acme', 'other')}?{query}",
        f"{path.replace('acme', '../acme')}?{query}",
        f"{path}/?{query}",
        f"{path}?" + "a=1&" * 100 + query,
        "/blobs/",
        "/blobs/../../etc/passwd?" + query,
    ]
    answers = [await call(app, one) for one in forged]
    assert {answer.status for answer in answers} == {403}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].headers["content-type"] == "application/problem+json"


async def test_a_link_of_another_secret_is_forged(blobs: FileBlobs, link: str, clock: FakeClock) -> None:
    assert (await call(create_links_app(blobs, link_secret=b"other" * 8, clock=clock), link)).status == 403


async def test_a_deleted_blob_is_not_found_behind_a_good_link(app: ASGIApp, blobs: FileBlobs, link: str) -> None:
    await blobs.delete("acme", hashlib.sha256(BODY).hexdigest())
    answer = await call(app, link)
    assert (answer.status, json.loads(answer.body)["code"]) == (404, "BLOB_NOT_FOUND")


async def test_only_get_and_head_are_taken(app: ASGIApp, link: str) -> None:
    assert (await call(app, link, "POST")).status == 405
    assert (await call(app, "/other", "GET")).status == 404


async def test_a_big_blob_is_sent_in_pieces_and_stops_when_the_client_is_gone(app: ASGIApp, blobs: FileBlobs) -> None:
    info = await blobs.put("acme", stream(*[os.urandom(1 << 20)] * 64))
    path, _, query = (await blobs.link("acme", info.sha256, expires_in_s=60)).partition("?")
    sent: list[int] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))
        if len(sent) == 4:
            gone.set()
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
    await app(scope, receive, send)
    assert max(sent) <= CHUNK_BYTES
    assert len(sent) < 20


def test_a_signature_is_a_known_value() -> None:
    """Old links must keep working when the code changes. Computed with `openssl dgst -sha256 -hmac`."""
    link = sign_link(SECRET, "acme", "ab" * 32, 1_800_000_000)
    assert check_link(SECRET, link.partition("?")[0], link.partition("?")[2], 1_799_999_999) == ("acme", "ab" * 32)
    assert link == f"/blobs/acme/{'ab' * 32}?expires=1800000000&signature=-M3TmG6D6YwiTm0PkGzRj3NVl8-1VRQtPdHKR6_YyRI"
    with pytest.raises(LinkInvalid):
        check_link(SECRET, link.partition("?")[0], link.partition("?")[2], 1_800_000_000)
