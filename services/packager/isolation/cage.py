"""How a child is started: with which interpreter, what it may read, and behind which walls. The three levels are those of SECURITY 4.

`strong`: bubblewrap gives it namespaces of its own (user, process, network, IPC, host name, control group, mounts): a file system that
holds its interpreter, its packages and its input, all read-only, and one folder in memory with a cap; no capabilities, no further
user namespaces. `fallback`, where user namespaces cannot be had: Landlock leaves it the same files out of the machine's. Both: no
environment, a filter of system calls, limits. `unsafe`: limits alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.packager.isolation import landlock
from services.packager.isolation.namespaces import JOB, JOBS

_ROOT = Path(__file__).resolve().parents[3]
_ENGINE_MODULES = (
    "services.packager.child", "services.packager.sourcing", "services.packager.measuring", "services.packager.formats.onnx_engine",
    "services.packager.formats.tflite_engine",
)  # fmt: skip
#: Libraries of the system, how they are found, and what numeric libraries ask about the processor.
_SYSTEM = (
    "/usr/lib", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu",
    # TensorFlow aborts when it cannot read its own command line.
    "/proc/self/cmdline",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
#: What importing may write in a warm parent.
_PARENT_BYTES = 16 * 2**20


class Level(StrEnum):
    """How strong the walls around a child are."""

    STRONG = "strong"
    FALLBACK = "fallback"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs in a child: an interpreter, the line of Python that it is given, and the folders and files that both read.

    `modules` are those that a warm parent imports.
    """

    python: Path
    start: str
    read: tuple[Path, ...]
    modules: tuple[str, ...] = ()


def engine() -> Runtime:
    """Return the runtime that examines models: the server's own interpreter and packages."""
    code = tuple(_ROOT / name for name in ("kit", "services/__init__.py", "services/packager"))
    return Runtime(Path(sys.executable), _start("services.packager.child"), (Path(sys.prefix), *code), _ENGINE_MODULES)


def converter(python: Path, folder: Path, modules: tuple[str, ...]) -> Runtime:
    """Return the runtime of converters: an environment's interpreter and packages, and of ours only the converters."""
    own = ("__init__.py", "packager/__init__.py", "packager/isolation", "packager/converters")
    read = (folder, *(_ROOT / "services" / name for name in own))
    return Runtime(python, _start("services.packager.converters.runner"), read, modules)


def probe() -> Runtime:
    """Return the runtime that tries the walls."""
    return Runtime(Path(sys.executable), _start("services.packager.isolation.probe"), engine().read)


def command(level: Level, runtime: Runtime, folder: Path, limits: Mapping[str, int], handover: int | None) -> list[str]:
    """Return the command of a child whose job lies in `folder`.

    Args:
        level: the walls around it.
        runtime: what runs.
        folder: the job's, with `in`, `out` and `tmp`; the current folder of the command.
        limits: what `limits.limit_self` takes.
        handover: at the level `strong` the descriptor that the child's `out` is sent through.
    """
    read = [str(path) for path in _readable(runtime)]
    settings = {"limits": dict(limits), "handover": handover, "channel": None, **_walls(level, read)}
    inner = _inner(runtime, settings)
    return [*_bubblewrap(read, folder, limits["file_bytes"], "--disable-userns"), *inner] if level is Level.STRONG else inner


def parent_command(level: Level, runtime: Runtime, folder: Path, jobs: Path, channel: int) -> list[str]:
    """Return the command of a warm parent, at one of the safe levels.

    Args:
        level: the walls around it and its children.
        runtime: what it imports and runs.
        folder: its own, with `in`, `out` and `tmp`; the current folder of the command.
        jobs: holds the folders of all jobs.
        channel: the descriptor of its socket to the service.
    """
    read = [str(path) for path in _readable(runtime)]
    strong = level is Level.STRONG
    # Landlock allows no mounts to whom it watches: at the level `strong` only the children have it.
    reach = None if strong else ([*read, *_DEVICES, "in", "/proc"], ["out", "tmp", str(jobs)])
    inner = _inner(
        runtime,
        {"channel": channel, "strong": strong, "modules": list(runtime.modules), "reach": reach, **_walls(level, read)},
    )
    if not strong:
        return inner
    # The capability counts inside its own namespaces only; a child drops it with the others.
    return [*_bubblewrap(read, folder, _PARENT_BYTES, "--cap-add", "CAP_SYS_ADMIN", "--ro-bind", str(jobs), JOBS), *inner]


def _walls(level: Level, read: list[str]) -> dict[str, Any]:
    walled = level is not Level.UNSAFE
    landlocked = level is Level.FALLBACK or (walled and landlock.abi() >= landlock.LEAST_ABI)
    return {"filter": walled, "read": [*read, *_DEVICES, "in"] if landlocked else None}


def _inner(runtime: Runtime, settings: Mapping[str, Any]) -> list[str]:
    return [str(runtime.python), "-I", "-B", "-X", "utf8", "-c", runtime.start, json.dumps(settings)]


def bubblewrap() -> str | None:
    """Return where bubblewrap is; None when it is not installed."""
    return shutil.which("bwrap")


def _bubblewrap(read: list[str], folder: Path, output_bytes: int, *more: str) -> list[str]:
    words = [
        bubblewrap() or "bwrap",
        "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--uid", "65534", "--gid", "65534", "--hostname", "child",
        # The child is the only process there is, so that nothing else has memory to be reached through /proc.
        "--as-pid-1", "--cap-drop", "ALL", "--clearenv", "--new-session", "--die-with-parent",
        # ONNX Runtime asks it for the names of the data files that it opened.
        "--proc", "/proc",
    ]  # fmt: skip
    for path in (path for path in read if not path.startswith("/proc/")):
        words += ["--ro-bind-try", path, path]
    for path in _DEVICES:
        words += ["--dev-bind-try", path, path]
    words += ["--size", str(output_bytes), "--tmpfs", JOB, "--dir", f"{JOB}/out", "--dir", f"{JOB}/tmp"]  # noqa: S108 - inside the sandbox
    words += ["--ro-bind", str(folder / "in"), f"{JOB}/in", *more, "--remount-ro", "/", "--chdir", JOB, "--"]
    return words


def _readable(runtime: Runtime) -> Iterator[Path]:
    """Yield what exists of the files that the runtime needs, outer folders before what lies in them."""
    wanted = {*map(Path, _SYSTEM), *runtime.read, *_interpreter(runtime.python)}
    yield from sorted(path for path in wanted if path.exists() and not any(outer in wanted for outer in path.parents))


def _interpreter(python: Path) -> Iterator[Path]:
    """Yield the interpreter that a virtual environment leads to, each link on the way, and its standard library."""
    base = Path(sys.base_prefix)
    link = python
    while link.is_symlink():
        link = link.parent / os.readlink(link)  # noqa: PTH115 - a relative target must stay relative to the link
        yield link
    yield link.resolve()
    # An interpreter of the system shares its folder with every other program; its library is below /usr/lib.
    yield from () if base == Path("/usr") else (base / "lib", base / "bin")


def _start(module: str) -> str:
    # Isolated mode takes neither the folder nor PYTHONPATH.
    return f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from services.packager.isolation.entry import main; main({module!r})"
