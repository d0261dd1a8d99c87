"""The only public port: request id, identity, limits, routing, health and the merged API document.

Raw ASGI, because every device request passes here. It knows no use case: what a request does is its upstream's business.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from structlog import get_logger

from gateway.authn import Authenticator
from gateway.deadlines import Deadline
from gateway.limits import RateLimit, capped
from gateway.openapi import fetch_document, merge, page
from gateway.routes import Route, route_of
from gateway.settings import GatewaySettings
from gateway.upstreams import DEADLINE
from kit import http
from kit.context import request_id, traceparent
from kit.errors import Forbidden, Internal, Invalid, MethodNotAllowed, NotFound, Problem, Unauthorized
from kit.identity import COUNTRY_HEADER, PRINCIPAL_HEADER, REQUEST_ID_HEADER, Kind, PrincipalSeal
from kit.ids import new_id
from kit.logs import debugging
from kit.metrics import Metrics
from kit.tracing import TRACEPARENT_HEADER

log = get_logger(__name__)

_OURS = frozenset({PRINCIPAL_HEADER, COUNTRY_HEADER, REQUEST_ID_HEADER, TRACEPARENT_HEADER})
_CONFUSING = re.compile(rb"//|/\.{1,2}(?:/|$)|\\|%2f|%5c|%2e|%00", re.IGNORECASE)
_GIVEN_ID = re.compile(rb"^[A-Za-z0-9_.:-]{8,80}$")
_MAX_HEADER_BYTES = 16 << 10
_PAGE_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
]


class HeadersTooLarge(Problem):
    """The headers are over the limit."""

    status = 431
    code = "HEADERS_TOO_LARGE"


class HostRefused(Problem):
    """The Host header names a host that this gateway does not serve."""

    status = 421
    code = "HOST_REFUSED"


class Gateway:
    """The application. `upstreams` maps names of the routing table to ASGI applications."""

    def __init__(
        self,
        settings: GatewaySettings,
        upstreams: Mapping[str, http.ASGIApp],
        *,
        seal: PrincipalSeal,
        metrics: Metrics,
        readiness: http.Readiness,
    ) -> None:
        self._settings = settings
        self._upstreams = upstreams
        self._seal = seal
        self._metrics = metrics
        self._readiness = readiness
        self._authenticator = Authenticator(upstreams["registry"], seal, cache_s=settings.credential_cache_s)
        self._rates = {
            Kind.DEVICE: RateLimit(settings.device_requests_per_minute),
            Kind.USER: RateLimit(settings.user_requests_per_minute),
            Kind.OPERATOR: RateLimit(settings.user_requests_per_minute),
            Kind.NOBODY: RateLimit(settings.anonymous_requests_per_minute),
        }
        self._proxies = tuple(ipaddress.ip_network(one.strip()) for one in settings.trusted_proxies.split(",") if one.strip())
        self._country_header = settings.country_header.lower().encode()
        self._hosts = frozenset(one.strip().lower().encode() for one in settings.allowed_hosts.split(",") if one.strip())
        # Random per process, then counted: unique like a random id, for a tenth of its cost.
        self._id_prefix = new_id("r").encode()
        self._id_counter = itertools.count(1)
        self._document: dict[str, Any] | None = None
        self.started = False
        self.draining = False

    async def check(self) -> None:
        """Fetch and check every service's API document. Raises `RouteMissing` when an operation lacks a route or a policy."""
        documents = {name: await fetch_document(name, app, self._seal) for name, app in self._upstreams.items() if name != "links"}
        self._document = merge(documents)

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        route = route_of(path)
        own_id = self._request_id(scope)
        request_id.set(own_id.decode())
        if self.draining:
            send = http.last_answer(send)
        began = time.perf_counter()
        status = 0
        limit: Deadline | None = None

        async def answer(message: http.Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (REQUEST_ID_HEADER, own_id)]}
                if limit is not None:
                    limit.answered()
            await send(message)

        try:
            if route is None:
                await self._own(path, scope, answer)
            else:
                async with Deadline(route.answer_s) as limit:
                    await self._forward(route, own_id, scope, receive, answer, limit)
        except http.ClientGone:
            return
        except Problem as problem:
            if status:
                raise
            await http.send_problem(answer, problem)
        except Exception:
            log.exception("request failed", method=scope["method"], path=path)
            if status:
                raise
            await http.send_problem(answer, Internal("a fault of ours; the server's log has it under this request id"))
        finally:
            upstream = route.upstream if route else "gateway"
            seconds = time.perf_counter() - began
            self._metrics.count("latebind_http_requests_total", service=upstream, method=scope["method"], status=str(status))
            self._metrics.observe("latebind_http_request_seconds", seconds, service=upstream)
            if debugging():
                log.debug("request answered", method=scope["method"], path=path, service=upstream, status=status, seconds=round(seconds, 4))

    async def _forward(  # noqa: PLR0917 - what a request is made of
        self, route: Route, own_id: bytes, scope: http.Scope, receive: http.Receive, send: http.Send, limit: Deadline
    ) -> None:
        self._check_request(scope)
        authorization = http.header(scope, b"authorization") if route.prefix != "/blobs" else None
        if authorization is None or not self._authenticator.remembers(authorization):
            # Guessing keys costs the address that guesses, not the registry that must look each one up.
            self._rates[Kind.NOBODY].take(scope["client"][0] if scope.get("client") else "")
        known = await self._authenticator.authenticate(authorization)
        kind = known.principal.kind
        if authorization is not None:
            self._rates[kind].take(authorization)
        if kind not in route.who:
            if kind is Kind.NOBODY:
                raise Unauthorized("no credential: send Authorization: Bearer <API key or device token>")
            raise Forbidden("this kind of credential may not call this path")
        headers = [(name, value) for name, value in scope["headers"] if name not in _OURS and name != b"authorization"]
        headers.append((REQUEST_ID_HEADER, own_id))
        if trace := traceparent.get():
            headers.append((TRACEPARENT_HEADER, trace.encode()))
        if known.sealed:
            headers.append((PRINCIPAL_HEADER, known.sealed))
        if self._proxies:
            country = self._country(scope)
            if country:
                headers.append((COUNTRY_HEADER, country))
        most = self._settings.max_part_bytes if route.streams else self._settings.max_json_bytes
        body = limit.over(capped(scope, receive, most))
        await self._upstreams[route.upstream]({**scope, "headers": headers, DEADLINE: limit}, body, send)

    def _check_request(self, scope: http.Scope) -> None:
        raw = scope.get("raw_path") or scope["path"].encode()
        if _CONFUSING.search(raw):
            raise Invalid("the path is not in its plain form: no //, dots, backslashes or encoded slashes")
        size = 0
        for name, value in scope["headers"]:
            size += len(name) + len(value)
        if size > _MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"the headers have more than {_MAX_HEADER_BYTES} bytes")
        if self._hosts:
            host = (http.header(scope, b"host") or b"").lower().partition(b":")[0]
            if host not in self._hosts:
                raise HostRefused("this gateway does not serve the host that the request names")

    def _country(self, scope: http.Scope) -> bytes | None:
        """Return the country that a trusted proxy set, two upper-case letters."""
        client = scope.get("client")
        value = http.header(scope, self._country_header)
        if client is None or value is None or len(value) != 2 or not value.isalpha():
            return None
        address = ipaddress.ip_address(client[0])
        return value.upper() if any(address in network for network in self._proxies) else None

    def _request_id(self, scope: http.Scope) -> bytes:
        """Return a trusted proxy's request id, or a new one."""
        if self._proxies and scope.get("client"):
            given = http.header(scope, REQUEST_ID_HEADER)
            address = ipaddress.ip_address(scope["client"][0])
            if given and _GIVEN_ID.match(given) and any(address in network for network in self._proxies):
                return given
        return b"%s-%x" % (self._id_prefix, next(self._id_counter))

    async def _own(self, path: str, scope: http.Scope, send: http.Send) -> None:
        """Answer what the gateway itself serves."""
        if path in http.PROBES:
            await self.health(path, send)
            return
        if path not in {"/", "/docs", "/openapi.json"}:
            raise NotFound("there is nothing at this path; /docs lists what there is")
        if scope["method"] not in {"GET", "HEAD"}:
            raise MethodNotAllowed("this path is read-only")
        if path == "/":
            await http.send_bytes(send, 307, b"", [(b"location", b"/docs")])
            return
        if self._document is None:
            await self.check()
        assert self._document is not None
        if path == "/openapi.json":
            await http.send_bytes(send, 200, json.dumps(self._document).encode(), [(b"content-type", b"application/json")])
        else:
            await http.send_bytes(send, 200, page(self._document).encode(), _PAGE_HEADERS)

    async def health(self, path: str, send: http.Send) -> None:
        """Answer a probe."""
        await http.send_health(path, send, self._readiness, started=self.started, draining=self.draining)


def create_app(
    settings: GatewaySettings, upstreams: Mapping[str, http.ASGIApp], *, seal: PrincipalSeal, metrics: Metrics, readiness: http.Readiness
) -> Gateway:
    """Return the gateway in front of these upstreams."""
    return Gateway(settings, upstreams, seal=seal, metrics=metrics, readiness=readiness)
