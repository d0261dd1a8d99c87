"""LiteRT (TensorFlow Lite) as an engine, through the interpreter of `ai-edge-litert`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from latebind.device.engines import Array, conform, feed_of
from latebind.device.manifest import Manifest, TensorSpec
from latebind.errors import InferenceFailed, LoadFailed


class LiteRTEngine:
    """Loads TFLite files. LiteRT has no IR or opset: the version decides."""

    name = "litert"
    max_ir: int | None = None
    max_opset: int | None = None

    def __init__(self) -> None:
        self.version = version("ai-edge-litert")

    def load(self, manifest: Manifest, graph: bytes, paths: Mapping[str, Path], *, threads: int | None) -> LiteRTModel:
        """See `Engine.load`."""
        try:
            interpreter = Interpreter(model_content=graph, num_threads=threads)
            return LiteRTModel(interpreter, manifest)
        except (ValueError, RuntimeError) as error:
            raise LoadFailed(
                f"LiteRT {self.version} cannot load {manifest.model_id} version {manifest.version}: {_short(error)}"
            ) from error


class LiteRTModel:
    """One interpreter. Inputs with open dimensions are resized when an array of another shape comes."""

    def __init__(self, interpreter: Any, manifest: Manifest) -> None:
        self._interpreter = interpreter
        self._ins = _match(interpreter.get_input_details(), manifest.inputs, "input")
        self._outs = _match(interpreter.get_output_details(), manifest.outputs, "output")
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        self._shapes = {name: tuple(int(size) for size in detail["shape"]) for name, detail in self._ins.items()}
        interpreter.allocate_tensors()

    def run(self, inputs: Any) -> dict[str, Array]:
        """See `EngineModel.run`."""
        feed = feed_of(inputs, self.inputs)
        arrays = {spec.name: conform(feed[spec.name], spec, np.dtype(self._ins[spec.name]["dtype"])) for spec in self.inputs}
        interpreter = self._interpreter
        try:
            self._resize(arrays)
            for name, array in arrays.items():
                interpreter.set_tensor(self._ins[name]["index"], array)
            interpreter.invoke()
            return {name: interpreter.get_tensor(detail["index"]) for name, detail in self._outs.items()}
        except (ValueError, RuntimeError) as error:
            raise InferenceFailed(f"the model failed to run: {_short(error)}") from error

    def close(self) -> None:
        """See `EngineModel.close`."""
        self._interpreter = None

    def _resize(self, arrays: Mapping[str, Array]) -> None:
        changed = [name for name, array in arrays.items() if array.shape != self._shapes[name]]
        for name in changed:
            self._interpreter.resize_tensor_input(self._ins[name]["index"], list(arrays[name].shape))
            self._shapes[name] = arrays[name].shape
        if changed:
            self._interpreter.allocate_tensors()


def _match(details: list[dict[str, Any]], declared: tuple[TensorSpec, ...], what: str) -> dict[str, dict[str, Any]]:
    """The interpreter's tensors by declared name. Raises LoadFailed when they contradict."""
    real = {detail["name"]: detail for detail in details}
    for spec in declared:
        detail = real.get(spec.name)
        if detail is None:
            raise LoadFailed(f"the model has no {what} {spec.name!r} (it has {sorted(real)})")
        if np.dtype(detail["dtype"]).name not in {spec.dtype, "bytes" if spec.dtype == "string" else spec.dtype}:
            raise LoadFailed(f"{what} {spec.name!r} is {np.dtype(detail['dtype']).name} in the model, but {spec.dtype} in the manifest")
        if spec.shape is not None and len(detail["shape"]) != len(spec.shape):
            raise LoadFailed(
                f"{what} {spec.name!r} has {len(detail['shape'])} dimensions in the model, but {len(spec.shape)} in the manifest"
            )
    if what == "input" and len(declared) != len(real):
        raise LoadFailed(f"the model has inputs that the manifest does not name: {sorted(real.keys() - {spec.name for spec in declared})}")
    return {spec.name: real[spec.name] for spec in declared}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
