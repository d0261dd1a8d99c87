"""Environment `tf`: a SavedModel, a frozen GraphDef or a TFLite file becomes ONNX and TFLite, and answers the samples.

Runs in the sandbox, in the environment's own interpreter. A TensorFlow source becomes one frozen function with named ends; from it come
the reference answers, the ONNX graphs and the TFLite files, so that one import of TensorFlow (most of the time here) serves all of
them. What it writes is examined from zero by another child.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from services.packager.converters import Step
from services.packager.converters.arrays import read_npz, write_npz
from services.packager.converters.onnx_names import rename_onnx
from services.packager.converters.tflite_names import rename_tflite

_MAX_WORDS = 500


def convert(job: Mapping[str, Any], step: Step) -> dict[str, Any]:
    """Make what the job wants of its source.

    Job: `format` (`saved-model`, `graphdef`, `tflite`), `source` (folder or file), `signature` and `tags` of a SavedModel, `inputs` and
    `outputs` (each `name`, `called`, `dtype`, `shape`; `called` is its name in the source), `samples` and perhaps `calibration` (.npz,
    one array per input, samples on the first axis), `targets`: output file to `{"to": "onnx", "opset": 15}` or
    `{"to": "tflite", "precision": "fp32" | "int8"}`.

    Returns `made` (file to lineage steps) and `failed` (file to words). One target that fails spoils no other. A TensorFlow source also
    leaves `out/reference.npz`, its outputs for the samples; a TFLite source does not, the service's own engine runs it.
    """
    source = _TfliteFile(job) if job["format"] == "tflite" else _Graph(job, step)
    if isinstance(source, _Graph):
        step("answering")
        source.answer(job["samples"])
    made, failed = {}, {}
    for file, target in job["targets"].items():
        step("converting" if target["to"] == "onnx" else "converting-tflite")
        try:
            data, how = source.onnx(target["opset"]) if target["to"] == "onnx" else source.tflite(target["precision"], job["calibration"])
        except Exception as error:
            failed[file] = _words(error)
            continue
        Path("out", file).write_bytes(data)
        made[file] = [*source.steps, how]
    return {"made": made, "failed": failed}


class _Graph:
    """A TensorFlow source as one function, its inputs and outputs in declared order."""

    def __init__(self, job: Mapping[str, Any], step: Step) -> None:
        self.steps: list[dict[str, Any]] = []
        self._inputs, self._outputs = job["inputs"], job["outputs"]
        step("loading")
        if job["format"] == "saved-model":
            definition, ends, loader = _freeze(job)
            self.steps.append(_step("tensorflow", tf.__version__, freeze=loader))
        else:
            definition = tf.compat.v1.GraphDef.FromString(Path(job["source"]).read_bytes())
            ends = {port["called"]: _end(port["called"]) for port in (*self._inputs, *self._outputs)}
        self._function = _function(definition, ends, self._inputs, self._outputs)

    def answer(self, samples: str) -> None:
        rows = [[np.asarray(result) for result in self._call(feed)] for feed in _feeds(samples)]
        columns = zip(self._outputs, zip(*rows, strict=True), strict=True)
        write_npz(Path("out/reference.npz"), {port["name"]: np.stack(column) for port, column in columns}, packed=False)

    def _call(self, feed: Sequence[Any]) -> list[Any]:
        return list(tf.nest.flatten(self._function(*(tf.constant(array) for array in feed))))

    def onnx(self, opset: int) -> tuple[bytes, dict[str, Any]]:
        graph = self._function.graph
        ends = [[tensor.name for tensor in side] for side in (graph.inputs, graph.outputs)]
        model, _ = tf2onnx.convert.from_graph_def(graph.as_graph_def(), input_names=ends[0], output_names=ends[1], opset=opset)
        return _named(model, ends, (self._inputs, self._outputs)), _step("tf2onnx", tf2onnx.__version__, opset=opset)

    def tflite(self, precision: str, calibration: str | None) -> tuple[bytes, dict[str, Any]]:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([self._function])
        options: dict[str, Any] = {"precision": precision}
        if precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            options["samples"] = 0
            if calibration is not None:
                converter.representative_dataset = lambda: _feeds(calibration)
                options["samples"] = sum(1 for _ in _feeds(calibration))
        data = converter.convert()
        return rename_tflite(data, self._inputs, self._outputs), _step("tensorflow-lite", tf.__version__, **options)


class _TfliteFile:
    """A TFLite source."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.steps: list[dict[str, Any]] = []
        self._path, self._sides = job["source"], (job["inputs"], job["outputs"])

    def onnx(self, opset: int) -> tuple[bytes, dict[str, Any]]:
        model, _ = tf2onnx.convert.from_tflite(self._path, opset=opset)
        ends = [[port["called"] for port in side] for side in self._sides]
        return _named(model, ends, self._sides), _step("tf2onnx", tf2onnx.__version__, opset=opset)

    def tflite(self, precision: str, calibration: str | None) -> tuple[bytes, dict[str, Any]]:
        names = {port["called"]: port["name"] for side in self._sides for port in side}
        data = rename_tflite(Path(self._path).read_bytes(), *self._sides, names=names)
        return data, _step("tensorflow-lite", tf.__version__, renamed=True)


