"""Small ONNX and TFLite models written byte by byte, for tests of every part. No `onnx`, no TensorFlow.

`onnx_add`, `onnx_mlp`, `onnx_grid_detector` and `tflite_add` return a whole file; `OnnxModel` builds others. The field numbers are
those of onnx.proto and TFLite's schema.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Dim = int | str | None

ELEMENT = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "complex64": 14, "bfloat16": 16,
}  # fmt: skip


# --- protobuf -----------------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(index: int, value: int) -> bytes:
    return varint(index << 3) + varint(value)


def blob(index: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(index << 3 | 2) + varint(len(data)) + data


# --- ONNX ---------------------------------------------------------------------------------------------------------------------------


def onnx_value(name: str, dtype: str, shape: Sequence[Dim] | None) -> bytes:
    tensor = number(1, ELEMENT[dtype])
    if shape is not None:
        dims = b""
        for dim in shape:
            dims += blob(1, b"" if dim is None else blob(2, dim) if isinstance(dim, str) else number(1, dim))
        tensor += blob(2, dims)
    return blob(1, name) + blob(2, blob(1, tensor))


def onnx_tensor(name: str, array: np.ndarray) -> bytes:
    body = b"".join(number(1, dim) for dim in array.shape) + number(2, ELEMENT[str(array.dtype)])
    return body + blob(8, name) + blob(9, np.ascontiguousarray(array).tobytes())


def onnx_external(name: str, dtype: str, shape: Sequence[int], entries: Mapping[str, str]) -> bytes:
    body = b"".join(number(1, dim) for dim in shape) + number(2, ELEMENT[dtype]) + blob(8, name)
    body += b"".join(blob(13, blob(1, key) + blob(2, value)) for key, value in entries.items())
    return body + number(14, 1)


def onnx_attribute(name: str, value: object) -> bytes:
    body = blob(1, name)
    if isinstance(value, float):
        return body + varint(2 << 3 | 5) + struct.pack("<f", value) + number(20, 1)
    if isinstance(value, int):
        return body + number(3, value) + number(20, 2)
    if isinstance(value, str):
        return body + blob(4, value) + number(20, 3)
    if isinstance(value, np.ndarray):
        return body + blob(5, onnx_tensor("", value)) + number(20, 4)
    if isinstance(value, bytes):
        return body + blob(6, value) + number(20, 5)
    assert isinstance(value, list)
    return body + b"".join(number(8, one) for one in value) + number(20, 7)


def onnx_node(kind: str, inputs: Iterable[str], outputs: Iterable[str], *, domain: str = "", **attributes: object) -> bytes:
    body = b"".join(blob(1, name) for name in inputs) + b"".join(blob(2, name) for name in outputs) + blob(4, kind)
    body += b"".join(blob(5, onnx_attribute(name, value)) for name, value in attributes.items())
    return body + (blob(7, domain) if domain else b"")


def onnx_graph(
    nodes: Iterable[bytes], inputs: Iterable[bytes] = (), outputs: Iterable[bytes] = (), weights: Iterable[bytes] = (), name: str = "g"
) -> bytes:
    return (
        b"".join(blob(1, node) for node in nodes)
        + blob(2, name)
        + b"".join(blob(5, weight) for weight in weights)
        + b"".join(blob(11, value) for value in inputs)
        + b"".join(blob(12, value) for value in outputs)
    )


def onnx_function(name: str, domain: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Iterable[bytes], opset: int) -> bytes:
    body = blob(1, name) + b"".join(blob(4, one) for one in inputs) + b"".join(blob(5, one) for one in outputs)
    return body + b"".join(blob(7, node) for node in nodes) + blob(9, blob(1, "") + number(2, opset)) + blob(10, domain)


@dataclass
class OnnxModel:
    """An ONNX file to be: `bytes(model)` gives it."""

    nodes: list[bytes]
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    weights: list[bytes] = field(default_factory=list)
    ir_version: int = 8
    opsets: dict[str, int] = field(default_factory=lambda: {"": 15})
    functions: list[bytes] = field(default_factory=list)

    def __bytes__(self) -> bytes:
        body = number(1, self.ir_version) + blob(2, "latebind-tests")
        body += blob(7, onnx_graph(self.nodes, self.inputs, self.outputs, self.weights))
        body += b"".join(blob(8, (blob(1, domain) if domain else b"") + number(2, version)) for domain, version in self.opsets.items())
        return body + b"".join(blob(25, function) for function in self.functions)


def onnx_add(shape: Sequence[Dim] = (1, 4), *, constant: float = 1.0, opset: int = 15, ir_version: int = 8) -> bytes:
    """y = x + constant. Input `x`, output `y`, float32. The constant tells versions apart."""
    model = OnnxModel(
        [onnx_node("Add", ["x", "c"], ["y"])],
        [onnx_value("x", "float32", shape)],
        [onnx_value("y", "float32", shape)],
        [onnx_tensor("c", np.array(constant, np.float32))],
        ir_version,
        {"": opset},
    )
    return bytes(model)


def onnx_mlp(inputs: int = 8, hidden: int = 16, outputs: int = 4, *, seed: int = 0, batch: Dim = "batch") -> bytes:
    """softmax(relu(x W1 + b1) W2 + b2). Input `features` [batch, inputs], output `scores` [batch, outputs], float32."""
    random = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> bytes:
        return onnx_tensor(name, (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    model = OnnxModel(
        [
            onnx_node("Gemm", ["features", "w1", "b1"], ["h"]),
            onnx_node("Relu", ["h"], ["r"]),
            onnx_node("Gemm", ["r", "w2", "b2"], ["logits"]),
            onnx_node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        [onnx_value("features", "float32", [batch, inputs])],
        [onnx_value("scores", "float32", [batch, outputs])],
        [weight("w1", inputs, hidden), weight("b1", hidden), weight("w2", hidden, outputs), weight("b2", outputs)],
    )
    return bytes(model)


def onnx_grid_detector(cells: int, boxes: int, classes: int, *, cell_pixels: int = 8, seed: int = 0) -> bytes:
    """A detector in the manner of TinyYOLOv2: one convolution per cell.

    Input `image` float32 [1, S*p, S*p, 3], output `grid` float32 [1, S, S, B*(5+C)] for S `cells`, B `boxes`, C `classes`.
    """
    random = np.random.default_rng(seed)
    channels = boxes * (5 + classes)
    kernel = (random.standard_normal((channels, 3, cell_pixels, cell_pixels)) * 0.05).astype(np.float32)
    side = cells * cell_pixels
    model = OnnxModel(
        [
            onnx_node("Transpose", ["image"], ["chw"], perm=[0, 3, 1, 2]),
            onnx_node("Conv", ["chw", "k", "b"], ["map"], kernel_shape=[cell_pixels] * 2, strides=[cell_pixels] * 2),
            onnx_node("Transpose", ["map"], ["grid"], perm=[0, 2, 3, 1]),
        ],
        [onnx_value("image", "float32", [1, side, side, 3])],
        [onnx_value("grid", "float32", [1, cells, cells, channels])],
        [onnx_tensor("k", kernel), onnx_tensor("b", random.standard_normal(channels).astype(np.float32))],
    )
    return bytes(model)


def onnx_with_external_data(location: str, *, size: int = 4, offset: int = 0) -> bytes:
    """y = x + w with w [size] float32 in the file `location` (`external_weights` gives its bytes)."""
    entries = {"location": location, "offset": str(offset), "length": str(4 * size)}
    model = OnnxModel(
        [onnx_node("Add", ["x", "w"], ["y"])],
        [onnx_value("x", "float32", [1, size])],
        [onnx_value("y", "float32", [1, size])],
        [onnx_external("w", "float32", [size], entries)],
    )
    return bytes(model)


def external_weights(size: int = 4) -> bytes:
    return np.arange(size, dtype=np.float32).tobytes()


# --- TFLite -------------------------------------------------------------------------------------------------------------------------


class FlatWriter:
    """Writes a FlatBuffer front to back: every object is appended, offsets are patched in once their target has its place."""

    def __init__(self, identifier: bytes) -> None:
        self.data = bytearray(4) + identifier

    def align(self, width: int) -> None:
        self.data += bytes(-len(self.data) % width)

    def table(self, fields: Mapping[int, tuple[str, object]]) -> int:
        """Append vtable and table. A field is (struct code, number), or ("offset", None) to be patched; returns the position."""
        slots = max(fields, default=-1) + 1
        sizes = {index: 4 if code == "offset" else struct.calcsize(code) for index, (code, _) in fields.items()}
        self.align(8)
        vtable = len(self.data)
        places, at = {}, 4
        for index in sorted(fields, key=lambda one: -sizes[one]):
            at += -at % sizes[index]
            places[index] = at
            at += sizes[index]
        self.data += struct.pack("<HH", 4 + 2 * slots, at) + b"".join(struct.pack("<H", places.get(i, 0)) for i in range(slots))
        self.align(8)
        position = len(self.data)
        self.data += struct.pack("<i", position - vtable) + bytes(at - 4)
        for index, (code, value) in fields.items():
            if code != "offset":
                struct.pack_into("<" + code, self.data, position + places[index], value)
        return position

    def place(self, table: int, index: int) -> int:
        (back,) = struct.unpack_from("<i", self.data, table)
        (offset,) = struct.unpack_from("<H", self.data, table - back + 4 + 2 * index)
        return table + int(offset)

    def point(self, place: int, target: int) -> None:
        struct.pack_into("<I", self.data, place, target - place)

    def vector(self, code: str, values: Sequence[int] | bytes, align: int = 4) -> int:
        width = struct.calcsize(code)
        while (len(self.data) + 4) % max(align, width):
            self.data.append(0)
        self.align(4)
        position = len(self.data)
        self.data += struct.pack("<I", len(values)) + struct.pack(f"<{len(values)}{code}", *values)
        return position

    def text(self, value: str) -> int:
        position = self.vector("B", value.encode())
        self.data.append(0)
        return position

    def tables(self, count: int) -> int:
        return self.vector("I", [0] * count)


def tflite_metadata(texts: Mapping[int, str]) -> bytes:
    """ModelMetadata of metadata_schema.fbs with these texts by field number."""
    flat = FlatWriter(b"M001")
    fields: dict[int, tuple[str, object]] = dict.fromkeys(texts, ("offset", None))
    table = flat.table(fields)
    flat.point(0, table)
    for index, text in texts.items():
        flat.point(flat.place(table, index), flat.text(text))
    return bytes(flat.data)


def tflite_add(
    size: int = 4,
    *,
    constant: float = 1.0,
    code: int = 0,
    custom: str = "",
    signature: Sequence[int] | None = None,
    loop: bool = False,
    metadata: Mapping[int, str] | None = None,
) -> bytes:
    """y = x + constant, float32 [1, size]. `code` and `custom` choose another operator, `signature` a dynamic shape, `loop` recursion.

    `metadata` are texts of TFLite's ModelMetadata by field: 0 name, 1 description, 2 version, 4 author, 5 license.
    """
    flat = FlatWriter(b"TFL3")
    described: dict[int, tuple[str, object]] = {6: ("offset", None)} if metadata else {}
    model = flat.table({0: ("I", 3), 1: ("offset", None), 2: ("offset", None), 4: ("offset", None), **described})
    flat.point(0, model)

    codes = flat.tables(1)
    flat.point(flat.place(model, 1), codes)
    operator_code = flat.table({0: ("b", min(code, 127)), 2: ("i", 1), 3: ("i", code), **({1: ("offset", None)} if custom else {})})
    flat.point(codes + 4, operator_code)
    if custom:
        flat.point(flat.place(operator_code, 1), flat.text(custom))

    buffers = flat.tables(3 if metadata else 2)
    flat.point(flat.place(model, 4), buffers)
    flat.point(buffers + 4, flat.table({}))
    weights = flat.table({0: ("offset", None)})
    flat.point(buffers + 8, weights)
    flat.point(flat.place(weights, 0), flat.vector("B", struct.pack("<f", constant) * size, align=16))
    if metadata:
        held = flat.table({0: ("offset", None)})
        flat.point(buffers + 12, held)
        flat.point(flat.place(held, 0), flat.vector("B", tflite_metadata(metadata), align=16))
        listed = flat.tables(1)
        flat.point(flat.place(model, 6), listed)
        entry = flat.table({0: ("offset", None), 1: ("I", 2)})
        flat.point(listed + 4, entry)
        flat.point(flat.place(entry, 0), flat.text("TFLITE_METADATA"))

    subgraphs = flat.tables(1)
    flat.point(flat.place(model, 2), subgraphs)
    graph = flat.table({0: ("offset", None), 1: ("offset", None), 2: ("offset", None), 3: ("offset", None)})
    flat.point(subgraphs + 4, graph)
    tensors = flat.tables(3)
    flat.point(flat.place(graph, 0), tensors)
    for index, (name, buffer) in enumerate((("x", 0), ("c", 1), ("y", 0))):
        dynamic = signature is not None and buffer == 0
        fields: dict[int, tuple[str, object]] = {0: ("offset", None), 1: ("b", 0), 2: ("I", buffer), 3: ("offset", None)}
        tensor = flat.table({**fields, **({7: ("offset", None)} if dynamic else {}), 8: ("B", 1)})
        flat.point(tensors + 4 + 4 * index, tensor)
        flat.point(flat.place(tensor, 0), flat.vector("i", [1, size]))
        flat.point(flat.place(tensor, 3), flat.text(name))
        if dynamic:
            assert signature is not None
            flat.point(flat.place(tensor, 7), flat.vector("i", signature))
    flat.point(flat.place(graph, 1), flat.vector("i", [0]))
    flat.point(flat.place(graph, 2), flat.vector("i", [2]))
    operators = flat.tables(1)
    flat.point(flat.place(graph, 3), operators)
    options = {3: ("B", 92 if loop else 11), 4: ("offset", None)}
    operator = flat.table({0: ("I", 0), 1: ("offset", None), 2: ("offset", None), **options})
    flat.point(operators + 4, operator)
    flat.point(flat.place(operator, 1), flat.vector("i", [0, 1]))
    flat.point(flat.place(operator, 2), flat.vector("i", [2]))
    flat.point(flat.place(operator, 4), flat.table({0: ("i", 0), 1: ("i", 0)} if loop else {}))
    flat.align(16)
    return bytes(flat.data)
