"""Runs an ONNX model with ONNX Runtime: CPU, one thread, no custom operators. Imported only in the one-shot child."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from services.packager.errors import ModelRejected, Reason

_SILENT = 4


class OnnxRunner:
    """A loaded ONNX model, or one in the runtime's own format. Raises `ModelRejected` when the runtime does not take it."""

    def __init__(self, path: Path, *, ort_format: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        options.enable_cpu_mem_arena = False
        if ort_format:
            options.add_session_config_entry("session.load_model_format", "ORT")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _load_failure(error) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Run once: input name to array, output name to array. Raises what the runtime raises."""
        results = self._session.run(self._outputs, dict(feed))
        return dict(zip(self._outputs, results, strict=True))


def version() -> str:
    """Return the version of the runtime."""
    return str(onnxruntime.__version__)


def as_input(array: Any) -> Any:
    """Return the array as the runtime takes it; strings become objects."""
    return array.astype(object) if array.dtype.kind == "U" else array


def as_output(array: Any) -> Any:
    """Return an output as a plain array that needs no pickle. Raises `ModelRejected` for sequences and maps."""
    if not isinstance(array, np.ndarray):
        raise ModelRejected(Reason.TENSOR_NOT_SUPPORTED, "The model returned a sequence or a map. Only plain tensors are supported.")
    return array.astype(np.str_) if array.dtype == object else array


def _load_failure(error: Exception) -> ModelRejected:
    text = str(error)
    if "IR version" in text or "opset" in text.lower():
        return ModelRejected(
            Reason.ENGINE_TOO_OLD,
            f"ONNX Runtime {version()} does not know this model's IR or opset version. Export with an older opset (15 to 21). {text}",
        )
    if "NOT_IMPLEMENTED" in text:
        return ModelRejected(
            Reason.MODEL_LOAD_FAILED,
            f"ONNX Runtime {version()} has no implementation of an operator for these types, or in this version of it. "
            f"Export with an opset from 7 to 21, and with usual types such as float32. It says: {text}",
        )
    return ModelRejected(Reason.MODEL_LOAD_FAILED, f"ONNX Runtime {version()} cannot load the model: {text}")
