"""Runs children on behalf of the service, one per job: a folder each, limits, a deadline, and nothing left behind.

The service's side of the wall: it has credentials, so it parses no model. It copies nothing out of a child's folder but the answer
and named regular files, opened without following links and capped in size. What a child can reach is decided in `isolation`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from structlog import get_logger

from kit.workers import CannotStart
from services.packager.answer import parse_answer
from services.packager.converters import CONVERTERS, STEPS, WARM
from services.packager.environments import EnvironmentFailed, Environments
from services.packager.errors import ModelRejected, Reason
from services.packager.isolation import cage, landlock
from services.packager.isolation.cage import Level
from services.packager.isolation.folders import clean_up, remove
from services.packager.isolation.namespaces import JOBS
from services.packager.isolation.parents import Parent, ParentLost, Parents
from services.packager.isolation.process import Child, OnStep, start, talk
from services.packager.progress import EXAMINING

#: The levels that are taken without being told to.
SAFE = (Level.STRONG, Level.FALLBACK)
_PROBE_S = 30.0
#: How long a warm parent stays without work unless told otherwise.
WARM_S = 60.0

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


class NoSandbox(CannotStart):
    """This machine gives no sandbox that the settings accept."""

    def __init__(self, faults: Mapping[Level, str | None]) -> None:
        reasons = "; ".join(f"{level}: {fault}" for level, fault in faults.items())
        super().__init__(
            f"models cannot be examined safely on this machine ({reasons}). Install bubblewrap, or use Linux 6.2 or newer. "
            "Only where every model is your own: set LATEBIND_PACKAGER_UNSAFE_WITHOUT_SANDBOX=true"
        )


class Workspace:
    """The folder of one job: `in/` holds what children read, `out/` what they wrote. Gone when the job is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: A handle to the folder that the last child wrote into; -1 before the first.
        self.out = -1

    def path(self, name: str) -> Path:
        """Return a place in `in/` for an input file that the caller writes; `name` is the caller's, never a client's."""
        return self.folder / "in" / name

    def take(self, name: str, target: str, max_bytes: int) -> Path:
        """Move a file that the last child wrote from `out/` to `in/`, where later children may read it, and return its path.

        Raises:
            ModelRejected: not there, not a regular file of its own, or larger than `max_bytes`.
        """
        shown = name[:80]
        try:
            # A name without folders, opened below a folder that is held: no link on the way can lead elsewhere.
            handle = os.open(Path(name).name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.out)
        except OSError as error:
            raise ModelRejected(
                Reason.CHILD_ANSWER_INVALID, f"The process that examined the model did not leave its result ({shown})."
            ) from error
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(handle)
            raise ModelRejected(Reason.CHILD_ANSWER_INVALID, f"A result of examining the model is not a plain file ({shown}).")
        with os.fdopen(handle, "rb") as file:
            if status.st_size > max_bytes:
                raise ModelRejected(
                    Reason.CHILD_OUTPUT_TOO_LARGE, f"The result {shown} has {status.st_size} bytes; at most {max_bytes} are kept."
                )
            place = self.path(target)
            with place.open("xb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
        return place

    def hold(self, out: int) -> None:
        """Take over a handle to the folder that `take` looks into, and close the one before."""
        self.close()
        self.out = out

    def clear(self) -> None:
        """Make `out` and `tmp` empty, for a second try."""
        for name in ("out", "tmp"):
            remove(self.folder / name)
            (self.folder / name).mkdir(mode=0o700)

    def close(self) -> None:
        """Let go of the folder that the last child wrote into. Where it lay in memory only, it is gone then."""
        if self.out >= 0:
            os.close(self.out)
        self.out = -1


@dataclass(frozen=True, slots=True)
class _Task:
    """What one child is to do."""

    job: Mapping[str, Any]
    limits: Limits
    steps: Collection[str] = ()
    on_step: OnStep = lambda _step: None


class Sandbox:
    """Starts children: of warm parents where they can be had, otherwise each on its own. Made by `open_sandbox`."""

    def __init__(self, folder: Path, limits: Limits, environments: Environments, level: Level, warm_s: float) -> None:
        self._folder = folder
        self.level = level
        self._environments = environments
        self.limits = limits
        self._parents = Parents(folder, level, warm_s, self._fault_of_parent) if warm_s and level is not Level.UNSAFE else None

    @property
    def warm_parents(self) -> int:
        """How many warm parents there are now."""
        return 0 if self._parents is None else self._parents.count

    async def close(self) -> None:
        """End the warm parents."""
        if self._parents is not None:
            await self._parents.close()

    @asynccontextmanager
    async def workspace(self) -> AsyncIterator[Workspace]:
        """Open a job's folder; it is removed at the end, whatever happened."""
        folder = self._folder / secrets.token_hex(8)
        for name in ("in", "out", "tmp"):
            (folder / name).mkdir(mode=0o700, parents=True)
        workspace = Workspace(folder)
        try:
            yield workspace
        finally:
            workspace.close()
            await asyncio.to_thread(remove, folder)

    async def run(self, workspace: Workspace, job: Mapping[str, Any], on_step: OnStep) -> bytes:
        """Examine a model in one child and return its answer, which nobody has checked yet; `child.py` says what a job holds.

        Cancelling the call kills the child and everything it started.

        Raises:
            ModelRejected: it was killed, ran out of time, memory or disk, or answered too much.
        """
        if "graph" not in job:
            return await self._run(workspace, cage.engine(), job, EXAMINING, on_step)
        await asyncio.to_thread(_lay_out, workspace, job["graph"], job["data"])
        try:
            return await self._run(workspace, cage.engine(), job, EXAMINING, on_step)
        finally:
            # onnx, in later children, takes no external data that has a second name.
            await asyncio.to_thread(remove, workspace.path("model"))

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
        runtime = cage.converter(environment.python, environment.folder, WARM[row.environment])
        raw = await self._run(workspace, runtime, {"function": function, "job": dict(job)}, STEPS, on_step, seconds=seconds)
        result = parse_answer(raw).get("result")
        if not isinstance(result, dict):
            raise ModelRejected(Reason.CHILD_ANSWER_INVALID, "The converter gave an answer that cannot be used.")
        return result

    async def fault(self) -> str | None:
        """Say why this machine does not give the sandbox's level; None: a child that tried to get out could not."""
        if self.level is Level.UNSAFE:
            return None
        if self.level is Level.STRONG and cage.bubblewrap() is None:
            return "bubblewrap (bwrap) is not installed"
        if self.level is Level.FALLBACK and (abi := landlock.abi()) < landlock.LEAST_ABI:
            return f"the kernel has Landlock {abi}; needed is {landlock.LEAST_ABI} (Linux 6.2)"
        try:
            async with self.workspace() as workspace:
                return await _walls(self._one_shot(workspace, cage.probe(), self._probe()), workspace)
        except ModelRejected as rejected:
            return f"a child does not start ({rejected.detail})"

    async def _fault_of_parent(self, parent: Parent) -> str | None:
        """Say in which way children of a warm parent are less shut in than they have to be."""
        try:
            async with self.workspace() as workspace:
                return await _walls(self._forked(workspace, parent, self._probe(), probe=True), workspace)
        except (ModelRejected, ParentLost) as error:
            return f"its child does not start ({error!r})"

    def _probe(self) -> _Task:
        # In a namespace of its own the child may have the number that this process has in a container.
        process = None if self.level is Level.STRONG and os.getpid() == 1 else os.getpid()
        job = {"canaries": [str(self._folder / "lock"), f"{JOBS}/lock"], "process": process}
        return _Task(job, replace(self.limits, seconds=_PROBE_S))

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
        task = _Task(job, self.limits if seconds is None else replace(self.limits, seconds=seconds), steps, on_step)
        if self._parents is not None:
            async with self._parents.lend(runtime) as parent:
                if parent is not None:
                    try:
                        return await self._forked(workspace, parent, task)
                    except ParentLost:
                        log.warning("a warm parent was lost; its job is done by a child of its own", job=workspace.folder.name)
                        await asyncio.to_thread(workspace.clear)
        return await self._one_shot(workspace, runtime, task)

    async def _forked(self, workspace: Workspace, parent: Parent, task: _Task, *, probe: bool = False) -> bytes:
        """Do a task in a child of a warm parent. Raises `ParentLost` too."""
        async with parent.child(workspace.folder, task.limits.for_child(), probe=probe) as child:
            try:
                return await _talk(child, workspace, task)
            finally:
                workspace.hold(child.out if self.level is Level.STRONG else _own_out(workspace))

    async def _one_shot(self, workspace: Workspace, runtime: cage.Runtime, task: _Task) -> bytes:
        """Do a task in a child that is started for it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        strong = self.level is Level.STRONG
        try:
            command = cage.command(self.level, runtime, workspace.folder, task.limits.for_child(), theirs.fileno() if strong else None)
            child = await start(command, workspace.folder, task.limits.processes, theirs if strong else None)
            return await _talk(child, workspace, task)
        finally:
            theirs.close()
            with ours:
                workspace.hold(_received(ours) if strong else _own_out(workspace))


@asynccontextmanager
async def open_sandbox(
    scratch: Path, limits: Limits, environments: Environments, levels: Sequence[Level] = SAFE, *, warm_s: float = WARM_S
) -> AsyncIterator[Sandbox]:
    """Open a sandbox below `scratch`, at the first of `levels` that holds on this machine: each is tried for real.

    Folders that a killed process left below `scratch` are removed, those of living ones are not touched. A warm parent ends when it had
    no work for `warm_s` seconds; with 0 there is none, and each child is started on its own.

    Raises:
        NoSandbox: none of the levels holds.
    """
    await asyncio.to_thread(clean_up, scratch)
    folder = scratch / f"{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700, parents=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        faults = {}
        for level in levels:
            sandbox = Sandbox(folder, limits, environments, level, warm_s)
            faults[level] = fault = await sandbox.fault()
            if fault is None:
                break
            log.info("a sandbox level is not to be had here", level=level, reason=fault)
        else:
            raise NoSandbox(faults)
        try:
            yield sandbox
        finally:
            await asyncio.shield(asyncio.ensure_future(sandbox.close()))
    finally:
        await asyncio.to_thread(remove, folder)
        os.close(lock)


async def _talk(child: Child, workspace: Workspace, task: _Task) -> bytes:
    limits = task.limits
    return await talk(
        child,
        workspace.folder,
        task.job,
        seconds=limits.seconds,
        disk_bytes=limits.disk_bytes,
        steps=task.steps,
        on_step=task.on_step,
    )


async def _walls(talk: Awaitable[bytes], workspace: Workspace) -> str | None:
    """Say what a child that tried to get out could reach. Raises as `Sandbox.run`."""
    answer = parse_answer(await talk)
    workspace.take("probe", "probe", 16)
    reached = answer.get("reached")
    return None if reached == [] else f"a child could reach {reached}"


def _own_out(workspace: Workspace) -> int:
    return os.open(workspace.folder / "out", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _received(channel: socket.socket) -> int:
    """Return the handle that a child sent before it read anything; -1 when it never came so far."""
    try:
        _, handles, _, _ = socket.recv_fds(channel, 16, 1)
    except OSError:
        return -1
    return handles[0] if handles else -1


def _lay_out(workspace: Workspace, graph: str, data: Mapping[str, str]) -> None:
    """Put the model and its data files side by side under the names that the model knows them by, as further names of the inputs."""
    folder = workspace.path("model")
    folder.mkdir()
    for name, place in {".model": graph, **data}.items():
        (folder / name).hardlink_to(workspace.folder / place)
