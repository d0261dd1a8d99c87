"""Upstreams are ASGI applications: the service itself in one process, or `HttpUpstream` in front of its processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from gateway.addresses import Address, Addresses, RepeatBudget
from kit import http
from kit.context import request_id
from kit.errors import Unavailable
from kit.identity import PRINCIPAL_HEADER, REQUEST_ID_HEADER, Kind, Principal, PrincipalSeal
from kit.tracing import record_headers

#: In a request's scope: when its answer must have begun, by the loop's clock.
DEADLINE = "latebind.deadline"
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
_CONNECT_S = 1.0
#: How long an answer may pause once it has begun, and how long one may take that has no deadline.
_SILENCE_S = 60.0
_ANSWER_S = 15.0
#: Shorter than the services keep idle connections, so that none is used while they close it.
_IDLE_S = 30.0
#: Bodies up to this size are read before they are forwarded, so that they can be sent again.
_IN_MEMORY_BYTES = 1 << 20
_REPEATABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_NOT_CONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout)


class UpstreamUnavailable(Unavailable):
    """The service behind the gateway does not answer."""

    code = "UPSTREAM_UNAVAILABLE"


@dataclass(slots=True)
class _Request:
    """One request on its way. `repeatable`: a service may see it twice, and its body can be sent twice."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes | _Stream | None
    repeatable: bool

    def may_go_on(self, error: httpx2.TransportError | TimeoutError) -> bool:
        """Whether another address may be asked after this."""
        if isinstance(self.body, _Stream) and self.body.begun:
            return False
        return self.repeatable or isinstance(error, _NOT_CONNECTED)


class HttpUpstream:
    """Forwards over HTTP to the processes of one service, streaming both ways. Redirects and errors of the service pass through.

    `urls` is one address or several with commas between. Another address is asked when one cannot be reached, or when a connection ends
    before an answer begins and the request may be seen twice: a device's, one that only reads, or one with an `Idempotency-Key`.
    """

    def __init__(self, urls: str) -> None:
        self._addresses = Addresses([url for part in urls.split(",") if (url := part.strip())])
        self._budget = RepeatBudget()
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=100, keepalive_expiry=_IDLE_S)
        timeout = httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=_CONNECT_S)
        self._clients = {
            one.url: httpx2.AsyncClient(base_url=one.url, limits=limits, timeout=timeout, follow_redirects=False, trust_env=False)
            for one in self._addresses.all
        }

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.aclose()

    async def alive(self) -> Mapping[str, bool]:
        """Ask each address whether its process turns, within a second."""

        async def ask_one(client: httpx2.AsyncClient) -> bool:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    return (await client.get("/livez")).status_code == 200
            except (httpx2.TransportError, TimeoutError):
                return False

        answers = await asyncio.gather(*(ask_one(client) for client in self._clients.values()))
        return dict(zip(self._clients, answers, strict=True))

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Forward one request (ASGI). Raises `UpstreamUnavailable` when no answer has begun."""
        request = await _taken(scope, receive)
        response = await self._answer(request, scope.get(DEADLINE))
        try:
            answered = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": answered})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    async def _answer(self, request: _Request, deadline: float | None) -> httpx2.Response:
        """Return an answer that has begun, from the first address that gives one."""
        self._budget.earn()
        clock = asyncio.get_running_loop().time
        ends = clock() + _ANSWER_S if deadline is None else deadline
        candidates = self._addresses.in_order(clock())
        for number, address in enumerate(candidates, 1):
            last = number == len(candidates)
            # A process that is there and silent takes only half of the time, so that another can still answer.
            until = ends if last or not request.repeatable else clock() + (ends - clock()) / 2
            try:
                async with asyncio.timeout_at(until):
                    response = await self._send(address, request)
            except (httpx2.TransportError, TimeoutError) as error:
                if not isinstance(error, httpx2.PoolTimeout):
                    address.broke(clock())
                if last or clock() >= ends or not request.may_go_on(error) or not self._budget.spend():
                    raise UpstreamUnavailable("the service behind this address does not answer; try again") from error
            else:
                address.worked()
                return response
        raise AssertionError("there is always a last address")

    async def _send(self, address: Address, request: _Request) -> httpx2.Response:
        client = self._clients[address.url]
        built = client.build_request(request.method, request.target, headers=request.headers, content=request.body)
        return await client.send(built, stream=True)


async def _taken(scope: http.Scope, receive: http.Receive) -> _Request:
    """Read what a request is made of; a small body too."""
    target = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    url = (target.partition(b"?")[0] + (b"?" + query if query else b"")).decode("ascii")
    headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP and name != b"host"]
    body: bytes | _Stream | None = None
    size = http.header(scope, b"content-length")
    if size is not None and int(size) <= _IN_MEMORY_BYTES:
        body = await http.read_body(scope, receive, max_bytes=_IN_MEMORY_BYTES)
    elif size is not None or http.header(scope, b"transfer-encoding") is not None:
        body = _Stream(receive)
    repeatable = (
        scope["method"] in _REPEATABLE_METHODS
        or scope["path"].startswith(("/v1/device/", "/internal/"))
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
