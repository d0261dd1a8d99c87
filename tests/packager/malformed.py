"""Malformed models (SEC-B1): classes made by hand, and mutants of good models by number. `make fuzz` runs many, the suite a few hundred."""

from __future__ import annotations

import random
import struct
import zipfile
from collections.abc import Iterator
from io import BytesIO

import numpy as np

from tests import models as m

_PLACES = (
    "/etc/passwd", "../secret", "a/../../secret", "\\\\server\\share", "file:///etc/passwd", "C:\\secret", "/proc/self/mem", "", ".",
    "x" * 5000,
)  # fmt: skip


def _one(node: bytes, *, shape: list[m.Dim] | None = None, out: str = "y", **more: object) -> bytes:
    return bytes(
        m.OnnxModel(
            [node],
            [m.onnx_value("x", "float32", [1, 4] if shape is None else shape)],
            [m.onnx_value(out, "float32", None)],
            **more,  # type: ignore[arg-type]
        )
    )


def _weights(raw: bytes, dims: list[int], kind: int = 1) -> bytes:
    """A model whose constant has these bytes, dimensions and element type."""
    body = b"".join(m.number(1, dim) for dim in dims) + m.number(2, kind) + m.blob(8, "c") + m.blob(9, raw)
    return _one(m.onnx_node("Add", ["x", "c"], ["y"]), weights=[body])


def _nested(depth: int) -> bytes:
    graph = m.onnx_graph([m.onnx_node("Identity", ["x"], ["z"])], outputs=[m.onnx_value("z", "float32", None)])
    for _ in range(depth):
        inner = m.onnx_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph if depth < 12 else b"")
        graph = m.onnx_graph([inner], outputs=[m.onnx_value("z", "float32", None)])
    return bytes(m.OnnxModel([m.onnx_node("If", ["c"], ["y"], then_branch=graph)], [m.onnx_value("x", "float32", [1])]))


def _archive(name: str) -> bytes:
    place = BytesIO()
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return place.getvalue()


