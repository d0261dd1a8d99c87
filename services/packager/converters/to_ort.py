"""Environment `onnx`: a graph that was examined becomes ONNX Runtime's own format, for the version that runs here and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime

from services.packager.converters import Step

_MADE = "model.ort"


def to_ort(job: Mapping[str, Any], step: Step) -> dict[str, Any]:
    """Let the runtime write what it makes of `{"graph": "in/…"}` when it loads it, without what holds for this processor only.

    Returns `made` and `failed` as `onnx_variants` does.
    """
    step("converting-ort")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = f"out/{_MADE}"
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(job["graph"], options, providers=["CPUExecutionProvider"])
    how = {"tool": "onnxruntime", "version": onnxruntime.__version__, "options": {"format": "ort", "optimisation": "extended"}}
    return {"made": {_MADE: [how]}, "failed": {}}
