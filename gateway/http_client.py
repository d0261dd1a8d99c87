"""A lean HTTP/1.1 client for the hop to the services: a pool of connections, httptools' parser, streams both ways.

A general client costs several hundred microseconds of CPU per request, ten times what the device's answer itself takes
(docs/adr/0151). It knows no redirects, cookies, compression or proxies, and repeats nothing: its caller knows what may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

_READ_AHEAD_BYTES = 256 << 10
_BODYLESS = frozenset({204, 304})


class UpstreamError(Exception):
    """The service cannot be asked, or did not answer in HTTP."""


class NotConnected(UpstreamError):
    """No connection came about: the service has seen nothing of the request."""


class AllBusy(UpstreamError):
    """Every connection is in use; the service has seen nothing of the request, and may be well."""


class Broken(UpstreamError):
    """The connection ended, fell silent or carried nonsense after some of the request had been sent."""


class _Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.lost = False
        self.in_use = False
        self.idle_since = 0.0
        self._parser: Any = None
        self._loop = asyncio.get_running_loop()
        self._writable: asyncio.Future[None] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._head_request = False

    def begin(self, *, head: bool) -> None:
        """Be ready for the answer to the next request. `head`: it has no body whatever its headers say."""
        if self._parser is None or self._head_request:
            self._parser = httptools.HttpResponseParser(self)
        self._head_request = head
        self.in_use = True
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.begun = self.complete = False
        self._framed = self._keep = False
        self.parts: list[bytes] = []
        self._size = 0

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the answer was read to its end, and both sides keep the connection."""
        return self.complete and self._keep and not self.lost

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are not instances of asyncio's classes

    def data_received(self, data: bytes) -> None:
        if not self.in_use or self.complete:
            self.abort()  # bytes that nobody asked for must not become the answer to the next request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()
            return
        if self._size > _READ_AHEAD_BYTES:
            self.transport.pause_reading()
        if self.begun:
            self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self.in_use and self.begun and not self._framed and error is None:
            self.complete = True  # a body without a length ends with its connection
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # Called by the parser

    def on_message_begin(self) -> None:
        if self.complete:
            self._keep = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            self.headers = []
            return
        self.status, self.begun = status, True
        self._keep = bool(self._parser.should_keep_alive())
        self._framed = any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers) or status in _BODYLESS
        if self._head_request:
            self._framed = self.complete = True

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.parts.append(body)
            self._size += len(body)

    def on_message_complete(self) -> None:
        self.complete = self.begun

    # Called by the client

    def write(self, data: bytes) -> None:
        """Send without waiting."""
        self.transport.write(data)

    async def drained(self) -> None:
        """Wait until the other side takes more. Raises `Broken` when it is gone."""
        if self._writable is not None:
            await asyncio.shield(self._writable)
        if self.lost:
            raise Broken("the connection ended while the request was sent")

    def change(self) -> asyncio.Future[None]:
        """Return what is done as soon as more of the answer is there, or the connection ended."""
        self._changed = self._loop.create_future()
        return self._changed

    def take(self) -> bytes:
        """Return the body that has arrived since the last time."""
        body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts = []
        if self._size > _READ_AHEAD_BYTES and not self.lost:
            self.transport.resume_reading()
        self._size = 0
        return body

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


class Answer:
    """An answer that has begun: `status`, `headers` (names in lower case), and its body by `read`. `close` it in the end."""

    def __init__(self, client: HttpClient, connection: _Connection, upload: asyncio.Task[None] | None, silence_s: float) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._client, self._connection, self._upload, self._silence_s = client, connection, upload, silence_s

    async def read(self) -> tuple[bytes, bool]:
        """Return the next piece of the body and whether more follows. Raises `Broken` when the answer stops in the middle."""
        connection = self._connection
        if not connection.complete:
            try:
                if not connection.parts and not connection.lost:
                    async with asyncio.timeout(self._silence_s):
                        await connection.change()
            except TimeoutError:
                raise Broken(f"the answer paused for more than {self._silence_s:.0f} s") from None
            if connection.lost and not connection.complete and not connection.parts:
                raise Broken("the connection ended in the middle of an answer")
        return connection.take(), not connection.complete

    async def read_all(self) -> bytes:
        """Return the whole body."""
        parts = []
        more = True
        while more:
            part, more = await self.read()
            parts.append(part)
        return b"".join(parts)

    async def close(self) -> None:
        """Give the connection back, or end it when the exchange is not over."""
        whole = True
        if self._upload is not None:
            whole = self._upload.done() and not self._upload.cancelled() and self._upload.exception() is None
            await _end(self._upload)
        self._client.give_back(self._connection, whole=whole)


