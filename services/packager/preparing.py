"""Turns what was uploaded as a source into what `making.py` reads: unpacks archives, converts classical models to ONNX.

By the name of the only file; whatever parses it is a child.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.packager.answer import conversion
from services.packager.converters import STEPS
from services.packager.progress import Progress
from services.packager.sandbox import Sandbox, Workspace
from services.packager.unpacking import unpack

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
#: skops, XGBoost and LightGBM; which one it is, the converter finds out.
CLASSICAL = (".skops", ".ubj", ".json", ".txt")
CONVERTED = "converted.onnx"
#: The operator set of the smallest profile; others go up from there.
_OPSET = 15
#: As in `making.py`: imports take long on a busy machine.
_PATIENCE = 4.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files of the source by path, each in `in/source/`, and the steps that made them what they are.

    `answered`: `in/samples.npz` and `in/reference.npz` are there, made by the source itself.
    """

    paths: list[str]
    steps: tuple[dict[str, Any], ...] = ()
    answered: bool = False


async def prepare(sandbox: Sandbox, workspace: Workspace, paths: list[str], how: dict[str, Any], progress: Progress) -> Prepared:
    """Prepare the fetched files of a source.

    Args:
        sandbox: runs the children.
        workspace: `in/source/` has the files, `in/owners.npz` the owner's samples when there are some.
        paths: of the files.
        how: what the converter of classical models is told of the declaration: `names`, `range`, `samples`.
        progress: told what happens.

    Raises:
        ModelRejected: ARCHIVE_INVALID, ARCHIVE_REFUSED, ARCHIVE_TOO_LARGE, TYPE_NOT_ALLOWED, CONVERSION_FAILED, what the formats are
            refused for, and what children can end with.
    """
    (path, *more) = paths
    if more or not path.endswith((*ARCHIVES, *CLASSICAL)):
        return Prepared(paths)
    if path.endswith(CLASSICAL):
        return await _classical(sandbox, workspace, {"model": f"in/source/{path}", "opset": _OPSET, **how}, progress)
    progress.say("unpacking the archive")
    workspace.path(f"source/{path}").rename(workspace.path("archive"))
    return Prepared(await unpack(sandbox, workspace, "archive", "source", on_step=lambda _step: None))


async def _classical(sandbox: Sandbox, workspace: Workspace, job: dict[str, Any], progress: Progress) -> Prepared:
    progress.say("starting the converter of classical models")
    on_step = progress.steps(STEPS, 0.0, 0.02)
    seconds = sandbox.limits.seconds * _PATIENCE
    result = await sandbox.convert(workspace, "sk_to_onnx", job, on_step, progress.say, seconds=seconds)
    made, _ = conversion(result, [CONVERTED])
    for name, target in ((CONVERTED, f"source/{CONVERTED}"), ("samples.npz", "samples.npz"), ("reference.npz", "reference.npz")):
        workspace.take(name, target, sandbox.limits.disk_bytes)
    return Prepared([CONVERTED], tuple(made[CONVERTED]), answered=True)
