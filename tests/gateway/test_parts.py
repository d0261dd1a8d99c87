"""The gateway's parts by themselves: table, limits, merged document, forwarding over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import resource
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway.limits import RateLimit, capped
from gateway.openapi import merge, page
from gateway.routes import ROUTES, RouteMissing, check_operations, route_of
from gateway.upstreams import HttpUpstream, UpstreamUnavailable, ask
from kit import http
from kit.errors import TooLarge, TooManyRequests
from kit.identity import PRINCIPAL_HEADER, Kind, PrincipalSeal
from tests.serving import serving


@pytest.mark.parametrize(
    ("path", "upstream"),
    [
        ("/v1/models", "registry"),
        ("/v1/models/digits/versions/3:commit", "registry"),
        ("/v1/jobs/j_1/events", "packager"),
        ("/v1/collections/c_4k7tq2mz:publish", "deployer"),
        ("/v1/device/collections/c_4k7tq2mz:resolve", "deployer"),
        ("/v1/device/telemetry", "telemetry"),
        ("/v1/device/blobs/ab", "registry"),
        ("/blobs/acme/ab", "links"),
        ("/v1/modelsx", None),
        ("/v1/device", None),
        ("/v1/device/other", None),
        ("/internal/credentials:verify", None),
        ("/v1", None),
        ("/", None),
        ("", None),
        ("/v2/models", None),
    ],
)
def test_the_table(path: str, upstream: str | None) -> None:
    route = route_of(path)
    assert (route.upstream if route else None) == upstream


def test_internal_paths_are_in_no_route() -> None:
    assert all(not route.prefix.startswith("/internal") for route in ROUTES)
    assert all(Kind.SERVICE not in route.who or Kind.NOBODY in route.who for route in ROUTES)


def document(path: str, access: str | None) -> dict[str, object]:
    return {"paths": {path: {"get": {"operationId": "x", **({"x-latebind-access": access} if access else {})}}}}


def test_an_operation_without_policy_or_route_stops_the_gateway() -> None:
    check_operations("registry", document("/v1/models/{m}", "read"))
    for upstream, path, access in (
        ("registry", "/v1/models", None),
        ("registry", "/v1/models", "everyone"),
        ("registry", "/v1/nowhere", "read"),
        ("packager", "/v1/models", "read"),
        ("deployer", "/v1/collections", "device"),
        ("registry", "/v1/models", "public"),
    ):
        with pytest.raises(RouteMissing):
            check_operations(upstream, document(path, access))


def test_documents_merge_without_losing_a_schema() -> None:
    def one(schema: dict[str, object], path: str, operation: str) -> dict[str, object]:
        reference = {"$ref": "#/components/schemas/Item"}
        return {
            "paths": {path: {"get": {"operationId": operation, "tags": ["t"], "responses": {"200": reference}}}},
            "components": {"schemas": {"Item": schema}},
        }

    merged = merge({"registry": one({"type": "object"}, "/a", "a"), "deployer": one({"type": "string"}, "/b", "b")})
    assert merged["components"]["schemas"] == {"Item": {"type": "object"}, "DeployerItem": {"type": "string"}}
    assert merged["paths"]["/b"]["get"]["responses"]["200"] == {"$ref": "#/components/schemas/DeployerItem"}
    assert "<code>/b</code>" in page(merged)
    with pytest.raises(ValueError, match="used by registry and deployer"):
        merge({"registry": one({}, "/a", "a"), "deployer": one({}, "/b", "a")})


def test_the_rate_has_a_burst_and_says_when_to_come_back() -> None:
    limit = RateLimit(60)
    for _ in range(31):
        limit.take("a")
    limit.take("b")
    with pytest.raises(TooManyRequests) as refused:
        limit.take("a")
    assert 1 <= (refused.value.retry_after_s or 0) <= 2


async def test_a_body_over_the_cap_ends_while_it_arrives() -> None:
    async def endless() -> http.Message:
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    receive = capped({"headers": []}, endless, 2500)
    with pytest.raises(TooLarge):
        for _ in range(3):
            await receive()
    for length in (b"2501", b"-1", b"x", b"1e3"):
        with pytest.raises(TooLarge):
            capped({"headers": [(b"content-length", length)]}, endless, 2500)


async def echo(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
    """Answers with the digest of what it read, or with as many bytes as the path says."""
    if scope["path"].startswith("/bytes/"):
        await send(
            {
                "type": "http.response.start",
                "status": 206,
                "headers": [(b"x-one", b"1"), (b"x-one", b"2"), (b"content-range", b"bytes 0-1/2")],
            }
        )
        for _ in range(int(scope["path"].removeprefix("/bytes/"))):
            await send({"type": "http.response.body", "body": b"z" * (1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    digest = hashlib.sha256()
    while True:
        message = await receive()
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
    seen = http.header(scope, b"x-principal") or b""
    await http.send_json(send, 200, {"sha256": digest.hexdigest(), "query": scope["query_string"].decode(), "seen": seen.decode()})


async def test_forwarding_streams_both_ways_in_constant_memory() -> None:
    async with serving(echo) as address:
        upstream = HttpUpstream(address)
        async with serving(upstream) as front, httpx2.AsyncClient(base_url=front) as client:
            sent = hashlib.sha256()

            async def body() -> AsyncIterator[bytes]:
                for _ in range(256):
                    sent.update(b"y" * (1 << 20))
                    yield b"y" * (1 << 20)

            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer = (await client.put("/up?a=1&b=%20", content=body(), headers={"x-principal": "p"})).json()
            assert answer == {"sha256": sent.hexdigest(), "query": "a=1&b=%20", "seen": "p"}
            size = 0
            async with client.stream("GET", "/bytes/256") as response:
                assert (response.status_code, response.headers.get_list("x-one")) == (206, ["1", "2"])
                async for chunk in response.aiter_raw():
                    size += len(chunk)
            assert size == 256 << 20
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
        await upstream.close()


async def test_an_upstream_that_is_down_is_a_503() -> None:
    async with serving(echo) as address:
        pass
    upstream = HttpUpstream(address)
    with pytest.raises(UpstreamUnavailable):
        await ask(upstream, PrincipalSeal(b"s" * 32), "GET", "/internal/openapi.json")
    await upstream.close()


async def test_the_gateway_calls_as_itself() -> None:
    seal = PrincipalSeal(b"s" * 32)
    seen: list[Kind] = []

    async def service(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        seen.append(seal.open(http.header(scope, PRINCIPAL_HEADER)).kind)
        body = await http.read_body(scope, receive, max_bytes=1000)
        await http.send_bytes(send, 200, body)

    assert await ask(service, seal, "POST", "/internal/x", {"a": 1}) == (200, {"a": 1})
    assert seen == [Kind.SERVICE]
    await asyncio.sleep(0)
