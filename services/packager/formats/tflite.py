"""Reads what a package says of a TFLite file: inputs, outputs, operators, runtime version. Does not run it and needs no TensorFlow.

Field indexes follow the order in <https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs>.
Every index into tensors, buffers, operators and subgraphs is checked, subgraph calls must be acyclic, custom operators are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from math import prod

from services.packager.domain import MAX_DIM, MAX_RANK, Dim, Engine, Found, Tensor, tensor_name
from services.packager.errors import ModelRejected, Reason
from services.packager.formats.flatbuffer import Buffer, Flat, FlatError, Table
from services.packager.formats.tflite_operators import NAMES, REFUSED

IDENTIFIER = b"TFL3"

MAX_SUBGRAPHS = 1_000
MAX_OPERATORS = 200_000
MAX_PORTS = 256

_DTYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
    12: "uint64", 15: "uint32", 16: "uint16",
}  # fmt: skip
_BYTES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 8: 8, 9: 1, 10: 8, 11: 16, 12: 8, 15: 4, 16: 2, 18: 2}
_INT4 = frozenset({17, 19, 20})

# BuiltinOptions: operator -> fields of its options table that name subgraphs.
_CALLS = {"IF": (0, 1), "WHILE": (0, 1), "CALL_ONCE": (0,)}

#: (TensorFlow version, LiteRT release that contains it), oldest first.
_RUNTIMES = (((2, 17), "1.0"), ((2, 18), "1.1"), ((2, 19), "1.2"), ((2, 20), "1.4"))


def is_tflite(head: bytes) -> bool:
    """Whether a file that starts with `head` (8 bytes or more) says that it is TFLite."""
    return head[4:8] == IDENTIFIER


def read(data: Buffer, runtime_version: str) -> Found:
    """Read a TFLite model.

    Args:
        data: the file; `is_tflite` holds.
        runtime_version: version of the engine that will run it here; becomes `min_version` for models newer than the known table.

    Raises:
        ModelRejected: cut off, malformed, too complex, data outside the file, or operators or tensor types that are not allowed.
    """
    try:
        return _Reader(data).found(runtime_version)
    except FlatError as error:
        if error.cut:
            raise ModelRejected(
                Reason.MODEL_TRUNCATED, f"The TFLite file is cut off or damaged: {error}. Upload the whole file again."
            ) from error
        raise ModelRejected(Reason.MODEL_MALFORMED, f"The TFLite file is damaged: {error}. Convert the model again.") from error


class _Reader:
    def __init__(self, data: Buffer) -> None:
        model = Flat(data).root()
        self.size = len(data)
        if model.tables(8) or model.tables(9):
            raise ModelRejected(
                Reason.EXTERNAL_DATA_OUTSIDE, "The TFLite model keeps its weights in other files. Convert it to a single .tflite file."
            )
        self.codes = model.tables(1)
        self.subgraphs = model.tables(2)
        self.metadata = model.tables(6)
        if not 0 < len(self.subgraphs) <= MAX_SUBGRAPHS:
            raise FlatError("it has no subgraph, or far too many")
        self.buffers = [self._buffer(table) for table in model.tables(4)]
        self.operators: set[str] = set()
        self.weights: Counter[int] = Counter()
        self.steps = 0

    def found(self, runtime_version: str) -> Found:
        names = [self._operator_name(code) for code in self.codes]
        tensors = [graph.tables(0) for graph in self.subgraphs]
        calls: dict[int, set[int]] = {}
        for index, graph in enumerate(self.subgraphs):
            for tensor in tensors[index]:
                self._check_tensor(tensor)
            calls[index] = self._check_operators(graph, len(tensors[index]), names)
        _check_acyclic(calls)
        inputs = self._ports(self.subgraphs[0].integers(1) or (), tensors[0], "inputs")
        outputs = self._ports(self.subgraphs[0].integers(2) or (), tensors[0], "outputs")
        if not outputs:
            raise FlatError("it has no output")
        wanted = self._min_runtime_version()
        engine = Engine("litert", _min_version(wanted, runtime_version), tuple(sorted(self.operators)), min_runtime_version=wanted)
        return Found("tflite", engine, inputs, outputs, self._precision())

    def _buffer(self, table: Table) -> int:
        _, count = table.vector(0, 1)
        offset, size = table.number(1, "u64"), table.number(2, "u64")
        # Large models put buffers behind the FlatBuffer; 0 and 1 are placeholders.
        if offset > 1 and offset + size > self.size:
            raise FlatError("a buffer reaches over the end", cut=True)
        return size if offset > 1 else count

    def _operator_name(self, code: Table) -> str:
        number = max(code.number(0, "i8"), code.number(3, "i32"))
        if not 0 <= number < len(NAMES):
            raise ModelRejected(
                Reason.ENGINE_TOO_OLD,
                f"The model uses operator {number}, which is newer than this server knows. Convert it with an older converter.",
            )
        name = NAMES[number]
        if name in REFUSED:
            custom = code.raw(1, 1024).decode("ascii", "replace")
            shown = f'the custom operator "{custom}"' if name == "CUSTOM" and custom.isprintable() else f"the operator {name}"
            raise ModelRejected(
                Reason.OPERATOR_NOT_ALLOWED,
                f"The model uses {shown}, which needs more than the standard runtime. Convert it with builtin operators only "
                "(target_spec.supported_ops = [TFLITE_BUILTINS]).",
            )
        return name

    def _check_tensor(self, tensor: Table) -> None:
        shape = tensor.integers(0) or ()
        kind, buffer = tensor.number(1, "i8"), tensor.number(2, "u32")
        if tensor.number(10, "u32"):
            raise ModelRejected(
                Reason.EXTERNAL_DATA_OUTSIDE, "A tensor of the TFLite model lies in another file. Convert it to a single file."
            )
        if len(shape) > MAX_RANK * 4 or any(dim < -1 for dim in shape):
            raise FlatError("a tensor has an impossible shape")
        if buffer >= max(1, len(self.buffers)):
            raise FlatError("a tensor names a buffer that does not exist")
        size = self.buffers[buffer] if self.buffers else 0
        if not size:
            return
        count = prod(shape)
        if any(dim < 0 for dim in shape) or count > self.size * 8:
            raise FlatError("a constant tensor has another size than its shape says")
        if kind in _BYTES and not tensor.has(6) and size != count * _BYTES[kind]:
            raise FlatError("a constant tensor has another size than its shape says")
        if kind not in {2, 4, 5, 6}:
            self.weights[kind] += size

    def _check_operators(self, graph: Table, tensors: int, names: list[str]) -> set[int]:
        called: set[int] = set()
        steps = graph.tables(3)
        self.steps += len(steps)
        if self.steps > MAX_OPERATORS:
            raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"The model has more than {MAX_OPERATORS} operators.")
        for step in steps:
            code = step.number(0, "u32")
            if code >= len(names):
                raise FlatError("a step names an operator that does not exist")
            for field in (1, 2, 8):
                if any(not -1 <= tensor < tensors for tensor in step.integers(field) or ()):
                    raise FlatError("a step names a tensor that does not exist")
            self.operators.add(names[code])
            called |= self._called(step, names[code])
        for field in (1, 2):
            if any(not 0 <= tensor < tensors for tensor in graph.integers(field) or ()):
                raise FlatError("a subgraph names a tensor that does not exist")
        return called

    def _called(self, step: Table, name: str) -> set[int]:
        options, fields = (step.table(12), (1,)) if name == "STABLEHLO_COMPOSITE" else (step.table(4), _CALLS.get(name, ()))
        if not fields:
            return set()
        if options is None:
            raise FlatError(f"{name} does not say which subgraph it runs")
        called = {options.number(field, "i32") for field in fields}
        if any(not 0 <= index < len(self.subgraphs) for index in called):
            raise FlatError(f"{name} names a subgraph that does not exist")
        return called

    def _ports(self, indexes: tuple[int, ...], tensors: list[Table], what: str) -> tuple[Tensor, ...]:
        if len(indexes) > MAX_PORTS:
            raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"The model has more than {MAX_PORTS} {what}.")
        ports = tuple(_port(tensors[index]) for index in indexes)
        if len({port.name for port in ports}) != len(ports):
            raise FlatError(f"two {what} have the same name")
        return ports

    def _min_runtime_version(self) -> str | None:
        for entry in self.metadata:
            if entry.raw(0, 1024) != b"min_runtime_version":
                continue
            text = self._buffer_bytes(entry.number(1, "u32")).split(b"\0")[0].decode("ascii", "replace")
            return text if re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", text) else None
        return None

    def _buffer_bytes(self, index: int) -> bytes:
        flat = self.subgraphs[0].flat
        buffers = flat.root().tables(4)
        if index >= len(buffers):
            raise FlatError("the metadata names a buffer that does not exist")
        return buffers[index].raw(0, 64) if buffers[index].vector(0, 1)[1] <= 64 else b""

    def _precision(self) -> str:
        names = {0: "fp32", 1: "fp16", 3: "int8", 9: "int8", 7: "int16", 10: "fp64", 18: "bf16"} | dict.fromkeys(_INT4, "int4")
        sums: Counter[str] = Counter()
        for kind, size in self.weights.items():
            sums[names.get(kind, "fp32")] += size
        return max(sums, key=lambda name: sums[name]) if sums else "fp32"


def _port(tensor: Table) -> Tensor:
    name = tensor_name(tensor.raw(3, 4096))
    kind = tensor.number(1, "i8")
    if kind not in _DTYPES:
        raise ModelRejected(
            Reason.TENSOR_NOT_SUPPORTED,
            f'"{name}" has an element type that apps cannot pass. Convert the model with float or integer inputs and outputs.',
        )
    fixed = tensor.integers(0) or ()
    signature = tensor.integers(7)
    shape = signature if signature is not None and len(signature) == len(fixed) else fixed
    if len(shape) > MAX_RANK:
        raise ModelRejected(Reason.TENSOR_NOT_SUPPORTED, f'"{name}" has more than {MAX_RANK} dimensions.')
    if prod(dim for dim in shape if dim > 0) > MAX_DIM:
        raise ModelRejected(Reason.TENSOR_TOO_LARGE, f'"{name}" has more than {MAX_DIM} elements.')
    dims: tuple[Dim, ...] = tuple(dim if dim > 0 else None for dim in shape)
    unranked = not shape and not tensor.number(8, "u8")
    return Tensor(name, _DTYPES[kind], None if unranked else dims)


def _check_acyclic(calls: dict[int, set[int]]) -> None:
    """Refuse subgraphs that run themselves, directly or through others: an interpreter would never return (CVE-2021-29591)."""
    done: set[int] = set()
    for start, first in calls.items():
        path: list[tuple[int, list[int]]] = [(start, sorted(first))]
        on_path = {start}
        while path:
            node, rest = path[-1]
            if not rest or node in done:
                path.pop()
                on_path.discard(node)
                done.add(node)
                continue
            following = rest.pop()
            if following in on_path:
                raise FlatError("a subgraph runs itself")
            if following not in done:
                on_path.add(following)
                path.append((following, sorted(calls[following])))


def _min_version(wanted: str | None, runtime_version: str) -> str:
    if wanted is None:
        return "1.0"
    major, minor = (int(part) for part in wanted.split(".")[:2])
    return next((release for version, release in _RUNTIMES if (major, minor) <= version), runtime_version)
