"""Runs a TFLite model with LiteRT: CPU, one thread, builtin operators only. Imported only in the one-shot child."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from services.packager.errors import ModelRejected, Reason


class TfliteRunner:
    """A loaded TFLite model. Raises `ModelRejected` when the runtime does not take it."""

    def __init__(self, path: Path) -> None:
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=1)
            self._inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
            self._outputs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        except Exception as error:
            raise ModelRejected(Reason.MODEL_LOAD_FAILED, f"LiteRT {version()} cannot load the model: {error}") from error

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Run once: input name to array, output name to array. Raises what the runtime raises."""
        for name, array in feed.items():
            self._interpreter.resize_tensor_input(self._inputs[name]["index"], array.shape)
        self._interpreter.allocate_tensors()
        for name, array in feed.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], array)
        self._interpreter.invoke()
        return {name: np.array(self._interpreter.get_tensor(detail["index"])) for name, detail in self._outputs.items()}


def version() -> str:
    """Return the version of the runtime."""
    return installed_version("ai-edge-litert")


def as_input(array: Any) -> Any:
    """Return the array as the runtime takes it; strings become bytes."""
    return np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array


def as_output(array: Any) -> Any:
    """Return an output as a plain array that needs no pickle."""
    if array.dtype == object or array.dtype.kind == "S":
        return np.char.decode(array.astype(np.bytes_), "utf-8", "replace")
    return array
