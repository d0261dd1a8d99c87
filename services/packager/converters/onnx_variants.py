"""Environment `onnx`: one ONNX graph becomes the variants that were asked for: checked, slimmed, in a profile, with less precision.

Runs in the sandbox, in the environment's own interpreter, all variants of a job in one process: the imports and the parsing are paid
once. What it writes is examined from zero by another child.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from services.packager.converters import Step
from services.packager.converters.onnx_names import rename_onnx

_MAX_WORDS = 500
_MAX_BYTES = 2**31 - 1
_QDQ_OPSET = 13

How = dict[str, Any]


def convert(job: Mapping[str, Any], step: Step) -> dict[str, Any]:
    """Make what the job wants of its graphs.

    Job: `inputs` and `outputs` (each `name`, and `called` in the graph), `calibration` (.npz, one array per input,
    samples on the first axis) or null, `targets`: output file to `{"graph": "in/…", "precision": "fp32" | "fp16" | "int8", "opset": 15,
    "ir": 8, "slim": true}`. External data lies beside its graph.

    Returns `made` (file to lineage steps) and `failed` (file to words). One target that fails spoils no other.
    """
    names = {port["called"]: port["name"] for side in ("inputs", "outputs") for port in job[side]}
    prepared: dict[tuple[Any, ...], tuple[onnx.ModelProto, list[How]] | Exception] = {}
    made, failed = {}, {}
    for file, target in job["targets"].items():
        step("slimming" if target["precision"] == "fp32" else "quantising")
        key = tuple(target[name] for name in ("graph", "opset", "ir", "slim"))
        try:
            if key not in prepared:
                prepared[key] = _try(lambda: _prepare(target, names))  # noqa: B023 - called at once
            ready = prepared[key]
            if isinstance(ready, Exception):
                raise ready
            model, steps = _precise(*ready, target["precision"], job["calibration"])
            if model.ByteSize() > _MAX_BYTES:
                raise ValueError("the result has more than 2 GiB; use external data and push it ready-made")
            onnx.save(model, Path("out", file))
        except Exception as error:
            failed[file] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_WORDS]
            continue
        made[file] = steps
    return {"made": made, "failed": failed}


def _try(call: Callable[[], tuple[onnx.ModelProto, list[How]]]) -> tuple[onnx.ModelProto, list[How]] | Exception:
    try:
        return call()
    except Exception as error:
        return error


def _prepare(target: Mapping[str, Any], names: Mapping[str, str]) -> tuple[onnx.ModelProto, list[How]]:
    """Load, check, bring into the profile, name and slim a graph."""
    model = onnx.load(target["graph"])
    onnx.checker.check_model(model)
    steps = [_step("onnx", check=True)]
    if any(old != new for old, new in names.items()):
        rename_onnx(model, names)
        steps.append(_step("latebind", renamed=True))
    model, moved = _in_profile(model, target["opset"], target["ir"], least=_QDQ_OPSET if target["precision"] == "int8" else 0)
    steps += moved
    if target["slim"]:
        slimmed = _slim(model)
        steps.append(_step("onnxslim", kept=slimmed is not None))
        model = slimmed or model
    return model, steps


def _in_profile(model: onnx.ModelProto, opset: int, ir: int, least: int) -> tuple[onnx.ModelProto, list[How]]:
    """Bring opset and IR down to what devices know. Raises what `onnx.version_converter` raises when an operator has no older form."""
    have = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), opset)
    steps = []
    if have > opset or have < least:
        model = onnx.version_converter.convert_version(model, opset)
        steps.append(_step("onnx", opset=opset, opset_before=have))
    if model.ir_version > ir:
        steps.append(_step("onnx", ir_version=ir, ir_version_before=model.ir_version))
        model.ir_version = ir
    onnx.checker.check_model(model)
    return model, steps


def _slim(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the slimmed graph; None when it is not the same model any more, so that the original is kept."""
    import onnxslim  # noqa: PLC0415 - only where it is asked for

    try:
        slimmed = onnxslim.slim(onnx.ModelProto.FromString(model.SerializeToString()))
        onnx.checker.check_model(slimmed)
    except Exception:
        return None
    ends = [[[value.name for value in side] for side in (one.graph.input, one.graph.output)] for one in (model, slimmed)]
    slimmed.ir_version = model.ir_version
    return slimmed if ends[0] == ends[1] and list(slimmed.opset_import) == list(model.opset_import) else None


def _precise(model: onnx.ModelProto, steps: list[How], precision: str, calibration: str | None) -> tuple[onnx.ModelProto, list[How]]:
    if precision == "fp32":
        return model, steps
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - only where it is asked for

        return convert_float_to_float16(copy, keep_io_types=True), [*steps, _step("onnxruntime", precision="fp16")]
    from services.packager.converters.onnx_quantise import quantise  # noqa: PLC0415 - only where it is asked for

    made, options = quantise(copy, calibration)
    return made, [*steps, _step("onnxruntime", precision="int8", **options)]


def _step(tool: str, **options: Any) -> How:
    return {"tool": tool, "version": version(tool) if tool != "latebind" else "1", "options": options}
