"""Quantises a small network as the packager does and as ONNX Runtime does, and compares the graphs. Run by the environment `onnx`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[3]))

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry

from services.packager.converters.onnx_quantise import quantise


def network() -> onnx.ModelProto:
    """Activations behind convolutions that nobody else reads, that others read too, that follow each other, and that stand alone."""
    rng = np.random.default_rng(7)
    weights = {f"k{number}": rng.standard_normal((8, 8, 3, 3)).astype(np.float32) for number in range(5)}
    weights["k1"][3] = 0  # a channel of zeros
    weights |= {"low": np.float32(-1), "high": np.float32(6), "w": rng.standard_normal((8, 4)).astype(np.float32)}
    conv = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["c0"], **conv),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "k1"], ["c1"], **conv),
        helper.make_node("Clip", ["c1", "low", "high"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], **conv),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Add", ["r2", "c2"], ["a2"]),
        helper.make_node("Conv", ["a2", "k3"], ["c3"], **conv),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("Clip", ["r3", "", "high"], ["l3"]),
        helper.make_node("Relu", ["l3"], ["s3"]),
        helper.make_node("Sigmoid", ["s3"], ["g3"]),
        helper.make_node("Conv", ["g3", "k4"], ["c4"], **conv),
        helper.make_node("GlobalAveragePool", ["c4"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 12, 12])], [helper.make_tensor_value_info("y", 1, [1, 4])]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(array, name) for name, array in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Any) -> None:
        self.feeds = iter([{"x": one} for one in samples])

    def get_next(self) -> Any:
        return next(self.feeds, None)


def parts(model: onnx.ModelProto) -> tuple[list[Any], dict[str, Any]]:
    nodes = sorted((node.op_type, list(node.input), list(node.output)) for node in model.graph.node)
    return nodes, {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def main(folder: Path) -> None:
    samples = np.random.default_rng(8).standard_normal((6, 1, 8, 12, 12)).astype(np.float32)
    np.savez(folder / "samples.npz", x=samples)
    onnx.save(network(), folder / "source.onnx")
    ours, how = quantise(network(), str(folder / "samples.npz"))
    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "op_types_to_quantize": sorted(QDQRegistry)}
    quantize_static(
        folder / "source.onnx", folder / "static.onnx", Reader(samples), quant_format=QuantFormat.QDQ, per_channel=True, **kinds
    )
    assert how["form"] == "qdq" and how["samples"] == 6
    (nodes, values), (their_nodes, their_values) = parts(ours), parts(onnx.load(folder / "static.onnx"))
    assert nodes == their_nodes, (nodes, their_nodes)
    assert values.keys() == their_values.keys() and sum(name.endswith("_scale") for name in values) > 15
    for name, value in values.items():
        assert value.dtype == their_values[name].dtype and value.shape == their_values[name].shape, name
        assert np.allclose(value, their_values[name], rtol=1e-4, atol=1e-7), (name, value, their_values[name])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
