"""Warm parents, seen from the service: started at first need, asked for children, ended when they were idle for a while.

A parent that dies takes the children of the moment with it: `ParentLost` says so, and the caller does those jobs in one-shot children. What
a job may do does not depend on who started its child. `warm.py` is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from structlog import get_logger

from services.packager.isolation import cage
from services.packager.isolation.cage import Level, Runtime
from services.packager.isolation.folders import remove
from services.packager.isolation.process import GRACE_S, end_guarded, start_guarded

#: TensorFlow takes seconds, on a busy machine many.
_START_S = 120.0
#: Everything below a parent; each job has a limit of its own.
_MOST_THREADS = 50_000
_MAX_WORDS = 64 * 1024
#: After one could not be started, so long none is tried.
_UNFIT_S = 60.0

log = get_logger(__name__)


class ParentLost(Exception):
    """The parent died, or could not fork: the job has not ended, and may be done by another child."""


class Parent:
    """One warm parent. Made by `Parents`."""

    def __init__(self, level: Level, process: asyncio.subprocess.Process, channel: socket.socket, folder: Path) -> None:
        self._level, self._process, self._channel, self._folder = level, process, channel, folder
        self.users = 0
        self.idle: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether it can be asked for children, as far as is known."""
        return not self._closed and self._process.returncode is None

    async def ready(self) -> str | None:
        """Wait until it has imported its libraries. Return why it cannot be used."""
        try:
            async with asyncio.timeout(_START_S):
                await _readable(self._channel)
            fault = json.loads(self._channel.recv(_MAX_WORDS) or b'{"fault": "it ended"}')["fault"]
        except (TimeoutError, OSError) as error:
            fault = repr(error)
        return None if fault is None else str(fault)

    @asynccontextmanager
    async def child(self, folder: Path, limits: Mapping[str, int], *, probe: bool = False) -> AsyncIterator[Forked]:
        """Give a child for the job in `folder`; it is forked when the job is handed over. `limits`: as `limits.limit_self` takes them."""
        place = folder.name if self._level is Level.STRONG else str(folder)
        request = {"folder": place, "limits": dict(limits), "processes": limits["processes"], "probe": probe}
        child = Forked(self, json.dumps(request).encode())
        try:
            await child.open()
            yield child
        finally:
            child.close()

    def ask(self, request: bytes, given: Sequence[int]) -> None:
        """Have it fork. Raises `ParentLost`."""
        try:
            socket.send_fds(self._channel, [request], given)
        except OSError as error:
            self._closed = True
            raise ParentLost from error

    async def close(self) -> None:
        """End it and all of its children."""
        self._closed = True
        if self.idle is not None:
            self.idle.cancel()
        self._channel.close()
        await end_guarded(self._process)
        await asyncio.to_thread(remove, self._folder)


class Forked:
    """One child of a parent. `out`: a handle to the folder that it wrote into, at the level `strong`; -1 before, and elsewhere."""

    answer: asyncio.StreamReader
    console: asyncio.StreamReader

    def __init__(self, parent: Parent, request: bytes) -> None:
        self._parent, self._request = parent, request
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        #: The child's ends, until they are its own.
        self._given = [theirs.detach()]
        self._pipes: list[asyncio.BaseTransport] = []
        self._status: int | None = None
        self.out = -1

    async def open(self) -> None:
        """Make the pipes that the child will write to."""
        self.answer, self.console = await self._pipe(), await self._pipe()

    async def begin(self, job: bytes) -> None:
        """Hand the job over, in a file in memory that the child may only read. Raises `ParentLost`."""
        written = os.memfd_create("job", os.MFD_CLOEXEC)
        with os.fdopen(written, "wb") as file:
            file.write(job)
            file.flush()
            self._given.append(os.open(f"/proc/self/fd/{written}", os.O_RDONLY | os.O_CLOEXEC))
        line, answer, console, handle = self._given
        try:
            self._parent.ask(self._request, [handle, answer, console, line])
        finally:
            self._let_go()

    async def wait(self) -> int:
        """Wait for the end. Raises `ParentLost`."""
        while self._status is None:
            await _readable(self._line)
            try:
                words, handles, _, _ = socket.recv_fds(self._line, _MAX_WORDS, 1)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ParentLost from error
            if handles:
                self.out = handles[0]
            elif words:
                self._status = int(words)
            else:
                raise ParentLost
        return self._status

    async def end(self) -> None:
        """Hang up, so that the guard kills the child, and wait until it has; with a guard that does not, the parent is ended."""
        self._let_go()
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(GRACE_S):
                await self.wait()
        except ParentLost:
            pass
        except TimeoutError:
            log.error("a child does not end; its warm parent is ended")
            await self._parent.close()

    def close(self) -> None:
        """Close everything but `out`, which belongs to the caller."""
        self._let_go()
        self._line.close()
        for pipe in self._pipes:
            pipe.close()

    async def _pipe(self) -> asyncio.StreamReader:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._given.append(writing)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
        )
        self._pipes.append(transport)
        return reader

    def _let_go(self) -> None:
        while self._given:
            os.close(self._given.pop())


