"""The way to a service that has several addresses, some of which fail: real sockets, and addresses that misbehave."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.deadlines import Deadline, DeadlineExceeded
from gateway.upstreams import DEADLINE, HttpUpstream, UpstreamUnavailable, patience
from kit import http
from tests.serving import serving

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a request and close."""
    await reader.read(100)
    writer.close()


async def is_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take requests and never answer."""
    while await reader.read(1 << 16):
        pass
    writer.close()


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


class Good:
    """A service that says what it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        self.bodies.append(await http.read_body(scope, receive, max_bytes=10 << 20))
        await http.send_bytes(send, 200, self.bodies[-1])


async def ask(
    upstream: HttpUpstream, method: str, path: str, body: bytes = b"", *, headers: http.RawHeaders = (), limit: Deadline | None = None
) -> tuple[int, bytes]:
    """One request through the upstream; status and body of the answer."""
    pieces = [body[at : at + (1 << 18)] for at in range(0, len(body), 1 << 18)] or [b""]
    status, got = 0, b""

    async def receive() -> http.Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: http.Message) -> None:
        nonlocal status, got
        status = message.get("status", status)
        got += message.get("body", b"")

    length = [(b"content-length", b"%d" % len(body))] if body else []
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [*length, *headers], DEADLINE: limit}
    await upstream(scope, receive, send)
    return status, got


@asynccontextmanager
async def upstream_of(*urls: str) -> AsyncIterator[HttpUpstream]:
    upstream = HttpUpstream(",".join(urls))
    try:
        yield upstream
    finally:
        await upstream.close()


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/models"), ("POST", "/v1/device/telemetry")])
async def test_an_address_where_nobody_listens_is_passed_over(method: str, path: str) -> None:
    good = Good()
    async with serving(good) as address, upstream_of(nowhere(), address) as upstream:
        body = b"" if method == "GET" else b"once"
        assert [await ask(upstream, method, path, body) for _ in range(10)] == [(200, body)] * 10
        assert len(good.bodies) == 10


async def test_a_connection_that_breaks_is_repeated_for_devices_and_for_what_may_happen_twice() -> None:
    good = Good()
    async with serving(good) as address, listening(breaks_off) as broken, upstream_of(address, broken) as upstream:
        assert await ask(upstream, "POST", "/v1/device/telemetry", b"batch") == (200, b"batch")
        key = [(b"idempotency-key", b"k")]
        for one in upstream._addresses.all:
            one.worked()
        assert [await ask(upstream, "POST", "/v1/models", b"m", headers=key) for _ in range(2)] == [(200, b"m")] * 2


async def test_what_must_not_happen_twice_is_not_repeated_once_it_was_sent() -> None:
    good = Good()
    async with serving(good) as address, listening(breaks_off) as broken, upstream_of(address, broken) as upstream:
        with pytest.raises(UpstreamUnavailable):
            await ask(upstream, "POST", "/v1/models", b"m")
        assert good.bodies == []
        assert await ask(upstream, "POST", "/v1/models", b"m") == (200, b"m"), "the broken address rests"


async def test_a_large_body_that_began_to_be_sent_is_not_repeated() -> None:
    good = Good()
    async with serving(good) as address, listening(breaks_off) as broken, upstream_of(address, broken) as upstream:
        with pytest.raises(UpstreamUnavailable):
            await ask(upstream, "PUT", "/v1/device/large", b"x" * (3 << 20))
        assert await ask(upstream, "PUT", "/v1/device/large", b"x" * (3 << 20)) == (200, b"x" * (3 << 20))
        assert len(good.bodies) == 1


async def test_a_silent_address_leaves_time_for_another() -> None:
    good = Good()
    async with (
        serving(good) as address,
        listening(is_silent) as silent,
        upstream_of(address, silent) as upstream,
        Deadline(20.0) as limit,
    ):
        limit.ends -= 17.0  # three seconds are left; the silent address gets two and a half
        assert await ask(upstream, "POST", "/v1/device/telemetry", b"batch", limit=limit) == (200, b"batch")


@pytest.mark.parametrize(("left_s", "waited_s"), [(15.0, 12.5), (60.0, 30.0), (3.0, 2.5)])
def test_a_service_may_say_itself_that_something_behind_it_is_silent(left_s: float, waited_s: float) -> None:
    assert patience(left_s) == waited_s


async def test_an_answer_must_begin_in_time_and_then_may_take_longer() -> None:
    with pytest.raises(DeadlineExceeded):
        async with Deadline(0.05):
            await asyncio.sleep(30)
    async with Deadline(0.2) as limit:
        limit.answered()
        await asyncio.sleep(0.4)


async def test_the_time_begins_when_the_body_has_come() -> None:
    left = [b"a", b"b", b"c", b""]

    async def slowly() -> http.Message:
        await asyncio.sleep(0.7)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async with Deadline(2.0) as limit:
        receive = limit.over(slowly)
        while (await receive())["more_body"]:
            pass
    with pytest.raises(DeadlineExceeded):
        async with Deadline(2.0) as limit:
            left = [b"a", b""]
            receive = limit.over(slowly)
            while (await receive())["more_body"]:
                pass
            await asyncio.sleep(30)


async def test_all_addresses_gone_is_said_and_both_are_asked_again_later() -> None:
    async with upstream_of(nowhere(), nowhere()) as upstream:
        with pytest.raises(UpstreamUnavailable):
            await ask(upstream, "GET", "/v1/models")
        assert list((await upstream.alive()).values()) == [False, False]


async def test_an_error_is_told_after_the_time_has_ended() -> None:
    limit = Deadline(0.05)
    with pytest.raises(DeadlineExceeded):
        async with limit:
            await asyncio.sleep(30)
    limit.answered()


async def test_a_process_that_has_just_started_sends_on_to_another() -> None:
    good = Good()

    async def starting(_scope: http.Scope, _receive: http.Receive, send: http.Send) -> None:
        await http.send_bytes(send, 503, b"not yet", [(http.NOT_READY, b"1")])

    async with serving(good) as address, serving(starting) as started, upstream_of(address, started) as upstream:
        assert await ask(upstream, "POST", "/v1/models", b"m") == (200, b"m")
        assert good.bodies == [b"m"], "although it must not happen twice"
    async with serving(starting) as started, upstream_of(started) as upstream:
        assert await ask(upstream, "POST", "/v1/models", b"m") == (503, b"not yet")
