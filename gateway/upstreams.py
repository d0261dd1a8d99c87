"""Upstreams are ASGI applications: the service itself in one process, or `HttpUpstream` in front of a pod."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from kit import http
from kit.context import request_id
from kit.errors import Unavailable
from kit.identity import PRINCIPAL_HEADER, REQUEST_ID_HEADER, Kind, Principal, PrincipalSeal
from kit.tracing import record_headers

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
_CONNECT_S = 1.0
_ANSWER_S = 30.0


class UpstreamUnavailable(Unavailable):
    """The service behind the gateway does not answer."""

    code = "UPSTREAM_UNAVAILABLE"


class HttpUpstream:
    """Forwards over HTTP, streaming both ways. Redirects and errors of the service pass through as they are."""

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=100)
        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, pool=_CONNECT_S)
        self._client = httpx2.AsyncClient(base_url=url, limits=limits, timeout=timeout, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Forward one request (ASGI). Raises `UpstreamUnavailable` when no answer has begun."""
        target = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string", b"")
        url = (target.partition(b"?")[0] + (b"?" + query if query else b"")).decode("ascii")
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP and name != b"host"]
        has_body = any(name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"])
        request = self._client.build_request(scope["method"], url, headers=headers, content=_body(receive) if has_body else None)
        try:
            response = await self._client.send(request, stream=True)
        except httpx2.TransportError as error:
            raise UpstreamUnavailable("the service behind this address does not answer; try again") from error
        try:
            answered = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": answered})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


async def _body(receive: http.Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
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
