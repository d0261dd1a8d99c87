"""What a device sends and gets, against the raw application on a real log."""

from __future__ import annotations

import json
from typing import Any

import pytest
import zstandard

from kit import http
from kit.eventlog import open_eventlog
from kit.identity import COUNTRY_HEADER, PRINCIPAL_HEADER, REQUEST_ID_HEADER, Kind, Principal
from latebind_proto.events_pb2 import TelemetryReceived
from services.telemetry import events
from services.telemetry.app import create_part
from services.telemetry.device import PATH
from services.telemetry.settings import TelemetrySettings
from tests.conftest import user
from tests.telemetry.factories import NOW_MS, batch, samples
from tests.telemetry.stores import Stores

DEVICE = Principal(Kind.DEVICE, "8d1c0000-0000-4000-8000-000000000001", "acme")
PROTOBUF = {b"content-type": b"application/x-protobuf"}


async def post(
    stores: Stores,
    body: bytes,
    headers: dict[bytes, bytes] = PROTOBUF,
    *,
    principal: Principal | None = DEVICE,
    method: str = "POST",
    path: str = PATH,
    pieces: int = 1,
) -> tuple[int, dict[bytes, bytes], Any]:
    """Send one request to telemetry's application; return status, headers and parsed body."""
    app = create_part(TelemetrySettings(), stores.ports()).app
    sealed = {PRINCIPAL_HEADER: stores.seal.seal(principal)} if principal else {}
    scope: http.Scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [*{**headers, **sealed}.items()]}
    size = max(1, -(-len(body) // pieces))
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    sent: list[http.Message] = []

    async def receive() -> http.Message:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: http.Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(answer)


async def received(stores: Stores) -> list[Any]:
    async with stores.eventlog.consumer("test", [events.RECEIVED]) as consumer:
        return list((await consumer.batch(max_records=100, max_bytes=1 << 24, max_wait_s=2)).records)


async def test_the_bytes_go_into_the_log_with_what_the_edge_knows(stores: Stores) -> None:
    sent = batch(samples([10]))
    body = sent.SerializeToString()
    headers = {**PROTOBUF, COUNTRY_HEADER: b"FR", REQUEST_ID_HEADER: b"r1"}
    status, _, answer = await post(stores, body, headers, pieces=3)
    assert (status, answer) == (202, {"batch_id": sent.batch_id.hex()})
    (record,) = await received(stores)
    assert record.key == f"acme/{DEVICE.id}"
    assert {name: record.headers[name] for name in ("account", "request-id", "occurred-at")} == {
        "account": "acme",
        "request-id": "r1",
        "occurred-at": "2026-11-22T10:00:00Z",
    }
    assert record.headers["event-id"].startswith("e_")
    assert TelemetryReceived.FromString(record.value) == TelemetryReceived(
        account="acme", install_id=DEVICE.id, country="FR", received_at_ms=NOW_MS, encoding="protobuf", body=body
    )


@pytest.mark.parametrize(
    ("headers", "encoding"),
    [
        ({b"content-type": b"application/x-protobuf", b"content-encoding": b"zstd"}, "protobuf+zstd"),
        ({b"content-type": b"application/protobuf; charset=binary"}, "protobuf"),
        ({b"content-type": b"application/json; charset=utf-8"}, "json"),
    ],
)
async def test_each_encoding_is_noted(stores: Stores, headers: dict[bytes, bytes], encoding: str) -> None:
    sent = batch(samples(list(range(1000))))
    body = sent.SerializeToString()
    if encoding == "json":
        body = json.dumps({"facts": {"soc": "x"}, "batch_id": sent.batch_id.hex().upper()}).encode()
    elif encoding == "protobuf+zstd":
        body = zstandard.compress(body)
    status, _, answer = await post(stores, body, headers)
    assert (status, answer) == (202, {"batch_id": sent.batch_id.hex()})
    (record,) = await received(stores)
    envelope = TelemetryReceived.FromString(record.value)
    assert (envelope.encoding, envelope.body, envelope.country) == (encoding, body, "")


BODY = batch(samples([1])).SerializeToString()


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", PROTOBUF, 400, "TELEMETRY_INVALID"),
        (b"\x0a\x0fshort", PROTOBUF, 400, "TELEMETRY_INVALID"),
        (b"\x12" + BODY, PROTOBUF, 400, "TELEMETRY_INVALID"),
        (BODY, {}, 400, "TELEMETRY_INVALID"),
        (BODY, {b"content-type": b"text/plain"}, 400, "TELEMETRY_INVALID"),
        (BODY, {**PROTOBUF, b"content-encoding": b"gzip"}, 400, "TELEMETRY_INVALID"),
        (BODY, {**PROTOBUF, b"content-encoding": b"zstd"}, 400, "TELEMETRY_INVALID"),
        (zstandard.compress(b""), {**PROTOBUF, b"content-encoding": b"zstd"}, 400, "TELEMETRY_INVALID"),
        (b'{"batch_id": "12"}', {b"content-type": b"application/json"}, 400, "TELEMETRY_INVALID"),
        (BODY + bytes(1 << 20), PROTOBUF, 413, "BODY_TOO_LARGE"),
        (BODY, {**PROTOBUF, b"content-length": b"1048577"}, 413, "BODY_TOO_LARGE"),
    ],
)
async def test_a_wrong_envelope_is_refused_for_good(
    stores: Stores, body: bytes, headers: dict[bytes, bytes], status: int, code: str
) -> None:
    found, answered, problem = await post(stores, body, headers, pieces=2)
    assert (found, problem["code"]) == (status, code)
    assert answered[b"content-type"] == b"application/problem+json"
    assert await received(stores) == []


@pytest.mark.parametrize(("principal", "status"), [(None, 401), (user(), 403), (Principal(Kind.OPERATOR, "op"), 403)])
async def test_only_devices_send(stores: Stores, principal: Principal | None, status: int) -> None:
    found, _, _ = await post(stores, BODY, principal=principal)
    assert found == status
    assert await received(stores) == []


async def test_a_forged_identity_is_refused(stores: Stores) -> None:
    found, _, _ = await post(stores, BODY, {**PROTOBUF, PRINCIPAL_HEADER: b"e30=.00"}, principal=None)
    assert found == 401


@pytest.mark.parametrize(("method", "path", "status"), [("GET", PATH, 405), ("POST", PATH + "/x", 404)])
async def test_nothing_else_is_here(stores: Stores, method: str, path: str, status: int) -> None:
    found, _, _ = await post(stores, BODY, method=method, path=path)
    assert found == status


async def test_a_full_log_says_when_to_come_back(stores: Stores) -> None:
    async with open_eventlog(f"local:{stores.folder}/small.db?max_bytes=65536&full_wait_s=0.05") as small:
        stores.eventlog = small
        for _ in range(20):
            status, headers, answer = await post(stores, BODY + bytes(20_000))
            if status != 202:
                break
        assert (status, answer["code"]) == (503, "EVENT_LOG_FULL")
        assert int(headers[b"retry-after"]) > 0
