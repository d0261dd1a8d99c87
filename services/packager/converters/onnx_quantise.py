"""Eight-bit forms of an ONNX graph: static (QDQ) with the owner's samples, dynamic without.

The calibration is ours: minimum and maximum of each activation are reduced inside the graph, so that a run returns two numbers per
tensor, where the quantiser asks for them at all, and samples go in whole batches where the graph's first dimension is free (PERF-P2).
What is quantised how is ONNX Runtime's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType, qdq_quantizer, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX, add_infer_metadata, quantize_onnx_initializer
from onnxruntime.quantization.registry import QDQRegistry

from services.packager.converters.arrays import read_npz

_BATCH = 16
_NOT_NEGATIVE = {"Relu", "Sigmoid", "Softmax"}


def quantise(model: onnx.ModelProto, calibration: str | None) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the eight-bit form and the options that made it. `calibration`: .npz with one array per input, samples on the first axis."""
    model = onnx.shape_inference.infer_shapes(model)
    if calibration is None:
        return _dynamic(model), {"form": "dynamic"}
    columns = read_npz(Path(calibration))
    operators = sorted(QDQRegistry)
    ranges = TensorsData(CalibrationMethod.MinMax, calibrate(model, columns, set(operators)))
    options = {"ActivationSymmetric": False, "WeightSymmetric": True}
    add_infer_metadata(model)  # or the quantiser infers the shapes again
    quantiser = _Quantiser(model, True, False, QuantType.QInt8, QuantType.QInt8, ranges, [], [], operators, options)
    quantiser.quantize_model()
    made = quantiser.model.model
    kept = [entry for entry in made.metadata_props if entry.key != "onnx.infer"]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)
    samples = min(len(column) for column in columns.values())
    return made, {"form": "qdq", "per_channel": True, "samples": samples, "method": "min-max"}


def calibrate(model: onnx.ModelProto, columns: dict[str, Any], operators: set[str]) -> dict[str, tuple[Any, Any]]:
    """Return minimum and maximum of every float tensor that an operator of `operators` takes or gives, over all samples."""
    names = _activations(model, operators)
    folded = _folded(model, set(names))
    # Zero is in every range that is quantised: a minimum above it says nothing.
    floors = {name for node in model.graph.node if node.op_type in _NOT_NEGATIVE for name in node.output}
    asked = [("ReduceMax", name) for name in names if name not in folded]
    asked += [("ReduceMin", name) for name in names if name not in folded and name not in floors]
    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    del augmented.graph.output[:]
    for index, (operator, name) in enumerate(asked):
        augmented.graph.node.append(helper.make_node(operator, [name], [f"{index}__range"], keepdims=0))
        augmented.graph.output.append(helper.make_tensor_value_info(f"{index}__range", TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(augmented.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.stack([np.stack(session.run(None, feed)) for feed in _batches(model, columns)])
    found = {one: column.min() if one[0] == "ReduceMin" else column.max() for one, column in zip(asked, rows.T, strict=True)}
    ranges = {name: (found.get(("ReduceMin", name), np.float32(0)), found["ReduceMax", name]) for name in names if name not in folded}
    for name in reversed(folded):
        ranges[name] = ranges[folded[name]]
    return ranges


def _quantised(weight: TensorProto, kind: int, zero_point: Any, scale: Any, axis: int | None = None, **more: Any) -> TensorProto:
    """Quantise a constant, all channels at once; what is not by channel to eight bits is left to the runtime."""
    if axis is None or kind != TensorProto.INT8 or any(more.values()):
        return quantize_onnx_initializer(weight, kind, zero_point, scale, axis, **more)
    data = numpy_helper.to_array(weight)
    sides = [size if place == axis else 1 for place, size in enumerate(data.shape)]
    values = np.rint(data.astype(np.float32) / scale.reshape(sides)) + zero_point.reshape(sides)
    return numpy_helper.from_array(np.clip(values, -128, 127).astype(np.int8), f"{weight.name}{TENSOR_NAME_QUANT_SUFFIX}")


# The quantiser looks this name up in its module. Its own goes over the channels one by one, which takes longer than the rest of it.
qdq_quantizer.quantize_onnx_initializer = _quantised


class _Quantiser(qdq_quantizer.QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's, with the scales of weights computed for all channels at once; its own loop takes as long as the calibration."""

    def _calc_initializer_quant_params(self) -> Any:
        weights = {one.name: one for one in self.model.initializer()}
        for name, tensor in self.tensors_to_quantize.items():
            if name in weights and tensor.axis is not None and weights[name].data_type == TensorProto.FLOAT:
                self.tensor_quant_overrides[name] = _channels(numpy_helper.to_array(weights[name]), tensor.axis)
        return super()._calc_initializer_quant_params()


def _channels(weight: Any, axis: int) -> list[dict[str, Any]]:
    """Return scale and zero point of each channel, symmetric to ±127; one where a channel is all but zero, as the runtime does."""
    largest = np.abs(weight).max(axis=tuple(other for other in range(weight.ndim) if other != axis % weight.ndim), initial=0)
    scales = 2 * largest.astype(np.float64) / 254
    scales[scales < np.finfo(np.float32).tiny] = 1
    return [{"axis": axis, "scale": scale, "zero_point": 0} for scale in scales.astype(np.float32)]


def _folded(model: onnx.ModelProto, known: set[str]) -> dict[str, str]:
    """Map what only a Relu or Clip reads to what that gives: the quantiser drops the operator and takes the range behind it.

    Not asking for these ranges also leaves the runtime free to fuse the operator. In the order of the graph.
    """
    graph = model.graph
    ends = {value.name for value in (*graph.input, *graph.output)}
    readers: dict[str, int] = {}
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return {}  # an inner graph may read any value
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    return {
        node.input[0]: node.output[0]
        for node in graph.node
        if node.op_type in {"Relu", "Clip"} and readers[node.input[0]] == 1 and node.input[0] not in ends and node.output[0] in known
    }


def _activations(model: onnx.ModelProto, operators: set[str]) -> list[str]:
    graph = model.graph
    constants = {one.name for one in graph.initializer} | {
        name for node in graph.node if node.op_type == "Constant" for name in node.output
    }
    floats = {
        value.name for value in (*graph.input, *graph.output, *graph.value_info) if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    used = (name for node in graph.node if node.op_type in operators for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(used) if name in floats - constants]


def _batches(model: onnx.ModelProto, columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Join samples whose first dimension is one, when all inputs leave it open; else give them one by one."""
    free = all(
        value.type.tensor_type.shape.dim and not value.type.tensor_type.shape.dim[0].HasField("dim_value")
        for value in model.graph.input
        if value.name in columns
    )
    count = min(len(column) for column in columns.values())
    joinable = free and all(column.ndim > 1 and column.shape[1] == 1 for column in columns.values())
    for start in range(0, count, _BATCH if joinable else 1):
        if joinable:
            yield {name: column[start : start + _BATCH, 0] for name, column in columns.items()}
        else:
            yield {name: column[start] for name, column in columns.items()}


def _dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    # Convolutions have only the unsigned form on most processors.
    kind = QuantType.QUInt8 if any(node.op_type == "Conv" for node in model.graph.node) else QuantType.QInt8
    with tempfile.TemporaryDirectory(dir="tmp") as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(model, before)
        quantize_dynamic(before, after, weight_type=kind)
        return onnx.load(after)
