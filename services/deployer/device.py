"""What devices call: resolve and update states, as plain ASGI. It reads the request, makes one call and writes the answer."""

from __future__ import annotations

from typing import Any

from structlog import get_logger

from kit import http
from kit.clock import Clock
from kit.context import request_id
from kit.errors import Internal, MethodNotAllowed, NotFound, Problem
from kit.eventlog import EventLog
from kit.identity import PRINCIPAL_HEADER, REQUEST_ID_HEADER, Access, Kind, Principal, PrincipalSeal, authorize
from kit.web import RawOperation
from services.deployer import events
from services.deployer.errors import ReportInvalid
from services.deployer.freshness import Freshness
from services.deployer.reports import ReportProblem, read_report
from services.deployer.resolver import Behind, Question, Resolver

log = get_logger(__name__)

MAX_CONTEXT_BYTES = 64 << 10
MAX_REPORT_BYTES = 256 << 10

_RESOLVE_START = "/v1/device/collections/"
_RESOLVE_END = ":resolve"
_RESOLVE_NAME = slice(len(_RESOLVE_START), -len(_RESOLVE_END))
_EVENTS = "/v1/device/events"

_CONTEXT_SCHEMA = {
    "type": "object",
    "required": ["install_id"],
    "properties": {
        "install_id": {"type": "string"},
        "app": {"type": "object"},
        "sdk": {"type": "object"},
        "device": {"type": "object"},
        "os": {"type": "object"},
        "locale": {"type": "string"},
        "country": {"type": "string"},
        "groups": {"type": "array", "items": {"type": "string"}},
        "runtimes": {"type": "array", "items": {"type": "object"}},
        "attributes": {"type": "object"},
        "installed": {"type": "array", "items": {"type": "object"}},
    },
}


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}


RAW_OPERATIONS = (
    RawOperation(
        method="post",
        path="/v1/device/collections/{collection}:resolve",
        access=Access.DEVICE,
        operation_id="resolve",
        summary="Ask which package this device runs",
        tag="devices",
        document={
            "parameters": [
                {"name": "collection", "in": "path", "required": True, "schema": {"type": "string"}},
                _header("If-None-Match", "ETag of the last answer"),
                _header("Latebind-Counter", "counter of the last assignment that the device accepted for this collection"),
                _header("Latebind-Nonce", "16 to 64 printable ASCII characters, new for each request; copied into the assignment"),
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _CONTEXT_SCHEMA}}},
            "responses": {
                "200": {
                    "description": "The package, with a signed assignment",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                "304": {"description": "Keep what you have"},
            },
        },
    ),
    RawOperation(
        method="post",
        path=_EVENTS,
        access=Access.DEVICE,
        operation_id="report_events",
        summary="Report what became of assignments",
        tag="devices",
        document={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["events"],
                            "properties": {"events": {"type": "array", "items": {"type": "object"}}},
                        }
                    }
                },
            },
            "responses": {"202": {"description": "The event log has them"}},
        },
    ),
)


class DeviceApp:
    """The ASGI application for everything below `/v1/device/`."""

    def __init__(self, resolver: Resolver, freshness: Freshness, *, eventlog: EventLog, seal: PrincipalSeal, clock: Clock) -> None:
        self._resolver, self._freshness = resolver, freshness
        self._eventlog, self._seal, self._clock = eventlog, seal, clock
        self._ask = resolver.ask

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Answer one request. The steady path stands here in one piece: each call of its own costs a tenth of it."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            caller = self._seal.open(headers.get(PRINCIPAL_HEADER))
            if caller.kind is not Kind.DEVICE:
                authorize(caller, Access.DEVICE)
            path: str = scope["path"]
            if not path.endswith(_RESOLVE_END) or not path.startswith(_RESOLVE_START) or scope["method"] != "POST":
                _set_request_id(headers)
                status, body, sent = await self._other(scope, receive, caller)
            else:
                message = await receive()
                body = message.get("body", b"")
                if message.get("more_body", False) or len(body) > MAX_CONTEXT_BYTES or message["type"] != "http.request":
                    body = await http.read_body(scope, _again(message, receive), max_bytes=MAX_CONTEXT_BYTES)
                found = self._ask(caller.account or "", caller.id, path[_RESOLVE_NAME], body, headers)
                if type(found) is Behind:
                    await self._freshness.catch_up(*found)
                    found = self._ask(caller.account or "", caller.id, path[_RESOLVE_NAME], body, headers, True)
                if type(found) is list:
                    status, body, sent = 304, b"", found
                else:
                    assert isinstance(found, Question)
                    _set_request_id(headers)  # its decision goes into the log with it
                    status, (body, sent) = 200, await self._resolver.answer(found, headers.get(b"latebind-nonce"))
        except http.ClientGone:
            return
        except Problem as problem:
            _set_request_id(headers)
            await http.send_problem(send, problem)
            return
        except Exception:
            _set_request_id(headers)
            log.exception("device request failed", path=scope["path"])
            await http.send_problem(send, Internal("a fault of ours; the server's log has it under this request id"))
            return
        if status != 304:
            sent = [(b"content-length", b"%d" % len(body)), *sent]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    async def _other(self, scope: http.Scope, receive: http.Receive, caller: Principal) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        path: str = scope["path"]
        if path != _EVENTS and not (path.startswith(_RESOLVE_START) and path.endswith(_RESOLVE_END)):
            raise NotFound("there is nothing at this path")
        if scope["method"] != "POST":
            raise MethodNotAllowed("this path takes POST only")
        return await self._report(caller, await http.read_body(scope, receive, max_bytes=MAX_REPORT_BYTES))

    async def _report(self, caller: Principal, content: bytes) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        try:
            http.check_json_depth(content)
            count, report = read_report(content)
        except ReportProblem as problem:
            raise ReportInvalid(f"the update states cannot be read: {problem}") from problem
        except Problem as problem:
            raise ReportInvalid(problem.detail) from problem
        if count:
            message = events.device_reported(caller.tenant, caller.id, report, self._clock.now())
            await self._eventlog.append(events.DEVICE_REPORTED, [message])
        return 202, b'{"accepted":%d}' % count, [(b"content-type", b"application/json")]


def _set_request_id(headers: dict[bytes, bytes]) -> None:
    request_id.set(headers.get(REQUEST_ID_HEADER, b"").decode("ascii", "replace"))


def _again(first: http.Message, receive: http.Receive) -> http.Receive:
    """Return a channel that gives a message that was taken already, then what the real one gives."""
    taken = [first]

    async def channel() -> http.Message:
        return taken.pop() if taken else await receive()

    return channel