def _freeze(job: Mapping[str, Any]) -> tuple[Any, dict[str, str], str]:
    """Return the graph with its weights inside, the tensor behind each key of the signature, and which loader took the SavedModel."""
    try:
        model = tf.saved_model.load(job["source"], tags=job["tags"])  # it owns the variables of its functions
        function = model.signatures[job["signature"]]
        frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
        inputs = zip(function._arg_keywords, frozen.inputs, strict=True)
        outputs = zip(sorted(function.structured_outputs), frozen.outputs, strict=True)
        return frozen.graph.as_graph_def(), {key: tensor.name for key, tensor in (*inputs, *outputs)}, "tf2"
    except Exception:
        graph = tf.Graph()
        with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
            meta = tf.compat.v1.saved_model.load(session, job["tags"], job["source"])
            signature = meta.signature_def[job["signature"]]
            ends = {key: info.name for side in (signature.inputs, signature.outputs) for key, info in side.items()}
            nodes = [ends[port["called"]].partition(":")[0] for port in job["outputs"]]
            definition = tf.compat.v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), nodes)
        return definition, ends, "tf1"


def _function(definition: Any, ends: Mapping[str, str], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Return the frozen graph as a function of the declared inputs, with the declared shapes."""
    wanted = [ends[port["called"]] for port in outputs]
    for function in definition.library.function:
        # It counts the variables, which are constants inside by now.
        function.attr.pop("_input_shapes", None)

    def body(*feed: Any) -> list[Any]:
        given = {ends[port["called"]]: tensor for port, tensor in zip(inputs, feed, strict=True)}
        return [tf.identity(tensor) for tensor in tf.import_graph_def(definition, input_map=given, return_elements=wanted, name="")]

    wrapped = tf.compat.v1.wrap_function(body, [_spec(port) for port in inputs])
    return convert_variables_to_constants_v2(wrapped, lower_control_flow=False, aggressive_inlining=True)


def _spec(port: Mapping[str, Any]) -> Any:
    shape = None if port["shape"] is None else [size if isinstance(size, int) else None for size in port["shape"]]
    return tf.TensorSpec(shape, tf.dtypes.as_dtype(port["dtype"]))


def _named(model: Any, ends: Sequence[Sequence[str]], sides: Sequence[Sequence[Mapping[str, Any]]]) -> bytes:
    """Give an ONNX model the declared names, and the declared order."""
    names = [port["name"] for side in sides for port in side]
    rename_onnx(model, dict(zip((*ends[0], *ends[1]), names, strict=True)))
    for side, ports in ((model.graph.input, sides[0]), (model.graph.output, sides[1])):
        by_name = {value.name: value for value in side}
        ordered = [onnx.ValueInfoProto.FromString(by_name[port["name"]].SerializeToString()) for port in ports]
        del side[:]
        side.extend(ordered)
    return bytes(model.SerializeToString())


def _feeds(path: str) -> Iterator[list[Any]]:
    """Yield one list of arrays per sample, in the order of the inputs."""
    yield from (list(row) for row in zip(*read_npz(Path(path)).values(), strict=True))


def _end(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


def _step(tool: str, version: str, **options: Any) -> dict[str, Any]:
    return {"tool": tool, "version": version, "options": options}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_WORDS]
