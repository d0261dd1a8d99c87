"""The gateway's HTTP client: it streams, keeps connections, and never takes one answer for another."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.http_client import AllBusy, Broken, HttpClient, NotConnected
from kit import http
from tests.serving import serving

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def scripted(serve: Serve) -> AsyncIterator[str]:
    """A server that does with a connection what the test says."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def client_of(url: str, **options: float) -> AsyncIterator[HttpClient]:
    client = HttpClient(url, **options)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(30):
            yield client
    finally:
        await client.close()


async def fetched(client: HttpClient, method: str = "GET", target: bytes = b"/") -> tuple[int, bytes]:
    answer = await client.send(method, target)
    try:
        return answer.status, await answer.read_all()
    finally:
        await answer.close()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def echo(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
    """Answer with what came: method, target, headers, digest of the body."""
    digest, size, more = hashlib.sha256(), 0, True
    while more:
        message = await receive()
        digest.update(message.get("body", b""))
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    shown = f"{scope['method']} {scope['raw_path'].decode()}?{scope['query_string'].decode()} {size} {digest.hexdigest()}"
    names = b",".join(sorted(name for name, _ in scope["headers"]))
    await http.send_bytes(send, 200, shown.encode(), [(b"x-names", names)])


async def test_methods_bodies_and_headers_arrive_as_given() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(50):
            yield b"%d" % number * 5000

    whole = b"".join([chunk async for chunk in chunks()])
    bodies = ((None, b""), (b"", b""), (b"body", b"body"), (chunks(), whole))
    async with serving(echo) as url, client_of(url) as client:
        for body, sent in bodies:
            answer = await client.send("PUT", b"/a%20b?c=d&e=%2F", [(b"x-one", b"1")], body)
            text = (await answer.read_all()).decode()
            await answer.close()
            assert text == f"PUT /a%20b?c=d&e=%2F {len(sent)} {hashlib.sha256(sent).hexdigest()}"
            assert b"x-one" in dict(answer.headers)[b"x-names"]
        assert len(client._open) == 1


async def test_a_large_answer_is_held_back_until_it_is_read() -> None:
    sent = 0

    async def large(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            sent += 100_000
        await send({"type": "http.response.body", "body": b""})

    async with serving(large) as url, client_of(url) as client:
        answer = await client.send("GET", b"/")
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 20_000_000
        assert len(await answer.read_all()) == 40_000_000
        await answer.close()
        assert (await fetched(client))[0] == 200
        assert len(client._open) == 1


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\n", b"ok!"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    ],
)
async def test_a_connection_serves_again_after_any_whole_answer(raw: bytes, body: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            for byte in raw:  # the smallest pieces that a network may make
                writer.write(bytes([byte]))
                await writer.drain()

    async with scripted(serve) as url, client_of(url) as client:
        for _ in range(3):
            assert (await fetched(client))[1] == body
        assert len(client._open) == 1


async def test_head_has_no_body_and_the_next_answer_is_its_own() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" if head.startswith(b"HEAD") else OK)

    async with scripted(serve) as url, client_of(url) as client:
        for method, body in (("HEAD", b""), ("GET", b"ok"), ("HEAD", b""), ("GET", b"ok")):
            assert await fetched(client, method) == (200, body)


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall there is")

    async with scripted(serve) as url, client_of(url) as client:
        assert await fetched(client) == (200, b"all there is")
        assert await fetched(client) == (200, b"all there is")


@pytest.mark.parametrize(
    "raw",
    [
        OK + OK,
        OK + b"surplus",
        OK.replace(b"length: 2", b"length: 1"),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_no_connection_is_used_again_after_more_than_its_answer(raw: bytes) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await head_of(reader)
            writer.write(raw)
            await writer.drain()

    async with scripted(serve) as url, client_of(url) as client:
        for _ in range(3):
            assert (await fetched(client))[1] in {b"ok", b"o"}
        assert connections == 3


async def test_bytes_that_come_while_nobody_asks_end_the_connection() -> None:
    written = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK)
        await written.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong")
        await reader.read()

    async with scripted(serve) as url, client_of(url) as client:
        assert await fetched(client) == (200, b"ok")
        written.set()
        connection = client._idle[0]
        while not connection.lost:
            await asyncio.sleep(0.01)
        assert await fetched(client) == (200, b"ok")


@pytest.mark.parametrize(
    "raw",
    [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-le", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"],
)
async def test_a_connection_that_ends_before_an_answer_is_broken(raw: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(raw)

    async with scripted(serve) as url, client_of(url) as client:
        with pytest.raises(Broken):
            await client.send("GET", b"/")
        assert not client._open


@pytest.mark.parametrize("raw", [OK[:-1], b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok"])
async def test_an_answer_that_stops_in_the_middle_is_broken(raw: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(raw)

    async with scripted(serve) as url, client_of(url) as client:
        with pytest.raises(Broken):
            await fetched(client)


async def test_a_silent_service_is_given_up_and_its_connection_ended() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK[:-1])
        await reader.read()

    async with scripted(serve) as url, client_of(url, silence_s=0.1) as client:
        with pytest.raises(Broken, match="paused"):
            await fetched(client)
        assert not client._open


async def test_a_request_that_is_cancelled_takes_its_connection_with_it() -> None:
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        asked.set()
        await reader.read()

    async with scripted(serve) as url, client_of(url, connections=1) as client:
        for _ in range(3):
            asked.clear()
            task = asyncio.create_task(client.send("GET", b"/"))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not client._open


async def test_an_early_answer_counts_although_the_body_is_not_all_sent() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\nmuch")
        await writer.drain()
        await reader.read()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with scripted(refuse) as url, client_of(url) as client:
        answer = await client.send("PUT", b"/", body=endless())
        assert (answer.status, await answer.read_all()) == (413, b"much")
        await answer.close()
        assert not client._open


async def test_what_the_sender_raises_reaches_the_caller() -> None:
    async def gone() -> AsyncIterator[bytes]:
        yield b"some"
        raise http.ClientGone

    async with serving(echo) as url, client_of(url) as client:
        with pytest.raises(http.ClientGone):
            await client.send("PUT", b"/", body=gone())
        assert not client._open
        assert (await fetched(client))[0] == 200


async def test_nobody_there_and_everybody_busy_are_told_apart() -> None:
    async with client_of("http://127.0.0.1:9") as client:
        with pytest.raises(NotConnected):
            await client.send("GET", b"/")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(silent) as url, client_of(url, connections=1, connect_s=0.1) as client:
        task = asyncio.create_task(client.send("GET", b"/"))
        with pytest.raises(AllBusy):
            while not task.done():
                await asyncio.sleep(0)
                await client.send("GET", b"/")
        task.cancel()


async def test_connections_that_rested_too_long_are_not_used() -> None:
    async with serving(echo) as url, client_of(url, idle_s=0) as client:
        for _ in range(3):
            assert (await fetched(client))[0] == 200
        assert len(client._open) <= 1


async def test_many_at_once_get_their_own_answers() -> None:
    async with serving(echo) as url, client_of(url, connections=20) as client:

        async def one(number: int) -> bool:
            target = b"/%d" % number
            return (await fetched(client, target=target))[1].startswith(b"GET %s?" % target)

        assert all(await asyncio.gather(*(one(number) for number in range(400))))
        assert len(client._open) <= 20


@pytest.mark.parametrize(("target", "header"), [(b"/a\r\nx: y", b"1"), (b"/a b", b"1"), (b"/", b"1\r\nx: y")])
async def test_nothing_can_be_smuggled_into_the_head(target: bytes, header: bytes) -> None:
    async with serving(echo) as url, client_of(url) as client:
        with pytest.raises(ValueError, match="line break"):
            await client.send("GET", target, [(b"x-a", header)])


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://host", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        HttpClient(url)