class Parents:
    """The warm parents of one sandbox, one per runtime.

    Args:
        jobs: the sandbox's folder, which holds those of all jobs.
        level: one of the safe levels.
        idle_s: how long one stays without work, in seconds.
        examine: tries the walls of a new parent's children.
    """

    def __init__(self, jobs: Path, level: Level, idle_s: float, examine: Callable[[Parent], Awaitable[str | None]]) -> None:
        self._jobs, self._level, self._idle_s, self._examine = jobs, level, idle_s, examine
        self._parents: dict[Runtime, Parent] = {}
        self._turns: defaultdict[Runtime, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._unfit_until: dict[Runtime, float] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(parent.alive for parent in self._parents.values())

    @asynccontextmanager
    async def lend(self, runtime: Runtime) -> AsyncIterator[Parent | None]:
        """Give the parent of a runtime, which is started when there is none; None where none can be had."""
        parent = await self._find(runtime)
        if parent is None:
            yield None
            return
        try:
            yield parent
        finally:
            parent.users -= 1
            if parent.users == 0:
                parent.idle = asyncio.get_running_loop().call_later(self._idle_s, self._rest, runtime, parent)

    async def close(self) -> None:
        """End all."""
        parents, self._parents = list(self._parents.values()), {}
        await asyncio.gather(*(parent.close() for parent in parents), *self._ending)

    async def _find(self, runtime: Runtime) -> Parent | None:
        async with self._turns[runtime]:
            parent = self._parents.get(runtime)
            if parent is not None and not parent.alive:
                del self._parents[runtime]
                await parent.close()
                parent = None
            now = asyncio.get_running_loop().time()
            if parent is None and self._unfit_until.get(runtime, now) <= now:
                parent = await self._start(runtime)
            if parent is not None:
                parent.users += 1
                if parent.idle is not None:
                    parent.idle.cancel()
            return parent

    async def _start(self, runtime: Runtime) -> Parent | None:
        """Start one and try its walls. None, for a while, when it is not fit."""
        folder = self._jobs / f"warm-{secrets.token_hex(8)}"
        for name in ("in", "out", "tmp"):
            (folder / name).mkdir(mode=0o700, parents=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            command = cage.parent_command(self._level, runtime, folder, self._jobs, theirs.fileno())
            process = await start_guarded(command, folder, _MOST_THREADS, theirs, asyncio.subprocess.DEVNULL)
        parent = Parent(self._level, process, ours, folder)
        try:
            fault = await parent.ready() or await self._examine(parent)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(parent.close()))
            raise
        if fault is not None:
            log.warning("no warm parent is to be had; each child is started on its own", level=self._level, reason=fault)
            self._unfit_until[runtime] = asyncio.get_running_loop().time() + _UNFIT_S
            await parent.close()
            return None
        self._parents[runtime] = parent
        return parent

    def _rest(self, runtime: Runtime, parent: Parent) -> None:
        """End a parent that nobody uses."""
        if parent.users == 0 and self._parents.get(runtime) is parent:
            del self._parents[runtime]
            task = asyncio.ensure_future(parent.close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


async def _readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(channel.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(channel.fileno())
