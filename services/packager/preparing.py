"""Turns what was uploaded as a source into what `making.py` reads: unpacks archives, converts classical models to ONNX.

By the name of the only file; whatever parses it is a child.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.packager.converters import STEPS
from services.packager.errors import ModelRejected, Reason
from services.packager.progress import Progress
from services.packager.remembering import Conversions
from services.packager.sandbox import Workspace
from services.packager.unpacking import unpack

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
#: skops, XGBoost and LightGBM; which one it is, the converter finds out.
CLASSICAL = (".skops", ".ubj", ".json", ".txt")
CONVERTED = "converted.onnx"
#: The operator set of the smallest profile; others go up from there.
_OPSET = 15


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files of the source by path, each in `in/source/`, and the steps that made them what they are.

    `answered`: `in/samples.npz` and `in/reference.npz` are there, made by the source itself.
    """

    paths: list[str]
    steps: tuple[dict[str, Any], ...] = ()
    answered: bool = False


async def prepare(conversions: Conversions, workspace: Workspace, paths: list[str], how: dict[str, Any], progress: Progress) -> Prepared:
    """Prepare the fetched files of a source.

    Args:
        conversions: runs the children, or knows what came of the same conversion before.
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
        return await _classical(conversions, workspace, {"model": f"in/source/{path}", "opset": _OPSET, **how}, progress)
    progress.say("unpacking the archive")
    workspace.path(f"source/{path}").rename(workspace.path("archive"))
    return Prepared(await unpack(conversions.sandbox, workspace, "archive", "source", on_step=lambda _step: None))


async def _classical(conversions: Conversions, workspace: Workspace, job: dict[str, Any], progress: Progress) -> Prepared:
    progress.say("starting the converter of classical models")
    on_step = progress.steps(STEPS, 0.0, 0.02)
    made, failed = await conversions.convert(
        workspace,
        "sk_to_onnx",
        job,
        targets={CONVERTED: f"source/{CONVERTED}"},
        also=("samples.npz", "reference.npz"),
        on_step=on_step,
        tell=progress.say,
    )
    if CONVERTED not in made:
        raise ModelRejected(Reason.CONVERSION_FAILED, f"The model could not be converted to ONNX: {failed[CONVERTED]}.")
    return Prepared([CONVERTED], tuple(made[CONVERTED]), answered=True)
