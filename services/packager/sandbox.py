"""Runs one-shot children (`child.py`) on behalf of the service: a folder each, limits, a deadline, and nothing left behind.

The service's side of the wall: it has credentials, so it parses no model. It copies nothing out of a child's folder but the answer
and named regular files, opened without following links and capped in size.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from services.packager.answer import MAX_ANSWER_BYTES
from services.packager.errors import ModelRejected, Reason

_ROOT = Path(__file__).resolve().parents[2]
# Isolated mode takes neither the folder nor PYTHONPATH, so the child is told where our code is.
_START = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from services.packager.child import main; main()"

_STEPS = frozenset({"reading", "checking", "loading", "running", "writing", "replaying"})
_MAX_CONSOLE_BYTES = 64 * 1024
_GRACE_S = 1.5
_WATCH_S = 0.25
_ABANDONED_S = 3600

#: Called with the name of each step a child enters.
OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use. `seconds` is wall-clock and CPU time; `disk_bytes` is everything below its folder that it wrote."""

    seconds: float = 120.0
    memory_bytes: int = 4 * 2**30
    disk_bytes: int = 512 * 2**20
    open_files: int = 256
    processes: int = 64

    def for_child(self) -> dict[str, int]:
        """Return the resource limits that the child puts on itself."""
        return {
            "memory_bytes": self.memory_bytes,
            "cpu_seconds": int(self.seconds) + 1,
            "file_bytes": self.disk_bytes,
            "open_files": self.open_files,
            "processes": self.processes,
        }


class Workspace:
    """The folder of one job: `in/` holds what children read, `out/` what they wrote. Gone when the job is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return a place in `in/` for an input file that the caller writes; `name` is the caller's, never a client's."""
        return self.folder / "in" / name

    def take(self, name: str, target: str, max_bytes: int) -> Path:
        """Move a file that a child wrote from `out/` to `in/`, where later children may read it, and return its path.

        Raises:
            ModelRejected: not there, not a regular file of its own, or larger than `max_bytes`.
        """
        source = self.folder / "out" / name
        try:
            handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ModelRejected(
                Reason.CHILD_ANSWER_INVALID, "The process that examined the model did not leave the golden files."
            ) from error
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(handle)
            raise ModelRejected(Reason.CHILD_ANSWER_INVALID, "A golden file is not a plain file.")
        with os.fdopen(handle, "rb") as file:
            if status.st_size > max_bytes:
                raise ModelRejected(
                    Reason.CHILD_OUTPUT_TOO_LARGE, f"A golden file has {status.st_size} bytes; at most {max_bytes} are kept."
                )
            place = self.path(target)
            with place.open("xb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
        return place


class Sandbox:
    """Starts children. Made by `open_sandbox`."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self.limits = limits

    @asynccontextmanager
    async def workspace(self) -> AsyncIterator[Workspace]:
        """Open a job's folder; it is removed at the end, whatever happened."""
        folder = self._folder / secrets.token_hex(8)
        for name in ("in", "out", "tmp"):
            (folder / name).mkdir(mode=0o700, parents=True)
        try:
            yield Workspace(folder)
        finally:
            await asyncio.to_thread(_remove, folder)

    async def run(self, workspace: Workspace, job: Mapping[str, Any], on_step: OnStep) -> bytes:
        """Run one child in the workspace and return its answer, which nobody has checked yet.

        Cancelling the call kills the child and everything it started.

        Raises:
            ModelRejected: it was killed, ran out of time, memory or disk, or answered too much.
        """
        shutil.rmtree(workspace.folder / "model", ignore_errors=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-B", "-X", "utf8", "-c", _START, str(os.getpid()), json.dumps(self.limits.for_child()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=workspace.folder, env={}, start_new_session=True,
        )  # fmt: skip
        task = asyncio.ensure_future(_talk(process, json.dumps(job).encode(), on_step))
        watch = asyncio.ensure_future(_watch(workspace.folder, _used(workspace.folder) + self.limits.disk_bytes))
        try:
            done, _ = await asyncio.wait({task, watch}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if watch in done:
                raise ModelRejected(Reason.CHILD_OUTPUT_TOO_LARGE, "Examining the model wrote more to disk than it may.")
            if task not in done:
                _timed_out(self.limits.seconds)
            answer, status, console = task.result()
        finally:
            # Shielded: a second cancellation must not leave the child alone.
            await asyncio.shield(asyncio.ensure_future(_end(process, task, watch)))
        if status != 0:
            _died(status, self.limits.seconds, console)
        return answer


@asynccontextmanager
async def open_sandbox(scratch: Path, limits: Limits) -> AsyncIterator[Sandbox]:
    """Open a sandbox below `scratch`. Folders that a killed process left there are removed, those of living ones are not touched."""
    await asyncio.to_thread(_clean_up, scratch)
    folder = scratch / f"{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700, parents=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Sandbox(folder, limits)
    finally:
        await asyncio.to_thread(_remove, folder)
        os.close(lock)


async def _talk(process: asyncio.subprocess.Process, job: bytes, on_step: OnStep) -> tuple[bytes, int, str]:
    """Hand the job over and read until the child has ended. Returns (answer, exit status, the start of what it printed)."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(job)
        await process.stdin.drain()
    process.stdin.close()
    answer, console = await asyncio.gather(_read_answer(process.stdout), _read_console(process.stderr, on_step))
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


async def _read_console(stream: asyncio.StreamReader, on_step: OnStep) -> str:
    """Read what the child prints: known steps are passed on, the rest is kept up to a cap and otherwise dropped."""
    kept = bytearray()
    seen = 0
    while chunk := await stream.read(16_384):
        kept += chunk[: _MAX_CONSOLE_BYTES - len(kept)]
        while (end := kept.find(b"\n", seen)) >= 0:
            line = bytes(kept[seen:end])
            seen = end + 1
            if line[:1] == b"@" and (name := line[1:20].decode("ascii", "replace")) in _STEPS:
                on_step(name)
    return kept.decode("utf-8", "replace")


async def _watch(folder: Path, most: int) -> None:
    """Return when the folder holds more than it may."""
    while await asyncio.to_thread(_used, folder) <= most:  # noqa: ASYNC110 - a folder sends no events
        await asyncio.sleep(_WATCH_S)


def _used(folder: Path) -> int:
    """Add up the disk blocks below a folder. Nesting deeper than any path can be counts as endless."""
    total = 0
    rest = [str(folder)]
    while rest:
        total += 4096
        try:
            with os.scandir(rest.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        rest.append(entry.path)
                    else:
                        total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return sys.maxsize
    return total


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


def _remove(folder: Path) -> None:
    """Remove a folder whatever its permissions, however deep: inner folders are moved up first, so no path grows beyond the limit."""
    moved = 0
    while entries := _entries(folder):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)
                continue
            Path(entry.path).chmod(0o700)
            for inner in _entries(Path(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    moved += 1
                    Path(inner.path).rename(folder / f"{secrets.token_hex(8)}-{moved}")
                else:
                    Path(inner.path).unlink(missing_ok=True)
            Path(entry.path).rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _clean_up(scratch: Path) -> None:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in scratch.iterdir():
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # Another process is just making it, or just removing it; or one died in the middle of that, long ago.
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < time.time() - _ABANDONED_S:
                    _remove(folder)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
