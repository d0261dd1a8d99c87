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
from typing import Any, NoReturn

from services.packager.answer import MAX_ANSWER_BYTES
from services.packager.errors import ModelRejected, Reason
from services.packager.isolation.folders import used

#: Called with the name of each step a child enters.
OnStep = Callable[[str], None]

_ROOT = Path(__file__).resolve().parents[3]
# Isolated mode takes neither the folder nor PYTHONPATH, so the guard is told where our code is.
_GUARD = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from services.packager.guard import main; main()"

_MAX_CONSOLE_BYTES = 64 * 1024
_GRACE_S = 1.5
_WATCH_S = 0.25


async def talk(
    command: Sequence[str],
    folder: Path,
    job: Mapping[str, Any],
    *,
    seconds: float,
    disk_bytes: int,
    processes: int,
    steps: Collection[str],
    on_step: OnStep,
    handover: socket.socket | None = None,
) -> bytes:
    """Run `command` below a guard, in `folder`, and return its answer, which nobody has checked yet.

    Args:
        command: the child, started with an empty environment; the job arrives at its stdin.
        folder: its current folder, watched for what it writes.
        job: anything that JSON can say.
        seconds: wall-clock time that it may take.
        disk_bytes: what it may write below `folder`.
        processes: how many processes and threads it may have.
        steps: names that are passed on to `on_step` when the child says them.
        on_step: called with each of them.
        handover: a socket that the child inherits under the same number.

    Raises:
        ModelRejected: it was killed, ran out of time, memory or disk, or answered too much.
    """
    given = None if handover is None else handover.fileno()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-B", "-c", _GUARD, str(os.getpid()), json.dumps([list(command), processes, given]),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=folder, env={}, start_new_session=True, pass_fds=[] if given is None else [given],
    )  # fmt: skip
    task = asyncio.ensure_future(_talk(process, json.dumps(job).encode(), steps, on_step))
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
        await asyncio.shield(asyncio.ensure_future(_end(process, task, watch)))
    if status != 0:
        _died(status, seconds, console)
    return answer


async def _talk(process: asyncio.subprocess.Process, job: bytes, steps: Collection[str], on_step: OnStep) -> tuple[bytes, int, str]:
    """Hand the job over and read until the child has ended. Returns (answer, exit status, the start of what it printed)."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(job)
        await process.stdin.drain()
    process.stdin.close()
    answer, console = await asyncio.gather(_read_answer(process.stdout), _read_console(process.stderr, steps, on_step))
    return answer, await process.wait(), console


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


async def _end(process: asyncio.subprocess.Process, *tasks: asyncio.Future[Any]) -> None:
    """Make sure that the child and all it started are gone: ask the guard, then kill what is left of the session."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_S)
    if process.returncode is None or process.returncode < 0:
        # The guard did not end by itself, so it has cleaned up nothing.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    # The pipes close when they are read to their end.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(65_536):
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
