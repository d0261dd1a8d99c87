"""Upstreams are ASGI applications: the service itself in one process, or `HttpUpstream` in front of its processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.addresses import Addresses, RepeatBudget
from gateway.deadlines import Deadline
from gateway.http_client import AllBusy, Answer, HttpClient, NotConnected, UpstreamError
from kit import http
from kit.context import request_id
from kit.errors import Unavailable
from kit.identity import PRINCIPAL_HEADER, REQUEST_ID_HEADER, Kind, Principal, PrincipalSeal
from kit.tracing import record_headers

#: In a request's scope: its `Deadline`.
DEADLINE = "latebind.deadline"
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
#: `expect`: whoever reads the body here has answered it.
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"expect"}
_CONNECT_S = 1.0
#: How long an answer may pause once it has begun, and how long one may take that has no deadline.
_SILENCE_S = 60.0
_ANSWER_S = 15.0
#: The event log is waited for longest: 2 s for room in the buffer, 10 s for the acknowledgement.
_SERVICE_SAYS_S = 12.5
#: Shorter than the services keep idle connections, so that none is used while they close it.
_IDLE_S = 30.0
#: Bodies up to this size are read before they are forwarded, so that they can be sent again.
_IN_MEMORY_BYTES = 1 << 20
#: What devices send may be seen twice, but for what carries a nonce.
_ONCE = ("/v1/device/enroll", "/v1/device/token")
_REPEATABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class UpstreamUnavailable(Unavailable):
    """The service behind the gateway does not answer."""

    code = "UPSTREAM_UNAVAILABLE"


@dataclass(slots=True)
class _Request:
    """One request on its way. `repeatable`: a service may see it twice, and its body can be sent twice."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | _Stream | None
    repeatable: bool

    def may_go_on(self, error: UpstreamError | TimeoutError) -> bool:
        """Whether another address may be asked after this."""
        if isinstance(self.body, _Stream) and self.body.begun:
            return False
        return self.repeatable or isinstance(error, NotConnected | AllBusy)


class HttpUpstream:
    """Forwards over HTTP to the processes of one service, streaming both ways. Redirects and errors of the service pass through.

    `urls` is one address or several with commas between. Another address is asked when one cannot be reached, or when a connection ends
    before an answer begins and the request may be seen twice: a device's, one that only reads, or one with an `Idempotency-Key`.
    """

    def __init__(self, urls: str) -> None:
        self._addresses = Addresses([url for part in urls.split(",") if (url := part.strip())])
        self._budget = RepeatBudget()
        self._clients = {
            one.url: HttpClient(one.url, connect_s=_CONNECT_S, idle_s=_IDLE_S, silence_s=_SILENCE_S) for one in self._addresses.all
        }

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    async def alive(self) -> Mapping[str, bool]:
        """Ask each address whether its process turns, within a second."""

        async def ask_one(client: HttpClient) -> bool:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    answer = await client.send("GET", b"/livez")
                    try:
                        await answer.read_all()
                    finally:
                        await answer.close()
            except (UpstreamError, TimeoutError):
                return False
            return answer.status == 200

        answers = await asyncio.gather(*(ask_one(client) for client in self._clients.values()))
        return dict(zip(self._clients, answers, strict=True))

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Forward one request (ASGI). Raises `UpstreamUnavailable` when no answer has begun."""
        request = await _taken(scope, receive)
        limit: Deadline | None = scope.get(DEADLINE)
        answer = await self._answer(request, None if limit is None else limit.ends)
        try:
            headers = [header for header in answer.headers if header[0] not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            more = True
            while more:
                part, more = await answer.read()
                await send({"type": "http.response.body", "body": part, "more_body": more})
        finally:
            await answer.close()

    async def _answer(self, request: _Request, deadline: float | None) -> Answer:
        """Return an answer that has begun, from the first address that gives one."""
        self._budget.earn()
        clock = asyncio.get_running_loop().time
        ends = clock() + _ANSWER_S if deadline is None else deadline
        candidates = self._addresses.in_order(clock())
        for number, address in enumerate(candidates, 1):
            last = number == len(candidates)
            until = ends if last or not request.repeatable else clock() + patience(ends - clock())
            try:
                async with asyncio.timeout_at(None if isinstance(request.body, _Stream) else until):
                    client = self._clients[address.url]
                    answer = await client.send(request.method, request.target, request.headers, request.body)
            except (UpstreamError, TimeoutError) as error:
                if not isinstance(error, AllBusy):
                    address.broke(clock())
                if last or clock() >= ends or not request.may_go_on(error) or not self._budget.spend():
                    raise UpstreamUnavailable("the service behind this address does not answer; try again") from error
            else:
                if last or isinstance(request.body, _Stream) or not _is_not_ready(answer):
                    address.worked()
                    return answer
                await answer.close()
                address.broke(clock())
        raise AssertionError("there is always a last address")


def patience(left_s: float) -> float:
    """Return how long a process that is there and silent is waited for, of the seconds that are left, so that another can still answer.

    Half of them; but a service says within `_SERVICE_SAYS_S` that something behind it is silent, and that is worth waiting for: asking
    another one then only makes the same outage last longer.
    """
    return min(max(left_s / 2, _SERVICE_SAYS_S), left_s * 5 / 6)


def _is_not_ready(answer: Answer) -> bool:
    """Whether the process has just been started and has not handled the request."""
    return answer.status == Unavailable.status and any(name == http.NOT_READY for name, _ in answer.headers)


async def _taken(scope: http.Scope, receive: http.Receive) -> _Request:
    """Read what a request is made of; a small body too."""
    target = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    url = target.partition(b"?")[0] + (b"?" + query if query else b"")
    headers = [header for header in scope["headers"] if header[0] not in _NOT_FORWARDED]
    body: bytes | _Stream | None = None
    size = http.header(scope, b"content-length")
    if size is not None and int(size) <= _IN_MEMORY_BYTES:
        body = await http.read_body(scope, receive, max_bytes=_IN_MEMORY_BYTES)
    elif size is not None or http.header(scope, b"transfer-encoding") is not None:
        body = _Stream(receive)
    path = scope["path"]
    repeatable = (
        scope["method"] in _REPEATABLE_METHODS
        or (path.startswith(("/v1/device/", "/internal/")) and not path.startswith(_ONCE))
        or http.header(scope, b"idempotency-key") is not None
    )
    return _Request(scope["method"], url, headers, body, repeatable)


class _Stream:
    """A body that is forwarded while it arrives. `begun`: some of it was taken, so it cannot be sent again."""

    def __init__(self, receive: http.Receive) -> None:
        self._receive = receive
        self.begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.begun = True
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise http.ClientGone
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return


_GATEWAY = Principal(Kind.SERVICE, "gateway")


async def ask(upstream: http.ASGIApp, seal: PrincipalSeal, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Call an internal route of a service as the gateway itself; returns status and parsed JSON."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
        (PRINCIPAL_HEADER, seal.seal(_GATEWAY)),
        (REQUEST_ID_HEADER, request_id.get().encode()),
        *((name.encode(), value.encode()) for name, value in record_headers().items()),
    ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }
    given = False
    status = 0
    parts: list[bytes] = []

    async def receive() -> http.Message:
        nonlocal given
        if given:
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: http.Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await upstream(scope, receive, send)
    answer = b"".join(parts)
    return status, json.loads(answer) if answer else None
