"""`POST /v1/device/telemetry`: takes a batch and answers 202 when the event log has it. Raw ASGI; no SQL, no decoding.

The bytes stay as they are. Only what costs nothing is looked at: type, encoding, size, and the batch id at the front of the message.
"""

from __future__ import annotations

import re

import zstandard

from kit import http
from kit.context import request_id
from kit.errors import Internal, MethodNotAllowed, NotFound, Problem
from kit.identity import COUNTRY_HEADER, PRINCIPAL_HEADER, REQUEST_ID_HEADER, Access, PrincipalSeal, authorize
from kit.logs import debugging, get_logger
from kit.web import RawOperation
from services.telemetry.errors import TelemetryInvalid
from services.telemetry.service import Telemetry

PATH = "/v1/device/telemetry"
MAX_BODY_BYTES = 1 << 20
_PROTOBUF = frozenset({b"application/x-protobuf", b"application/protobuf"})
#: Field 1, length-delimited, 16 bytes: how every encoder begins a batch, because fields are written in the order of their numbers.
_ID_FIELD = b"\x0a\x10"
_JSON_ID = re.compile(rb'"batch_id"\s*:\s*"([0-9A-Fa-f]{32})"')

log = get_logger(__name__)

OPERATION = RawOperation(
    method="POST",
    path=PATH,
    access=Access.DEVICE,
    operation_id="send_telemetry",
    summary="Send a batch of measurements; repeats of a batch count once",
    tag="devices",
    document={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-protobuf": {
                    "schema": {"type": "string", "format": "binary", "description": "TelemetryBatch, plain or zstd"}
                },
                "application/json": {"schema": {"type": "object", "description": "TelemetryBatch, names as in the .proto"}},
            },
        },
        "responses": {
            "202": {
                "description": "The event log has it",
                "content": {"application/json": {"schema": {"type": "object", "properties": {"batch_id": {"type": "string"}}}}},
            }
        },
    },
)


class DeviceApp:
    """The raw ASGI application. Its caller sends it what lies below `/v1/device/`."""

    def __init__(self, telemetry: Telemetry, seal: PrincipalSeal) -> None:
        self._telemetry = telemetry
        self._seal = seal

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Serve one request (ASGI)."""
        request_id.set((http.header(scope, REQUEST_ID_HEADER) or b"").decode("ascii", "replace"))
        try:
            await self._accept(scope, receive, send)
        except http.ClientGone:
            return
        except Problem as problem:
            await http.send_problem(send, problem)
        except Exception:
            log.exception("a telemetry batch could not be accepted")
            await http.send_problem(send, Internal("a fault of ours; the server's log has it under this request id"))

    async def _accept(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["path"] != PATH:
            raise NotFound("there is nothing at this path")
        if scope["method"] != "POST":
            raise MethodNotAllowed("this path does not take this method")
        device = self._seal.open(http.header(scope, PRINCIPAL_HEADER))
        authorize(device, Access.DEVICE)
        encoding = encoding_of(http.header(scope, b"content-type"), http.header(scope, b"content-encoding"))
        body = await http.read_body(scope, receive, max_bytes=MAX_BODY_BYTES)
        batch_id = batch_id_of(encoding, body)
        country = (http.header(scope, COUNTRY_HEADER) or b"").decode("ascii", "replace")
        await self._telemetry.accept(device, country=country, encoding=encoding, body=body)
        if debugging():
            log.debug("telemetry batch accepted", batch_id=batch_id, bytes=len(body), encoding=encoding)
        answer = b'{"batch_id":"%s"}' % batch_id.encode()
        await http.send_bytes(send, 202, answer, [(b"content-type", b"application/json")])


def encoding_of(content_type: bytes | None, content_encoding: bytes | None) -> str:
    """Return how the body is to be read: `protobuf`, `protobuf+zstd` or `json`. Raises `TelemetryInvalid`."""
    kind = (content_type or b"").partition(b";")[0].strip().lower()
    packing = (content_encoding or b"identity").strip().lower()
    if kind in _PROTOBUF and packing in {b"identity", b"zstd"}:
        return "protobuf+zstd" if packing == b"zstd" else "protobuf"
    if kind == b"application/json" and packing == b"identity":
        return "json"
    raise TelemetryInvalid("send application/x-protobuf, with Content-Encoding zstd or none, or application/json")


def batch_id_of(encoding: str, body: bytes) -> str:
    """Return the batch id in hex, from the front of the body. Raises `TelemetryInvalid` when there is none."""
    if encoding == "json":
        found = _JSON_ID.search(body)
        if found is not None:
            return found[1].decode().lower()
        raise TelemetryInvalid("the body has no batch_id of 32 hex digits")
    front = body[:18] if encoding == "protobuf" else _decompressed_front(body)
    if len(front) < 18 or front[:2] != _ID_FIELD:
        raise TelemetryInvalid("the body does not begin with a batch_id of 16 bytes")
    return front[2:18].hex()


def _decompressed_front(body: bytes) -> bytes:
    """Return the first 18 bytes of a zstd frame; one block (128 KiB) is all that is unpacked for it."""
    try:
        with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body) as reader:
            return reader.read(18)
    except zstandard.ZstdError as error:
        raise TelemetryInvalid("the body is not a zstd frame") from error
