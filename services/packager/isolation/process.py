"""One child, seen from the service: hand it the job, read what it says, end it and all that it started.

It takes nothing that a child says for true: the answer is bytes with a cap, steps are from a list, the rest of what it prints is only
looked at to tell why it died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from services.packager.answer import MAX_ANSWER_BYTES
from services.packager.errors import ModelRejected, Reason
from services.packager.isolation.folders import used

#: Called with the name of each step a child enters.
OnStep = Callable[[str], None]

_ROOT = Path(__file__).resolve().parents[3]
# Isolated mode takes neither the folder nor PYTHONPATH, so the guard is told where our code is.
_GUARD = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from services.packager.isolation.guard import main; main()"

_MAX_CONSOLE_BYTES = 64 * 1024
#: How long a guard may take to clean up before it is killed itself.
GRACE_S = 1.5
_WATCH_S = 0.25


class Child(Protocol):
    """One child that was started and waits for its job."""

    #: What it writes: its answer, and what it prints.
    answer: asyncio.StreamReader
    console: asyncio.StreamReader

    async def begin(self, job: bytes) -> None:
        """Hand the job over. A child that is gone already is not told; it shows in `wait`."""
        ...

    async def wait(self) -> int:
        """Wait for the end of the child and return its exit status; 128 + signal when it was killed."""
        ...

    async def end(self) -> None:
        """Make sure that the child and all it started are gone."""
        ...


async def talk(
    child: Child, folder: Path, job: Mapping[str, Any], *, seconds: float, disk_bytes: int, steps: Collection[str], on_step: OnStep
) -> bytes:
    """Give a child its job and return its answer, which nobody has checked yet. The child is gone when this returns or raises.

    Args:
        child: just started.
        folder: its folder, watched for what it writes.
        job: anything that JSON can say.
        seconds: wall-clock time that it may take.
        disk_bytes: what it may write below `folder`.
        steps: names that are passed on to `on_step` when the child says them.
        on_step: called with each of them.

    Raises:
        ModelRejected: it was killed, ran out of time, memory or disk, or answered too much.
    """
    task = asyncio.ensure_future(_talk(child, json.dumps(job).encode(), steps, on_step))
    watch = asyncio.ensure_future(_watch(folder, used(folder) + disk_bytes))
    try:
        done, _ = await asyncio.wait({task, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if watch in done:
            raise ModelRejected(Reason.CHILD_OUTPUT_TOO_LARGE, "Examining the model wrote more to disk than it may.")
        if task not in done:
            _timed_out(seconds)
        answer, status, console = task.result()
    finally:
        # Shielded: a second cancellation must not leave the child alone.
        await asyncio.shield(asyncio.ensure_future(_end(child, task, watch)))
    if status != 0:
        _died(status, seconds, console)
    return answer


class OneShot:
    """A process of its own, started for one job, below a guard. Made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self.answer, self.console = process.stdout, process.stderr

    async def begin(self, job: bytes) -> None:
        """Hand the job over."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(job)
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def wait(self) -> int:
        """Wait for the end."""
        return await self._process.wait()

    async def end(self) -> None:
        """Ask the guard, then kill what is left of the session."""
        await end_guarded(self._process)


async def start(command: Sequence[str], folder: Path, processes: int, handover: socket.socket | None = None) -> OneShot:
    """Start a one-shot child below a guard, in `folder`, with an empty environment.

    Args:
        command: reads its job from stdin.
        folder: its current folder.
        processes: how many processes and threads it may have.
        handover: a socket that the child inherits under the same number.
    """
    return OneShot(await start_guarded(command, folder, processes, handover, asyncio.subprocess.PIPE))


async def start_guarded(
    command: Sequence[str], folder: Path, processes: int, handover: socket.socket | None, streams: int
) -> asyncio.subprocess.Process:
    """Start a command below a guard (`guard.py`). Arguments as of `start`; `streams`: what stdin, stdout and stderr become."""
    given = None if handover is None else handover.fileno()
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-B", "-c", _GUARD, str(os.getpid()), json.dumps([list(command), processes, given]),
        stdin=streams, stdout=streams, stderr=streams, cwd=folder, env={}, start_new_session=True,
        pass_fds=[] if given is None else [given],
    )  # fmt: skip


async def end_guarded(process: asyncio.subprocess.Process) -> None:
    """Make sure that a guard and everything below it is gone."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_S)
    if process.returncode is None or process.returncode < 0:
        # The guard did not end by itself, so it has cleaned up nothing.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _talk(child: Child, job: bytes, steps: Collection[str], on_step: OnStep) -> tuple[bytes, int, str]:
    """Hand the job over and read until the child has ended. Returns (answer, exit status, the start of what it printed)."""
    await child.begin(job)
    console = asyncio.ensure_future(_read_console(child.console, steps, on_step))
    try:
        answer = await _read_answer(child.answer)
        return answer, await child.wait(), await console
    finally:
        console.cancel()
        await asyncio.gather(console, return_exceptions=True)


async def _read_answer(stream: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := await stream.read(65_536):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise ModelRejected(Reason.CHILD_ANSWER_INVALID, "The process that examined the model answered far too much.")
        parts.append(chunk)
    return b"".join(parts)


async def _read_console(stream: asyncio.StreamReader, steps: Collection[str], on_step: OnStep) -> str:
    """Read what the child prints: known steps are passed on, the rest is kept up to a cap and otherwise dropped."""
    kept = bytearray()
    seen = 0
    while chunk := await stream.read(16_384):
        kept += chunk[: _MAX_CONSOLE_BYTES - len(kept)]
        while (end := kept.find(b"\n", seen)) >= 0:
            line = bytes(kept[seen:end])
            seen = end + 1
            if line[:1] == b"@" and (name := line[1:40].decode("ascii", "replace")) in steps:
                on_step(name)
    return kept.decode("utf-8", "replace")


async def _watch(folder: Path, most: int) -> None:
    """Return when the folder holds more than it may."""
    while await asyncio.to_thread(used, folder) <= most:  # noqa: ASYNC110 - a folder sends no events
        await asyncio.sleep(_WATCH_S)


async def _end(child: Child, *tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await child.end()
    # The pipes close when they are read to their end.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            for stream in (child.answer, child.console):
                while await stream.read(65_536):
                    pass


def _timed_out(seconds: float) -> NoReturn:
    raise ModelRejected(
        Reason.CHILD_TIMEOUT,
        f"Examining the model took longer than {seconds:g} s and was stopped. "
        "Declare the input shapes that the app uses, or make the model smaller.",
    )


def _died(status: int, seconds: float, console: str) -> NoReturn:
    number = status - 128 if status > 128 else -status
    if number == signal.SIGXCPU:
        _timed_out(seconds)
    if "MemoryError" in console or "bad_alloc" in console:
        raise ModelRejected(Reason.CHILD_OUT_OF_MEMORY, "The model needs more memory than packaging may use.")
    how = f"by signal {signal.Signals(number).name}" if number in set(signal.Signals) else f"with status {status}"
    raise ModelRejected(
        Reason.CHILD_KILLED,
        f"The process that examined the model ended {how}. The runtime cannot load or run this file; "
        "check it with the same runtime on your machine and export it again.",
    )
