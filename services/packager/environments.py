"""Converter environments: virtual environments of their own, made from a lock file at first need and kept for the machine.

The server's environment never holds TensorFlow or onnx. An environment lies outside the checkout and the data, named after its lock
file and the Python that it is for, so a new lock is a new folder and an old one is never changed. It appears whole or not at all: it is
made under another name and renamed. Two processes take turns. It is trusted code from a lock with hashes, wheels only: installing runs
no code of a package. Nothing here reads a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from structlog import get_logger

_LOCKS = Path(__file__).parent / "converters"
_READY = "latebind.json"
_SAY_EVERY_S = 5.0
_TRY_LOCK_S = 0.2
_DEADLINE_S = 1800.0
_SHOWN = re.compile(r"\s*(Downloading|Prepared|Installed|Bytecode compiled)\b[^/\\]*")

#: Called with a line that tells people what is happening.
Tell = Callable[[str], None]

log = get_logger(__name__)


class EnvironmentFailed(Exception):
    """An environment could not be made. The text is for the operator: it may hold paths and hosts."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One that is ready. `lock_digest` says which tools it holds, as results of a conversion are cached by it."""

    name: str
    folder: Path
    lock_digest: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def names() -> list[str]:
    """Return the names of all environments: one for each lock file."""
    return sorted(path.stem for path in _LOCKS.glob("*.lock"))


def lock_digest(name: str) -> str:
    """Return the SHA-256 of an environment's lock file, as hex."""
    return hashlib.sha256((_LOCKS / f"{name}.lock").read_bytes()).hexdigest()


class Environments:
    """Makes environments below `folder`; with `wheels`, from the wheel files in that folder and nothing else.

    Args:
        folder: where they are kept; made when it is not there.
        wheels: a folder of wheels, for machines without a package index; None uses what uv is configured for.
    """

    def __init__(self, folder: Path, wheels: Path | None = None) -> None:
        self._folder = folder
        self._wheels = wheels

    async def ready(self, name: str, tell: Tell) -> Environment:
        """Return an environment, and make it first when it is not there or damaged. Cancelling stops the making and leaves nothing.

        Raises:
            EnvironmentFailed: uv is missing, a wheel cannot be had, the disk is full.
        """
        digest = await asyncio.to_thread(lock_digest, name)
        version = f"py{platform.python_version()}-{platform.machine()}"
        environment = Environment(name, self._folder / f"{name}-{version}-{digest[:16]}", digest)
        if await asyncio.to_thread(_is_whole, environment):
            return environment
        try:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
            async with _turn(environment, tell):
                if not await asyncio.to_thread(_is_whole, environment):
                    await self._make(environment, tell)
        except OSError as error:
            raise EnvironmentFailed(f"the converter environment {name} cannot be made in {self._folder}: {error}") from error
        return environment

    async def _make(self, environment: Environment, tell: Tell) -> None:
        started = time.monotonic()
        lock = _LOCKS / f"{environment.name}.lock"
        packages = _packages(lock)
        tell(f"making the converter environment {environment.name}: up to {len(packages)} packages, once on this machine")
        unfinished = environment.folder.with_name(f".{environment.folder.name}.{os.getpid()}")
        try:
            await asyncio.to_thread(_remove_leftovers, environment)
            uv = _find_uv()
            await _run([uv, "venv", "--quiet", "--relocatable", "--no-project", "--python", _base_python(), str(unfinished)], _quiet)
            command = [uv, "pip", "sync", "--require-hashes", "--only-binary", ":all:", "--compile-bytecode", "--no-progress"]
            if self._wheels is not None:
                command += ["--offline", "--no-index", "--no-cache", "--find-links", str(self._wheels)]
            said = _Progress(environment.name, started, tell)
            async with said.ticking():
                await _run([*command, "--python", str(unfinished / "bin" / "python"), str(lock)], said.line)
            await asyncio.to_thread(_finish, unfinished, environment)
        finally:
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        tell(f"the converter environment {environment.name} is ready after {time.monotonic() - started:.0f} s")


