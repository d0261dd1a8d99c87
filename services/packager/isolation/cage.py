"""How a child is started: with which interpreter, what it may read, and what it is told about itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]


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


def command(runtime: Runtime, limits: Mapping[str, int]) -> list[str]:
    """Return the command of a child, whose current folder is the job's."""
    settings = {"limits": dict(limits), "handover": None}
    return [str(runtime.python), "-I", "-B", "-X", "utf8", "-c", runtime.start, json.dumps(settings)]


def _start(module: str) -> str:
    # Isolated mode takes neither the folder nor PYTHONPATH.
    return f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from services.packager.isolation.entry import main; main({module!r})"
