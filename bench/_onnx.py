"""Two ONNX networks for benchmarks, weights from a fixed seed: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from examples import onnx_writer as onnx

FloatArray = npt.NDArray[np.float32]


def tiny_mlp(*, seed: int, width: int = 64, outputs: int = 10) -> bytes:
    """Input `x` [1, width], output `y` [1, outputs]: two small matrix products, some microseconds."""
    rng = np.random.default_rng(seed)
    nodes = [onnx.node("Gemm", ["x", "w1", "b1"], ["h"]), onnx.node("Relu", ["h"], ["r"]), onnx.node("Gemm", ["r", "w2", "b2"], ["y"])]
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
            onnx.node("Conv", [name, f"k{number}"], [f"c{number}"], pads=[1, 1, 1, 1], strides=[2, 2]),
            onnx.node("Relu", [f"c{number}"], [f"r{number}"]),
        ]
        name = f"r{number}"
    weights |= {"w": _weights(rng, channels[-1], outputs), "b": _weights(rng, outputs)}
    nodes += [onnx.node("GlobalAveragePool", [name], ["p"]), onnx.node("Flatten", ["p"], ["f"]), onnx.node("Gemm", ["f", "w", "b"], ["y"])]
    return _model(nodes, weights, (1, 3, 224, 224), (1, outputs))


def _weights(rng: np.random.Generator, *shape: int) -> FloatArray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


def _model(nodes: Sequence[bytes], weights: dict[str, FloatArray], inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
    tensors = [onnx.tensor(name, array) for name, array in weights.items()]
    return onnx.model(nodes, [onnx.value("x", inputs)], [onnx.value("y", outputs)], tensors)
