"""Resumable uploads: offsets, digests, resume after a restart, expiry."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.blobs import BlobNotFound
from kit.clock import FakeClock
from kit.identity import Scope
from services.registry.uploads.domain import read_digest, read_offset
from services.registry.uploads.errors import UploadHeaderInvalid
from services.registry.uploads.service import UploadService
from tests.registry.conftest import Registry, code, open_registry, put_part, user

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


def service_of(registry: Registry) -> UploadService:
    service: UploadService = registry.part.app._api.state.uploads  # type: ignore[attr-defined]
    return service


async def begin(client: httpx2.AsyncClient, size: int = len(DATA), **body: object) -> str:
    answer = await client.post("/v1/uploads", json={"size": size, **body})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["upload_id"])


def part_files(registry: Registry, upload: str) -> list[Path]:
    return [path for path in (registry.data_dir / "blobs" / upload).rglob("*") if path.is_file()]


async def stored(registry: Registry, account: str, sha256: str) -> bytes:
    return b"".join([chunk async for chunk in registry.ports.blobs.open(account, sha256)])


async def test_a_file_goes_up_in_parts(registry: Registry) -> None:
    client = registry.acme
    created = await client.post("/v1/uploads", json={"size": len(DATA), "sha256": SHA256, "filename": "model.onnx"})
    body = created.json()
    assert (body["offset"], body["size"], body["filename"], body["sha256"]) == (0, len(DATA), "model.onnx", None)
    assert body["part_size_max"] == 32 << 20
    upload = body["upload_id"]
    for start in range(0, len(DATA), 100_000):
        answer = await put_part(client, upload, start, DATA[start : start + 100_000])
        assert answer.status_code == 200
        assert answer.headers["upload-offset"] == str(start + 100_000)
        head = await client.head(f"/v1/uploads/{upload}")
        assert (head.status_code, head.headers["upload-offset"], head.headers["upload-length"]) == (204, str(start + 100_000), "300000")
    done = await client.post(f"/v1/uploads/{upload}:complete", json={"sha256": SHA256})
    assert done.json() == {"sha256": SHA256, "size": len(DATA)}
    assert await stored(registry, "acme", SHA256) == DATA
    again = await client.post(f"/v1/uploads/{upload}:complete", json={"sha256": SHA256})
    assert again.json() == done.json()
    late = await put_part(client, upload, len(DATA), b"x")
    assert code(late) == (409, "UPLOAD_COMPLETE")
    assert part_files(registry, upload) == [], "parts are gone once the file is there"


async def test_an_empty_file_needs_no_part(registry: Registry) -> None:
    file = await registry.upload(b"")
    assert file == {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    assert await stored(registry, "acme", file["sha256"]) == b""


async def test_a_wrong_offset_says_the_right_one(registry: Registry) -> None:
    client = registry.acme
    upload = await begin(client)
    await put_part(client, upload, 0, DATA[:1000])
    for offset in (0, 999, 1001, 10**15):
        answer = await put_part(client, upload, offset, DATA[1000:2000])
        assert code(answer) == (409, "UPLOAD_OFFSET_MISMATCH")
        assert answer.json()["offset"] == 1000
    assert (await put_part(client, upload, 1000, DATA[1000:2000])).status_code == 200


async def test_parts_that_are_not_what_they_say(registry: Registry) -> None:
    client = registry.acme
    upload = await begin(client, 5000)
    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    wrong = await put_part(client, upload, 0, DATA[:1000], **{"content-digest": f"sha-256=:{other}:"})
    assert code(wrong) == (422, "UPLOAD_PART_MISMATCH")
    assert code(await put_part(client, upload, 0, DATA[:5001])) == (413, "UPLOAD_PART_TOO_LARGE")
    assert code(await put_part(client, upload, 0, b"")) == (400, "UPLOAD_HEADER_INVALID")
    for headers in ({"content-digest": "md5=:AAAA:"}, {"content-digest": ""}, {"upload-offset": "-1"}, {"upload-offset": "x"}):
        assert code(await put_part(client, upload, 0, DATA[:1000], **headers)) == (400, "UPLOAD_HEADER_INVALID")
    assert (await client.head(f"/v1/uploads/{upload}")).headers["upload-offset"] == "0"
    early = await client.post(f"/v1/uploads/{upload}:complete", json={"sha256": SHA256})
    assert (code(early), early.json()["offset"]) == ((409, "UPLOAD_INCOMPLETE"), 0)


async def test_a_body_without_a_length_is_capped_while_it_arrives(registry: Registry) -> None:
    client = registry.acme
    upload = await begin(client, 1000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b"x" * 100

    digest = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    headers = {"upload-offset": "0", "content-digest": f"sha-256=:{digest}:", "content-type": "application/octet-stream"}
    answer = await client.put(f"/v1/uploads/{upload}", content=endless(), headers=headers)
    assert code(answer) == (413, "UPLOAD_PART_TOO_LARGE")


async def test_a_wrong_digest_of_the_whole_leaves_the_upload_usable(registry: Registry) -> None:
    client = registry.acme
    upload = await begin(client)
    await put_part(client, upload, 0, DATA)
    wrong = await client.post(f"/v1/uploads/{upload}:complete", json={"sha256": "0" * 64})
    assert code(wrong) == (422, "UPLOAD_DIGEST_MISMATCH")
    assert (await client.post(f"/v1/uploads/{upload}:complete", json={"sha256": SHA256})).status_code == 200
    with pytest.raises(BlobNotFound):
        await registry.ports.blobs.stat("acme", "0" * 64)
    announced = await begin(client, 3, sha256=hashlib.sha256(b"abc").hexdigest())
    await put_part(client, announced, 0, b"xyz")
    honest = await client.post(f"/v1/uploads/{announced}:complete", json={"sha256": hashlib.sha256(b"xyz").hexdigest()})
    assert code(honest) == (422, "UPLOAD_DIGEST_MISMATCH")


async def test_it_goes_on_after_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    async with open_registry(tmp_path, clock) as first:
        await first.create_account("acme")
        upload = await begin(first.acme)
        await put_part(first.acme, upload, 0, DATA[:200_000])
    async with open_registry(tmp_path, clock) as second:
        head = await second.acme.head(f"/v1/uploads/{upload}")
        assert head.headers["upload-offset"] == "200000"
        await put_part(second.acme, upload, 200_000, DATA[200_000:])
        done = await second.acme.post(f"/v1/uploads/{upload}:complete", json={"sha256": SHA256})
        assert done.status_code == 200
        assert await stored(second, "acme", SHA256) == DATA


async def test_two_senders_at_once_move_the_offset_once(registry: Registry) -> None:
    client = registry.acme
    upload = await begin(client, 20_000)
    parts = [DATA[index * 1000 : index * 1000 + 1000] for index in range(10)]
    answers = await asyncio.gather(*(put_part(client, upload, 0, part) for part in parts))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    assert (await client.head(f"/v1/uploads/{upload}")).headers["upload-offset"] == "1000"


async def test_completing_it_ten_times_at_once_answers_alike(registry: Registry) -> None:
    client = registry.acme
    upload = await begin(client)
    await put_part(client, upload, 0, DATA)
    answers = await asyncio.gather(*(client.post(f"/v1/uploads/{upload}:complete", json={"sha256": SHA256}) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert await stored(registry, "acme", SHA256) == DATA


async def test_parts_of_two_uploads_do_not_share_bytes(registry: Registry) -> None:
    client = registry.acme
    first, second = await begin(client), await begin(client)
    for upload in (first, second):
        await put_part(client, upload, 0, DATA)
    await client.post(f"/v1/uploads/{first}:complete", json={"sha256": SHA256})
    assert (await client.post(f"/v1/uploads/{second}:complete", json={"sha256": SHA256})).status_code == 200


async def test_expired_uploads_are_unknown_and_cleared_away(registry: Registry) -> None:
    client = registry.acme
    kept = await registry.upload(b"kept")
    upload = await begin(client)
    registry.clock.advance(23 * 3600)
    await put_part(client, upload, 0, DATA[:1000])  # a part makes it live longer
    registry.clock.advance(2 * 3600)
    assert (await client.head(f"/v1/uploads/{upload}")).status_code == 204
    registry.clock.advance(22 * 3600)
    assert code(await put_part(client, upload, 1000, DATA[1000:2000])) == (404, "UPLOAD_NOT_FOUND")
    assert len(part_files(registry, upload)) == 1
    registry.clock.advance(3600)
    assert await service_of(registry).clear_expired() == 2
    assert part_files(registry, upload) == []
    assert await stored(registry, "acme", kept["sha256"]) == b"kept"
    assert await service_of(registry).clear_expired() == 0


async def test_limits_and_scopes(tmp_path: Path, clock: FakeClock) -> None:
    async with open_registry(tmp_path, clock, max_upload_bytes=1000, upload_part_bytes=100) as registry:
        await registry.create_account("acme")
        assert code(await registry.acme.post("/v1/uploads", json={"size": 1001})) == (413, "UPLOAD_TOO_LARGE")
        upload = await begin(registry.acme, 1000)
        assert code(await put_part(registry.acme, upload, 0, b"x" * 101)) == (413, "UPLOAD_PART_TOO_LARGE")
        assert code(await registry.client(user("acme", Scope.READ)).post("/v1/uploads", json={"size": 1})) == (403, "FORBIDDEN")
        for size in (-1, 1.5, "1", None, 1 << 60):
            assert code(await registry.acme.post("/v1/uploads", json={"size": size}))[0] == 422


async def test_a_foreign_upload_answers_like_an_unknown_one(registry: Registry) -> None:
    upload = await begin(registry.acme)
    other = registry.client(user("other"))
    for name in (upload, "u_unknown"):
        assert code(await other.get(f"/v1/uploads/{name}")) == (404, "UPLOAD_NOT_FOUND")
        assert code(await put_part(other, name, 0, b"x")) == (404, "UPLOAD_NOT_FOUND")
        assert code(await other.post(f"/v1/uploads/{name}:complete", json={"sha256": SHA256})) == (404, "UPLOAD_NOT_FOUND")
        assert (await other.head(f"/v1/uploads/{name}")).status_code == 404


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(min_size=1, max_size=5000),
    cuts=st.lists(st.integers(1, 4999), max_size=6),
    noise=st.lists(st.integers(0, 5), max_size=4),
)
async def test_any_cut_into_parts_gives_the_same_file(registry: Registry, data: bytes, cuts: list[int], noise: list[int]) -> None:
    client = registry.acme
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    upload = await begin(client, len(data))
    for index, (start, end) in enumerate(itertools.pairwise(places)):
        if index in noise:  # an answer was lost: the part comes again and is told where the upload stands
            await put_part(client, upload, start, data[start:end])
            assert code(await put_part(client, upload, start, data[start:end]))[1] in {"UPLOAD_OFFSET_MISMATCH", "UPLOAD_PART_TOO_LARGE"}
        else:
            assert (await put_part(client, upload, start, data[start:end])).status_code == 200
    sha256 = hashlib.sha256(data).hexdigest()
    assert (await client.post(f"/v1/uploads/{upload}:complete", json={"sha256": sha256})).status_code == 200
    assert await stored(registry, "acme", sha256) == data


def test_headers_are_read_strictly() -> None:
    digest = base64.b64encode(hashlib.sha256(b"a").digest()).decode()
    expected = hashlib.sha256(b"a").hexdigest()
    assert read_digest(f"sha-256=:{digest}:") == expected
    assert read_digest(f"sha-512=:AAAA:, sha-256=:{digest}:") == expected
    for text in (None, "", digest, f"sha-256={digest}", "sha-256=:AAAA:", f"xsha-256=:{digest}:", "sha-256=:é:"):
        with pytest.raises(UploadHeaderInvalid):
            read_digest(text)
    assert read_offset("0") == 0
    for text in (None, "", "-1", "+1", "1.0", "0x1", " 1", "1" * 20, "²"):
        with pytest.raises(UploadHeaderInvalid):
            read_offset(text)
