"""Two ONNX networks for benchmarks, written field by field (onnx.proto), weights from a fixed seed: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def tiny_mlp(*, seed: int, width: int = 64, outputs: int = 10) -> bytes:
    """Input `x` [1, width], output `y` [1, outputs]: two small matrix products, some microseconds."""
    rng = np.random.default_rng(seed)
    nodes = [_node("Gemm", ["x", "w1", "b1"], "h"), _node("Relu", ["h"], "r"), _node("Gemm", ["r", "w2", "b2"], "y")]
    weights = {
        "w1": _weights(rng, width, width),
        "b1": _weights(rng, width),
        "w2": _weights(rng, width, outputs),
        "b2": _weights(rng, outputs),
    }
    return _model(nodes, weights, (1, width), (1, outputs))


def image_network(*, seed: int, outputs: int = 1000) -> bytes:
    """Input `x` [1, 3, 224, 224], output `y` [1, outputs]: five strided convolutions, about 8 MB and 250 million multiplications."""
    rng = np.random.default_rng(seed)
    channels = [3, 32, 64, 128, 256, 512]
    nodes, weights, name = [], {}, "x"
    for number, (before, after) in enumerate(pairwise(channels)):
        weights[f"k{number}"] = _weights(rng, after, before, 3, 3)
        nodes += [
            _node("Conv", [name, f"k{number}"], f"c{number}", pads=[1, 1, 1, 1], strides=[2, 2]),
            _node("Relu", [f"c{number}"], f"r{number}"),
        ]
        name = f"r{number}"
    weights |= {"w": _weights(rng, channels[-1], outputs), "b": _weights(rng, outputs)}
    nodes += [_node("GlobalAveragePool", [name], "p"), _node("Flatten", ["p"], "f"), _node("Gemm", ["f", "w", "b"], "y")]
    return _model(nodes, weights, (1, 3, 224, 224), (1, outputs))


def _weights(rng: np.random.Generator, *shape: int) -> FloatArray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


def _model(nodes: Sequence[bytes], weights: dict[str, FloatArray], inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"bench")
    for name, array in weights.items():
        tensor = b"".join(_number(1, size) for size in array.shape) + _number(2, 1) + _field(8, name.encode()) + _field(9, array.tobytes())
        graph += _field(5, tensor)
    graph += _field(11, _value("x", inputs)) + _field(12, _value("y", outputs))
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 15))


def _value(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_field(1, _number(1, size)) for size in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1) + _field(2, dims)))


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Sequence[int]) -> bytes:
    body = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode()) + _field(4, kind.encode())
    for name, values in attributes.items():
        body += _field(5, _field(1, name.encode()) + b"".join(_number(8, value) for value in values) + _number(20, 7))
    return body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _number(index: int, value: int) -> bytes:
    return _varint(index << 3) + _varint(value)


def _field(index: int, data: bytes) -> bytes:
    return _varint(index << 3 | 2) + _varint(len(data)) + data
