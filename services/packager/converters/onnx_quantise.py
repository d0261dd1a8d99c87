"""Eight-bit forms of an ONNX graph: static (QDQ) with the owner's samples, dynamic without.

The calibration is ours: minimum and maximum of each activation are reduced inside the graph, so that a run returns two numbers per
tensor, and samples go in whole batches where the graph's first dimension is free (PERF-P2). What is quantised how is ONNX Runtime's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry

from services.packager.converters.arrays import read_npz

_BATCH = 16


def quantise(model: onnx.ModelProto, calibration: str | None) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the eight-bit form and the options that made it. `calibration`: .npz with one array per input, samples on the first axis."""
    model = onnx.shape_inference.infer_shapes(model)
    if calibration is None:
        return _dynamic(model), {"form": "dynamic"}
    columns = read_npz(Path(calibration))
    operators = sorted(QDQRegistry)
    ranges = TensorsData(CalibrationMethod.MinMax, calibrate(model, columns, set(operators)))
    options = {"ActivationSymmetric": False, "WeightSymmetric": True}
    quantiser = QDQQuantizer(model, True, False, QuantType.QInt8, QuantType.QInt8, ranges, [], [], operators, options)
    quantiser.quantize_model()
    samples = min(len(column) for column in columns.values())
    return quantiser.model.model, {"form": "qdq", "per_channel": True, "samples": samples, "method": "min-max"}


def calibrate(model: onnx.ModelProto, columns: dict[str, Any], operators: set[str]) -> dict[str, tuple[Any, Any]]:
    """Return minimum and maximum of every float tensor that an operator of `operators` takes or gives, over all samples."""
    names = _activations(model, operators)
    augmented = onnx.ModelProto.FromString(model.SerializeToString())
    del augmented.graph.output[:]
    for index, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax"):
            augmented.graph.node.append(helper.make_node(operator, [name], [f"{operator}_{index}__range"], keepdims=0))
            augmented.graph.output.append(helper.make_tensor_value_info(f"{operator}_{index}__range", TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(augmented.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.stack([np.stack(session.run(None, feed)) for feed in _batches(model, columns)])
    lowest, highest = rows[:, 0::2].min(axis=0), rows[:, 1::2].max(axis=0)
    return {name: (low, high) for name, low, high in zip(names, lowest, highest, strict=True)}


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
