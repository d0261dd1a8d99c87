"""A TCP proxy in front of any server that can be made to fail at run time, and to work again.

It runs on a thread and a loop of its own, so that a caller that blocks does not stop it. `set()` may be called from anywhere and
returns when the fault is in force. A fault concerns connections that are open as well as new ones, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeVar

_CHUNK = 64 << 10
_HOST = "127.0.0.1"
T = TypeVar("T")


class Fault(StrEnum):
    """What is wrong between the two sides."""

    NONE = "none"
    #: Nobody listens; what was open is closed.
    DOWN = "down"
    #: Every piece of data arrives `slow_s` late, in both directions.
    SLOW = "slow"
    #: Every connection is reset, new ones at once.
    RESET = "reset"
    #: Connections are taken and nothing passes; when it ends, what waited goes on, as after a network partition.
    BLACKHOLE = "blackhole"
    #: The other side of what is open is gone for good and nobody says so; new connections work.
    HALF_OPEN = "half-open"
    #: What the server says arrives as random bytes.
    GARBAGE = "garbage"


@dataclass(eq=False, slots=True)
class _Link:
    """One connection: the client's side, and the server's once there is one."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    dead: bool = False


class FaultProxy:
    """Forwards `127.0.0.1:port` to a port of this machine. `with FaultProxy(lambda: 5432) as proxy: proxy.set(Fault.DOWN)`.

    `target` is asked for each connection, so that the server may start after the proxy: a broker has to be told the proxy's port.
    """

    def __init__(self, target: Callable[[], int], *, slow_s: float = 10.0) -> None:
        self.fault = Fault.NONE
        self.slow_s = slow_s
        self._target = target
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        # Bound but never listening: keeps the port while the proxy plays dead, and refuses connections.
        self._reservation = _bound(0)
        self.port: int = self._reservation.getsockname()[1]

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._links)

    def set(self, fault: Fault) -> None:
        """Put a fault in force (`Fault.NONE`: heal)."""
        self._call(self._set(fault))

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_error: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reservation.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, sock=_bound(self.port), backlog=1024)

    async def _set(self, fault: Fault) -> None:
        self.fault = fault
        if fault is Fault.DOWN:
            self._stop_listening()
        else:
            await self._listen()
        for link in list(self._links):
            if fault in {Fault.DOWN, Fault.RESET}:
                _reset(link.client)
            if fault in {Fault.DOWN, Fault.RESET, Fault.HALF_OPEN} and link.server is not None:
                link.dead = True
                _reset(link.server)
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _close(self) -> None:
        self._stop_listening()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = _Link(writer)
        self._links.add(link)
        try:
            await self._serve(link, reader)
        except (OSError, asyncio.CancelledError):
            pass  # either side is gone, or the proxy ends
        finally:
            self._links.discard(link)
            self._tasks.discard(task)
            for side in (link.client, link.server):
                if side is not None:
                    _reset(side) if self.fault in {Fault.DOWN, Fault.RESET} else side.close()

    async def _serve(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while self.fault is Fault.BLACKHOLE:
            await self._changed.wait()
        if self.fault in {Fault.DOWN, Fault.RESET}:
            return
        answers, link.server = await asyncio.open_connection(_HOST, self._target())
        ways = [
            asyncio.create_task(self._pump(link, reader, link.server, from_server=False)),
            asyncio.create_task(self._pump(link, answers, link.client, from_server=True)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool) -> None:
        """Carry one direction until its end. While a piece is held nothing more is read: the sender feels it."""
        while True:
            try:
                chunk = await reader.read(_CHUNK)
            except OSError:
                if not link.dead:
                    raise
                chunk = b""
            await self._hold(link)
            if not chunk:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(os.urandom(len(chunk)) if from_server and self.fault is Fault.GARBAGE else chunk)
            await writer.drain()

    async def _hold(self, link: _Link) -> None:
        """Return when the piece in hand may go on; never on a connection whose other side is gone."""
        while True:
            if self.fault in {Fault.DOWN, Fault.RESET}:
                raise ConnectionResetError
            if link.dead:
                await asyncio.Event().wait()
            if self.fault not in {Fault.BLACKHOLE, Fault.SLOW}:
                return
            late = self.slow_s if self.fault is Fault.SLOW else None
            try:
                async with asyncio.timeout(late):
                    await self._changed.wait()
            except TimeoutError:
                return


def _bound(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind((_HOST, port))
    return one


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