class _Progress:
    """Passes on what uv says, and says every few seconds that it still works."""

    def __init__(self, name: str, started: float, tell: Tell) -> None:
        self._name, self._started, self._tell = name, started, tell
        self._last = ""

    def line(self, text: str) -> None:
        if (shown := _SHOWN.match(text)) is not None and len(text) < 120:
            self._last = shown.group(0).strip()
            self._tell(f"converter environment {self._name}: {self._last} ({time.monotonic() - self._started:.0f} s)")

    @asynccontextmanager
    async def ticking(self) -> AsyncIterator[None]:
        async def tick() -> None:
            while True:
                await asyncio.sleep(_SAY_EVERY_S)
                self._tell(f"converter environment {self._name}: still installing ({time.monotonic() - self._started:.0f} s)")

        task = asyncio.create_task(tick())
        try:
            yield
        finally:
            task.cancel()


@asynccontextmanager
async def _turn(environment: Environment, tell: Tell) -> AsyncIterator[None]:
    """Hold the machine's lock of one environment; the kernel lets go of it when this process dies."""
    path = environment.folder.with_name(f".{environment.folder.name}.turn")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    waited = 0.0
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % _SAY_EVERY_S < _TRY_LOCK_S:
                    tell(f"another process makes the converter environment {environment.name} ({waited:.0f} s)")
                await asyncio.sleep(_TRY_LOCK_S)
                waited += _TRY_LOCK_S
        yield
    finally:
        os.close(handle)


async def _run(command: list[str], line: Tell) -> None:
    """Run uv. Raises `EnvironmentFailed` with its last words."""
    # uv needs the operator's proxies, certificates and index; it has no business with our settings.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LATEBIND_") and name != "VIRTUAL_ENV"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stderr is not None
    words: list[str] = []
    try:
        async with asyncio.timeout(_DEADLINE_S):
            async for raw in process.stderr:
                text = raw.decode("utf-8", "replace").rstrip()
                words = [*words[-20:], text]
                line(text)
            status = await process.wait()
    except TimeoutError:
        raise EnvironmentFailed(f"{command[1]} did not end within {_DEADLINE_S:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    if status != 0:
        raise EnvironmentFailed("\n".join(words) or f"uv ended with status {status}")


def _quiet(_text: str) -> None:
    pass


def _find_uv() -> str:
    try:
        from uv import find_uv_bin  # noqa: PLC0415 - only the extra "packager" has it

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise EnvironmentFailed("uv is not installed: install the server with its extra [packager]")
    return found


def _base_python() -> str:
    """Return the interpreter that ours was made from, so that an environment does not depend on the server's."""
    return str(getattr(sys, "_base_executable", sys.executable))


def _packages(lock: Path) -> list[str]:
    return sorted({line.partition("==")[0] for line in lock.read_text().splitlines() if "==" in line and not line.startswith((" ", "#"))})


def _finish(unfinished: Path, environment: Environment) -> None:
    """Say in the folder what is in it, and give it its name."""
    facts = {"name": environment.name, "lock_sha256": environment.lock_digest, "installed": _installed(unfinished)}
    (unfinished / _READY).write_text(json.dumps(facts) + "\n")
    shutil.rmtree(environment.folder, ignore_errors=True)
    unfinished.rename(environment.folder)


def _is_whole(environment: Environment) -> bool:
    """Whether an environment is there, still has every package that it was finished with, and its Python exists."""
    try:
        facts = json.loads((environment.folder / _READY).read_bytes())
        return (
            facts["lock_sha256"] == environment.lock_digest
            and facts["installed"] == _installed(environment.folder)
            and os.access(environment.python, os.X_OK)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _installed(folder: Path) -> list[str]:
    """Name each package's folder of facts, which an installer writes last and an uninstaller removes."""
    return sorted(path.parent.name for path in folder.glob("lib/python*/site-packages/*.dist-info/RECORD"))


def _remove_leftovers(environment: Environment) -> None:
    """Remove what makers that were killed left behind. The caller has the turn, so none of them lives."""
    for path in environment.folder.parent.glob(f".{environment.folder.name}.*"):
        if path.suffix != ".turn":
            shutil.rmtree(path, ignore_errors=True)
