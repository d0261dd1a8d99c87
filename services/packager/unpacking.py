"""Unpacks an uploaded archive in a child and takes over its files, under paths that were checked again here. Parses nothing itself."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, NoReturn

from services.packager.answer import parse_answer
from services.packager.domain import is_plain_name
from services.packager.errors import ModelRejected, Reason
from services.packager.formats.archive_members import Caps
from services.packager.isolation.process import OnStep
from services.packager.sandbox import Sandbox, Workspace


async def unpack(
    sandbox: Sandbox, workspace: Workspace, archive: str, folder: str, *, on_step: OnStep, caps: Caps | None = None
) -> list[str]:
    """Unpack `archive` (a name in `in/`) into `in/<folder>/` and return the paths of its files there.

    What comes out is bounded by the sandbox's disk limit too. Raises `ModelRejected`: ARCHIVE_INVALID, ARCHIVE_REFUSED,
    ARCHIVE_TOO_LARGE, and what children can end with.
    """
    caps = caps or Caps()
    caps = replace(caps, total_bytes=min(caps.total_bytes, sandbox.limits.disk_bytes - 2**20))
    job = {"task": "unpack", "archive": f"in/{archive}", "caps": asdict(caps)}
    files = checked(parse_answer(await sandbox.run(workspace, job, on_step)), caps)
    for number, (path, size) in enumerate(files):
        target = f"{folder}/{path}"
        workspace.path(target).parent.mkdir(parents=True, exist_ok=True)
        workspace.take(str(number), target, size)
    return [path for path, _ in files]


def checked(answer: dict[str, Any], caps: Caps) -> list[tuple[str, int]]:
    """Hold a child's answer, which read a hostile archive, against the same rules: (path, size) of each file. Raises `ModelRejected`."""
    listed = answer.get("files")
    if not isinstance(listed, list) or not 0 < len(listed) <= caps.members:
        _invalid()
    files: list[tuple[str, int]] = []
    places: set[str] = set()
    folders: set[str] = set()
    for entry in listed:
        path, size = (entry.get("path"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if not isinstance(path, str) or len(path) > 300 or not all(is_plain_name(part) for part in path.split("/")):
            _invalid()
        if type(size) is not int or not 0 <= size <= caps.total_bytes:
            _invalid()
        parts = path.casefold().split("/")
        above = {"/".join(parts[:end]) for end in range(1, len(parts))}
        if "/".join(parts) in places | folders or above & places:
            _invalid()
        places.add("/".join(parts))
        folders |= above
        files.append((path, size))
    return files


def _invalid() -> NoReturn:
    raise ModelRejected(Reason.CHILD_ANSWER_INVALID, "Unpacking the archive gave an answer that cannot be used.")
