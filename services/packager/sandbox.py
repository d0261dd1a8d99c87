"""Runs one-shot children on behalf of the service: a folder each, limits, a deadline, and nothing left behind.

The service's side of the wall: it has credentials, so it parses no model. It copies nothing out of a child's folder but the answer
and named regular files, opened without following links and capped in size. What a child can reach is decided in `isolation`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from structlog import get_logger

from services.packager.answer import parse_answer
from services.packager.converters import CONVERTERS, STEPS
from services.packager.environments import EnvironmentFailed, Environments
from services.packager.errors import ModelRejected, Reason
from services.packager.isolation import cage
from services.packager.isolation.folders import clean_up, remove
from services.packager.isolation.process import OnStep, talk

_STEPS = frozenset({"reading", "checking", "loading", "running", "writing", "replaying"})

#: Called with a line for people while a converter environment is made.
Tell = Callable[[str], None]

log = get_logger(__name__)


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
                Reason.CHILD_ANSWER_INVALID, f"The process that examined the model did not leave its result ({name[:80]})."
            ) from error
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(handle)
            raise ModelRejected(Reason.CHILD_ANSWER_INVALID, f"A result of examining the model is not a plain file ({name[:80]}).")
        with os.fdopen(handle, "rb") as file:
            if status.st_size > max_bytes:
                raise ModelRejected(
                    Reason.CHILD_OUTPUT_TOO_LARGE, f"The result {name[:80]} has {status.st_size} bytes; at most {max_bytes} are kept."
                )
            place = self.path(target)
            with place.open("xb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
        return place


class Sandbox:
    """Starts children. Made by `open_sandbox`."""

    def __init__(self, folder: Path, limits: Limits, environments: Environments) -> None:
        self._folder = folder
        self._environments = environments
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
            await asyncio.to_thread(remove, folder)

    async def run(self, workspace: Workspace, job: Mapping[str, Any], on_step: OnStep) -> bytes:
        """Examine a model in one child and return its answer, which nobody has checked yet; `child.py` says what a job holds.

        Cancelling the call kills the child and everything it started.

        Raises:
            ModelRejected: it was killed, ran out of time, memory or disk, or answered too much.
        """
        if "graph" in job:
            await asyncio.to_thread(_lay_out, workspace, job["graph"], job["data"])
        return await self._run(workspace, cage.engine(), job, _STEPS, on_step)

    async def convert(
        self, workspace: Workspace, function: str, job: Mapping[str, Any], on_step: OnStep, tell: Tell, *, seconds: float | None = None
    ) -> dict[str, Any]:
        """Run one conversion in a child of its environment, which is made first when the machine does not have it.

        Args:
            workspace: `in/` holds what the converter reads; it leaves files in `out/` for `Workspace.take`.
            function: a row of `converters.CONVERTERS`.
            job: what the converter is told; anything that JSON can say.
            on_step: called with each step it enters, a key of `converters.STEPS`.
            tell: called with lines for people while the environment is made; that time does not count.
            seconds: its deadline when it is not the sandbox's.

        Returns:
            What the converter returned. Nobody has checked it yet.

        Raises:
            ModelRejected: the converter's own refusal, or as `run`; CONVERTER_UNAVAILABLE when there is no environment.
        """
        row = CONVERTERS[function]
        try:
            environment = await self._environments.ready(row.environment, tell)
        except EnvironmentFailed as error:
            log.error("a converter environment cannot be made", environment=row.environment, error=str(error))
            raise ModelRejected(
                Reason.CONVERTER_UNAVAILABLE,
                f"The server could not make its converter environment {row.environment}; its log says why. "
                f"Its operator tries `latebindd prefetch {row.environment}`; then commit again.",
            ) from error
        runtime = cage.converter(environment.python, environment.folder)
        raw = await self._run(workspace, runtime, {"function": function, "job": dict(job)}, STEPS, on_step, seconds=seconds)
        result = parse_answer(raw).get("result")
        if not isinstance(result, dict):
            raise ModelRejected(Reason.CHILD_ANSWER_INVALID, "The converter gave an answer that cannot be used.")
        return result

    async def _run(
        self,
        workspace: Workspace,
        runtime: cage.Runtime,
        job: Mapping[str, Any],
        steps: Collection[str],
        on_step: OnStep,
        *,
        seconds: float | None = None,
    ) -> bytes:
        limits = self.limits if seconds is None else replace(self.limits, seconds=seconds)
        return await talk(
            cage.command(runtime, limits.for_child()),
            workspace.folder,
            job,
            seconds=limits.seconds,
            disk_bytes=limits.disk_bytes,
            steps=steps,
            on_step=on_step,
        )


@asynccontextmanager
async def open_sandbox(scratch: Path, limits: Limits, environments: Environments) -> AsyncIterator[Sandbox]:
    """Open a sandbox below `scratch`. Folders that a killed process left there are removed, those of living ones are not touched."""
    await asyncio.to_thread(clean_up, scratch)
    folder = scratch / f"{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700, parents=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Sandbox(folder, limits, environments)
    finally:
        await asyncio.to_thread(remove, folder)
        os.close(lock)


def _lay_out(workspace: Workspace, graph: str, data: Mapping[str, str]) -> None:
    """Put the model and its data files side by side under the names that the model knows them by, as further names of the inputs."""
    folder = workspace.path("model")
    with contextlib.suppress(FileNotFoundError):
        remove(folder)
    folder.mkdir()
    for name, place in {".model": graph, **data}.items():
        (folder / name).hardlink_to(workspace.folder / place)