def hand_made() -> dict[str, bytes]:
    """Return one model per class of fault, by its name."""
    good, flat = m.onnx_add(), m.tflite_add(4)
    big = np.iinfo(np.int64).max
    shape = m.onnx_tensor("s", np.array([1 << 20, 1 << 20], np.int64))
    return {
        # Files that are no models.
        "nothing": b"",
        "one byte": b"\x08",
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        "text": b"model: yolo\n" * 50,
        "json": b'{"model": []}',
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "zip": _archive("../../evil"),
        "elf": b"\x7fELF" + bytes(200),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(500),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "torch": _archive("archive/data.pkl"),
        "numpy": b"\x93NUMPY\x01\x00" + b"\xff" * 60,
        "script": b"#!/bin/sh\nreboot\n",
        # Protobuf: lengths, varints, wire types.
        "endless varint": b"\xff" * 30,
        "varint of eleven bytes": b"\x08" + b"\x80" * 10 + b"\x01",
        "length past the end": b"\x3a\xff\xff\xff\x7f",
        "length that is negative": b"\x3a" + m.varint(2**64 - 1),
        "field zero": b"\x00\x01" + good,
        "groups": b"\x3b" * 50_000,
        "unknown wire type": b"\x3e" + good,
        "graph twice": good + good,
        "graph as a number": m.number(1, 8) + m.number(7, 5),
        "a million empty fields": b"\x12\x00" * 1_000_000,
        "unknown fields": m.blob(900, b"x" * 1000) + good,
        "model inside a model": m.blob(7, good),
        "cut in the weights": m.onnx_mlp(8, 16, 4)[:-100],
        "cut in the head": good[:20],
        "rubbish behind": good + b"\xff\xff\xff",
        "rubbish before": b"\xff\xff" + good,
        # ONNX: versions, names, shapes.
        "ir of the future": m.onnx_add(ir_version=2**31 - 1),
        "ir zero": m.onnx_add(ir_version=0),
        "opset of the future": m.onnx_add(opset=10_000),
        "opset negative": m.onnx_add(opset=2**64 - 5),
        "no opset": _one(m.onnx_node("Relu", ["x"], ["y"]), opsets={}),
        "no nodes": bytes(m.OnnxModel([])),
        "no outputs": bytes(m.OnnxModel([m.onnx_node("Relu", ["x"], ["y"])])),
        "unknown operator": _one(m.onnx_node("Nope", ["x"], ["y"])),
        "foreign domain": _one(m.onnx_node("Run", ["x"], ["y"], domain="evil")),
        "operator without a name": _one(m.onnx_node("", ["x"], ["y"])),
        "operator with a long name": _one(m.onnx_node("A" * 100_000, ["x"], ["y"])),
        "python operator": _one(m.onnx_node("PyOp", ["x"], ["y"], domain="com.microsoft", module="os", compute="system")),
        "context of another engine": _one(m.onnx_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")),
        "input that is not there": _one(m.onnx_node("Relu", ["ghost"], ["y"])),
        "a cycle": _one(m.onnx_node("Add", ["x", "y"], ["y"])),
        "output that is not there": _one(m.onnx_node("Relu", ["x"], ["z"])),
        "name with zero bytes": _one(m.onnx_node("Relu", ["x\0"], ["y"])),
        "name that is not text": _one(m.onnx_node("Relu", ["x"], ["y"])).replace(b"latebind-tests", b"\xff\xfe" * 7),
        "input of a million": _one(m.onnx_node("Relu", ["x"], ["y"]), shape=[2**20, 2**20]),
        "dimension negative": _one(m.onnx_node("Relu", ["x"], ["y"]), shape=[2**64 - 4]),
        "dimension zero": _one(m.onnx_node("Relu", ["x"], ["y"]), shape=[0, 0]),
        "dimension huge": _one(m.onnx_node("Relu", ["x"], ["y"]), shape=[int(big)]),
        "sixty dimensions": _one(m.onnx_node("Relu", ["x"], ["y"]), shape=[1] * 60),
        # ONNX: weights.
        "fewer bytes than the shape": _weights(bytes(4), [1, 4]),
        "more bytes than the shape": _weights(bytes(400), [1, 4]),
        "shape that overflows": _weights(bytes(16), [2**33, 2**33]),
        "shape that is negative": _weights(bytes(16), [2**64 - 1, 4]),
        "unknown element type": _weights(bytes(16), [1, 4], 99),
        "element type zero": _weights(bytes(16), [1, 4], 0),
        "strings as raw bytes": _weights(bytes(16), [1, 4], 8),
        # ONNX: work and nesting.
        "memory without end": _one(m.onnx_node("ConstantOfShape", ["s"], ["y"]), weights=[shape]),
        "graphs nested ten deep": _nested(10),
        "graphs nested a hundred deep": _nested(100),
        "attribute of the wrong kind": _one(m.onnx_node("Softmax", ["x"], ["y"], axis="one")),
        "axis out of range": _one(m.onnx_node("Softmax", ["x"], ["y"], axis=10**9)),
        "kernel of zero": _one(m.onnx_node("MaxPool", ["x"], ["y"], kernel_shape=[0, 0]), shape=[1, 1, 4, 4]),
        "stride of zero": _one(m.onnx_node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1], strides=[0, 0]), shape=[1, 1, 4, 4]),
        "pads that overflow": _one(
            m.onnx_node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1], pads=[2**31, 2**31, 1, 1]), shape=[1, 1, 4, 4]
        ),
        "endless loop": _one(m.onnx_node("Loop", ["", ""], ["y"], body=m.onnx_graph([], name="b"))),
        "function that calls itself": _one(
            m.onnx_node("f", ["x"], ["y"], domain="own"),
            functions=[m.onnx_function("f", "own", ["x"], ["y"], [m.onnx_node("f", ["x"], ["y"], domain="own")], 15)],
            opsets={"": 15, "own": 1},
        ),
        # External data.
        **{f"external data at {place[:20]!r}": m.onnx_with_external_data(place) for place in _PLACES},
        # TFLite: the flat buffer.
        "tflite without an end": flat[:40],
        "tflite root past the end": struct.pack("<I", 2**31 - 1) + flat[4:],
        "tflite root negative": struct.pack("<i", -8) + flat[4:],
        "tflite root at itself": struct.pack("<I", 0) + flat[4:],
        "tflite identifier alone": b"\x08\0\0\0TFL3",
        "tflite that loops": m.tflite_add(4, loop=True),
        "tflite custom operator": m.tflite_add(4, code=32, custom="Evil"),
        "tflite unknown operator": m.tflite_add(4, code=9999),
        "tflite signature negative": m.tflite_add(4, signature=[-5, -7]),
        "tflite signature of another rank": m.tflite_add(4, signature=[-1, 4, 4]),
    }


def mutants(seed: int = 20261122) -> Iterator[bytes]:
    """Yield mutants without end: cut, flipped, filled in, overwritten. A mutant may well be a good model."""
    chance = random.Random(seed)
    seeds = [
        m.onnx_add(),
        m.onnx_mlp(4, 4, 2),
        m.onnx_grid_detector(2, 1, 1, cell_pixels=2),
        m.tflite_add(4),
        m.tflite_add(8, signature=[-1, 8]),
    ]
    number = 0
    while True:
        data = bytearray(seeds[number % len(seeds)])
        kind = number // len(seeds) % 5
        place = chance.randrange(max(1, len(data) - 4))
        if kind == 0:
            del data[chance.randrange(len(data)) :]
        elif kind == 1:
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[place:place] = chance.randbytes(chance.randint(1, 64))
        elif kind == 3:
            struct.pack_into("<I", data, place, chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, chance.randrange(2**32)]))
        else:  # a piece of one model in another
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            data[place : place + 16] = other[start : start + chance.randint(1, 64)]
        number += 1
        yield bytes(data)
