"""Writes small ONNX files byte by byte, so that an example needs no modelling package.

Only what the examples use: float32 and int64 weights, float and integer attributes. Field numbers are those of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Nothing here checks a graph; the runtime and the packager do.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

Dim = int | str

_ELEMENT_TYPES = {"float32": 1, "int64": 7}
_INT, _FLOAT, _STRING, _INTS = 2, 1, 3, 7


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: float | int | str | Sequence[int]) -> bytes:
    """A NodeProto. An empty input name leaves an optional input out."""
    parts = [_bytes(1, name.encode()) for name in inputs] + [_bytes(2, name.encode()) for name in outputs]
    parts.append(_bytes(4, kind.encode()))
    parts += [_bytes(5, _attribute(name, value)) for name, value in attributes.items()]
    return b"".join(parts)


def tensor(name: str, array: np.ndarray) -> bytes:
    """A TensorProto that holds weights or a constant."""
    dims = b"".join(_int(1, size) for size in array.shape)
    kind = _ELEMENT_TYPES[str(array.dtype)]
    return dims + _int(2, kind) + _bytes(8, name.encode()) + _bytes(9, np.ascontiguousarray(array).tobytes())


def value(name: str, shape: Sequence[Dim], dtype: str = "float32") -> bytes:
    """A ValueInfoProto: an input or output of the graph. A text in `shape` names a dimension that is open."""
    dims = b"".join(_bytes(1, _int(1, size) if isinstance(size, int) else _bytes(2, size.encode())) for size in shape)
    tensor_type = _int(1, _ELEMENT_TYPES[dtype]) + _bytes(2, dims)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor_type))


def model(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], weights: Sequence[bytes], *, opset: int = 15, ir: int = 8
) -> bytes:
    """A whole ModelProto file. IR 8 with opset 15 runs on every ONNX Runtime since 2021."""
    graph = [_bytes(1, one) for one in nodes] + [_bytes(2, b"latebind-example")] + [_bytes(5, one) for one in weights]
    graph += [_bytes(11, one) for one in inputs] + [_bytes(12, one) for one in outputs]
    return _int(1, ir) + _bytes(2, b"latebind-examples") + _bytes(7, b"".join(graph)) + _bytes(8, _int(2, opset))


def _attribute(name: str, given: float | int | str | Sequence[int]) -> bytes:
    head = _bytes(1, name.encode())
    if isinstance(given, str):
        return head + _bytes(4, given.encode()) + _int(20, _STRING)
    if isinstance(given, int):
        return head + _int(3, given) + _int(20, _INT)
    if isinstance(given, float):
        return head + _varint(2 << 3 | 5) + struct.pack("<f", given) + _int(20, _FLOAT)
    return head + b"".join(_int(8, one) for one in given) + _int(20, _INTS)


def _int(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number & (1 << 64) - 1)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))
