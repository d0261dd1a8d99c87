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

from services.packager.isolation import landlock

_ROOT = Path(__file__).resolve().parents[3]
#: Libraries of the system, how they are found, and what numeric libraries ask about the processor.
_SYSTEM = (
    "/usr/lib", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu",
    # TensorFlow aborts when it cannot read its own command line.
    "/proc/self/cmdline",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
#: Where a job's folder lies for a child at the level `strong`.
_JOB = "/job"


class Level(StrEnum):
    """How strong the walls around a child are."""

    STRONG = "strong"
    FALLBACK = "fallback"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs in a child: an interpreter, the line of Python that it is given, and the folders and files that both read."""

    python: Path
    start: str
    read: tuple[Path, ...]


def engine() -> Runtime:
    """Return the runtime that examines models: the server's own interpreter and packages."""
    code = tuple(_ROOT / name for name in ("kit", "services/__init__.py", "services/packager"))
    return Runtime(Path(sys.executable), _start("services.packager.child"), (Path(sys.prefix), *code))


def converter(python: Path, folder: Path) -> Runtime:
    """Return the runtime of converters: an environment's interpreter and packages, and of ours only the converters."""
    own = ("__init__.py", "packager/__init__.py", "packager/isolation", "packager/converters")
    return Runtime(python, _start("services.packager.converters.runner"), (folder, *(_ROOT / "services" / name for name in own)))


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
    walled = level is not Level.UNSAFE
    settings = {
        "limits": dict(limits),
        "handover": handover,
        "filter": walled,
        "read": [*read, *_DEVICES, "in"] if level is Level.FALLBACK or (walled and landlock.abi() >= landlock.LEAST_ABI) else None,
    }
    inner = [str(runtime.python), "-I", "-B", "-X", "utf8", "-c", runtime.start, json.dumps(settings)]
    return [*_bubblewrap(read, folder, limits["file_bytes"]), *inner] if level is Level.STRONG else inner


def bubblewrap() -> str | None:
    """Return where bubblewrap is; None when it is not installed."""
    return shutil.which("bwrap")


def _bubblewrap(read: list[str], folder: Path, output_bytes: int) -> list[str]:
    words = [
        bubblewrap() or "bwrap",
        "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--disable-userns", "--uid", "65534", "--gid", "65534", "--hostname", "child",
        # The child is the only process there is, so that nothing else has memory to be reached through /proc.
        "--as-pid-1", "--cap-drop", "ALL", "--clearenv", "--new-session", "--die-with-parent",
        # ONNX Runtime asks it for the names of the data files that it opened.
        "--proc", "/proc",
    ]  # fmt: skip
    for path in (path for path in read if not path.startswith("/proc/")):
        words += ["--ro-bind-try", path, path]
    for path in _DEVICES:
        words += ["--dev-bind-try", path, path]
    words += ["--size", str(output_bytes), "--tmpfs", _JOB, "--dir", f"{_JOB}/out", "--dir", f"{_JOB}/tmp"]  # noqa: S108 - inside the sandbox
    words += ["--ro-bind", str(folder / "in"), f"{_JOB}/in", "--remount-ro", "/", "--chdir", _JOB, "--"]
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