async def _end(upload: asyncio.Task[None]) -> None:
    upload.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await upload


class HttpClient:
    """Connections to one address, at most `connections`, kept for `idle_s` after their last use."""

    def __init__(self, url: str, *, connections: int = 200, connect_s: float = 1.0, idle_s: float = 30.0, silence_s: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"the address of a service is http://host:port, not {url!r}")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = b" HTTP/1.1\r\nhost: %s\r\n" % parts.netloc.rpartition("@")[2].encode()
        self._connect_s, self._idle_s, self._silence_s = connect_s, idle_s, silence_s
        self._free = asyncio.Semaphore(connections)
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()

    async def send(
        self,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | AsyncIterable[bytes] | None = None,
    ) -> Answer:
        """Send a request and return its answer as soon as it begins. `target` is path and query.

        The caller sets the time limit (`asyncio.timeout`). Headers of the connection are added here: the body's framing follows from
        `body` unless `headers` have a content-length. Raises `NotConnected`, `AllBusy`, `Broken`, and whatever the body's iterator raises.
        """
        chunked = body is not None and not isinstance(body, bytes) and not any(name == b"content-length" for name, _ in headers)
        lines = [b"%s: %s\r\n" % header for header in headers]
        if chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif isinstance(body, bytes) and not any(name == b"content-length" for name, _ in headers):
            lines.append(b"content-length: %d\r\n" % len(body))
        head = b"%s %s%s" % (method.encode(), self._prefix + target, self._host_line) + b"".join(lines) + b"\r\n"
        if head.count(b"\n") != len(lines) + 3 or b" " in target:
            raise ValueError("a header or the target holds a line break")
        connection = await self._connection()
        upload: asyncio.Task[None] | None = None
        try:
            connection.begin(head=method == "HEAD")
            if isinstance(body, bytes):
                connection.write(head + body)
            else:
                connection.write(head)
                if body is not None:
                    upload = asyncio.create_task(_upload(connection, body, chunked=chunked), name="upload")
            await self._begun(connection, upload)
        except BaseException:
            if upload is not None:
                await _end(upload)
            self.give_back(connection, whole=False)
            raise
        return Answer(self, connection, upload, self._silence_s)

    async def _begun(self, connection: _Connection, upload: asyncio.Task[None] | None) -> None:
        while not connection.begun and not connection.lost:
            if upload is None:
                await connection.change()
                continue
            await asyncio.wait({connection.change(), upload}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done():
                # A service that answers early may close before it has read everything: its answer counts.
                if (error := upload.exception()) is not None and not isinstance(error, Broken):
                    raise error
                upload = None
        if not connection.begun:
            raise Broken("the connection ended before an answer")

    async def _connection(self) -> _Connection:
        try:
            if self._free.locked():
                async with asyncio.timeout(self._connect_s):
                    await self._free.acquire()
            else:
                await self._free.acquire()
        except TimeoutError:
            raise AllBusy("every connection to the service is in use") from None
        try:
            loop = asyncio.get_running_loop()
            while self._idle:
                connection = self._idle.pop()
                if not connection.lost and loop.time() - connection.idle_since < self._idle_s:
                    return connection
                self._close(connection)
            try:
                async with asyncio.timeout(self._connect_s):
                    _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
            except (OSError, TimeoutError) as error:
                raise NotConnected("no connection to the service") from error
            self._open.add(connection)
            return connection
        except BaseException:
            self._free.release()
            raise

    def give_back(self, connection: _Connection, *, whole: bool) -> None:
        """Keep the connection for the next request if its exchange is over (`whole`: the request was sent to its end), else end it."""
        self._free.release()
        connection.in_use = False
        if whole and connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            self._drop_stale(connection.idle_since)
        else:
            self._close(connection)

    def _drop_stale(self, now: float) -> None:
        while self._idle and (self._idle[0].lost or now - self._idle[0].idle_since >= self._idle_s):
            self._close(self._idle.popleft())

    def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if not connection.lost:
            connection.abort()

    async def close(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            self._close(connection)
        self._idle.clear()
        await asyncio.sleep(0)


async def _upload(connection: _Connection, body: AsyncIterable[bytes], *, chunked: bool) -> None:
    async for chunk in body:
        if chunk:
            connection.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk)
            await connection.drained()
    if chunked:
        connection.write(b"0\r\n\r\n")
