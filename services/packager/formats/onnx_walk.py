"""Walks over an ONNX file and gathers what matters: inputs, outputs, operators, external data. `onnx.py` draws the conclusions.

Tensor payloads are skipped; depth, nodes, tensors and names are capped, so that the cost is bounded by the file. Field numbers:
<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>. `training_info` is ignored.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

from services.packager.domain import MAX_DIM, MAX_RANK, Dim, Tensor, is_plain_name, is_symbol, tensor_name
from services.packager.errors import ModelRejected, Reason
from services.packager.formats.protowire import BYTES, VARINT, Buffer, WireError, fields, signed, varint

MAX_DEPTH = 16
MAX_NODES = 200_000
MAX_TENSORS = 200_000
MAX_PORTS = 256
MAX_ELEMENTS = 2**40

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn",
    18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0",
    25: "uint2", 26: "int2",
}  # fmt: skip
_SUPPORTED = frozenset(range(1, 14))
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16, 17: 8, 18: 8,
         19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # fmt: skip


@dataclass(slots=True)
class Gathered:
    """What the walk has gathered so far. Operators are (domain, name); `weight_bits` counts by ONNX element type."""

    data: Buffer
    ir_version: int | None = None
    opset: dict[str, int] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    initializers: set[bytes] = field(default_factory=set)
    calls: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    external: dict[str, int] = field(default_factory=dict)
    weight_bits: Counter[int] = field(default_factory=Counter)
    nodes: int = 0
    tensors: int = 0

    def text(self, a: int, b: int, most: int = 1024) -> str:
        """Decode a short string; operators, domains and symbols are short."""
        if b - a > most:
            raise WireError("a name is far too long")
        try:
            return bytes(self.data[a:b]).decode()
        except UnicodeDecodeError as error:
            raise WireError("a name is not UTF-8") from error


def walk(model: Gathered) -> bool:
    """Walk over the whole file. Return whether there was a graph. Raises `WireError` where the bytes make no sense, `ModelRejected`."""
    seen_graph = False
    for number, kind, a, b in fields(model.data, 0, len(model.data)):
        if number == 1 and kind == VARINT:
            model.ir_version = a
        elif number == 7 and kind == BYTES:
            if seen_graph:
                raise WireError("there are two graphs")
            seen_graph = True
            _graph(model, a, b, 0)
        elif number == 8 and kind == BYTES:
            _opset(model, a, b)
        elif number == 25 and kind == BYTES:
            _function(model, a, b)
        elif number in {1, 7, 8, 25}:
            raise WireError("a field has the wrong type")
    return seen_graph


def canonical(domain: str) -> str:
    """Name the default domain, which has two names, by the empty one."""
    return "" if domain == "ai.onnx" else domain


def _opset(model: Gathered, start: int, end: int) -> None:
    domain, version = "", 0
    for number, kind, a, b in fields(model.data, start, end):
        if number == 1 and kind == BYTES:
            domain = model.text(a, b)
        elif number == 2 and kind == VARINT:
            version = signed(a)
    if not 0 <= version <= 100_000:
        raise WireError("an opset version is out of range")
    domain = canonical(domain)
    model.opset[domain] = max(version, model.opset.get(domain, 0))


def _graph(model: Gathered, start: int, end: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"Graphs are nested more than {MAX_DEPTH} deep.")
    inputs: list[tuple[int, int]] = []
    outputs: list[tuple[int, int]] = []
    for number, kind, a, b in fields(model.data, start, end):
        if kind != BYTES:
            continue
        if number == 1:
            _node(model, a, b, depth)
        elif number == 5:
            _tensor(model, a, b, main=depth == 0)
        elif number == 15:
            _sparse(model, a, b, main=depth == 0)
        elif number == 11 and depth == 0:
            inputs.append((a, b))
        elif number == 12 and depth == 0:
            outputs.append((a, b))
    if depth == 0:
        model.inputs = _ports(model, inputs, "inputs", skip=model.initializers)
        model.outputs = _ports(model, outputs, "outputs", skip=set())


def _function(model: Gathered, start: int, end: int) -> None:
    name = domain = ""
    for number, kind, a, b in fields(model.data, start, end):
        if kind != BYTES:
            continue
        if number == 1:
            name = model.text(a, b)
        elif number == 10:
            domain = model.text(a, b)
        elif number == 7:
            _node(model, a, b, 0)
        elif number == 11:
            _attribute(model, a, b, 0)
    model.functions.add((canonical(domain), name))


def _node(model: Gathered, start: int, end: int, depth: int) -> None:
    model.nodes += 1
    if model.nodes > MAX_NODES:
        raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"The model has more than {MAX_NODES} operators.")
    kind_name = domain = ""
    for number, kind, a, b in fields(model.data, start, end):
        if kind != BYTES:
            continue
        if number == 4:
            kind_name = model.text(a, b)
        elif number == 7:
            domain = model.text(a, b)
        elif number == 5:
            _attribute(model, a, b, depth)
    if not kind_name.isprintable() or not domain.isprintable():
        raise WireError("an operator's name is not printable")
    model.calls.add((canonical(domain), kind_name))


def _attribute(model: Gathered, start: int, end: int, depth: int) -> None:
    for number, kind, a, b in fields(model.data, start, end):
        if kind != BYTES:
            continue
        if number in {6, 11}:
            _graph(model, a, b, depth + 1)
        elif number in {5, 10}:
            _tensor(model, a, b, main=False)
        elif number in {22, 23}:
            _sparse(model, a, b, main=False)


def _sparse(model: Gathered, start: int, end: int, *, main: bool) -> None:
    for number, kind, a, b in fields(model.data, start, end):
        if kind == BYTES and number in {1, 2}:
            _tensor(model, a, b, main=main and number == 1)


def _tensor(model: Gathered, start: int, end: int, *, main: bool) -> None:
    """Check an initializer or a constant: dimensions against the bytes that are there, and where external bytes lie."""
    model.tensors += 1
    if model.tensors > MAX_TENSORS:
        raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"The model has more than {MAX_TENSORS} constant tensors.")
    dims: list[int] = []
    dtype, raw, name, external = 0, None, b"", []
    for number, kind, a, b in fields(model.data, start, end):
        if number == 1:
            dims += [a] if kind == VARINT else _packed(model, a, b)
            if len(dims) > MAX_RANK * 4:
                raise WireError("a constant tensor has too many dimensions")
        elif number == 2 and kind == VARINT:
            dtype = a
        elif number == 8 and kind == BYTES:
            name = bytes(model.data[a : min(b, a + 4096)])
        elif number == 9 and kind == BYTES:
            raw = b - a
        elif number == 13 and kind == BYTES:
            external.append((a, b))
    bits = _count(dims) * _BITS.get(dtype, 0)
    if raw is not None and not external and dtype in _BITS and raw != (bits + 7) // 8:
        raise WireError("a constant tensor has another size than its shape says")
    if external:
        _external(model, external)
    if dtype not in {6, 7, 9, 13}:
        model.weight_bits[dtype] += bits
    if main and name:
        model.initializers.add(name)


def _count(dims: list[int]) -> int:
    if any(dim > MAX_DIM for dim in dims) or prod(dims) > MAX_ELEMENTS:
        raise WireError("a constant tensor has a size that cannot be")
    return prod(dims)


def _packed(model: Gathered, start: int, end: int) -> list[int]:
    values: list[int] = []
    while start < end and len(values) <= MAX_RANK * 4:
        value, start = varint(model.data, start, end)
        values.append(value)
    return values


def _external(model: Gathered, entries: list[tuple[int, int]]) -> None:
    """Gather the location of external data. Every `location` counts, because readers differ on which of several wins."""
    offset = length = 0
    locations: list[str] = []
    for start, end in entries:
        key = value = ""
        for number, kind, a, b in fields(model.data, start, end):
            if kind == BYTES and number == 1:
                key = model.text(a, b)
            elif kind == BYTES and number == 2:
                value = model.text(a, b, most=8192)
        if key == "location":
            locations.append(value)
        elif key in {"offset", "length"}:
            if not value.isascii() or not value.isdigit() or len(value) > 18:
                raise WireError("external data has an offset or length that is not a number")
            offset, length = (int(value), length) if key == "offset" else (offset, int(value))
    for location in locations or [""]:
        if not is_plain_name(location):
            shown = location if location.isprintable() and len(location) <= 200 else "not printable"
            raise ModelRejected(
                Reason.EXTERNAL_DATA_OUTSIDE,
                f'The model keeps tensor data in another file, "{shown}". Only plain names of files uploaded with this variant are '
                'accepted: save the model with its data beside it (onnx.save_model(…, location="model.data")) or inside it.',
            )
        model.external[location] = max(model.external.get(location, 0), offset + length)


def _ports(model: Gathered, places: list[tuple[int, int]], what: str, *, skip: set[bytes]) -> list[Tensor]:
    if len(places) > MAX_PORTS + len(skip):
        raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"The model has more than {MAX_PORTS} {what}.")
    ports = [port for a, b in places if (port := _port(model, a, b, skip)) is not None]
    if len(ports) > MAX_PORTS:
        raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"The model has more than {MAX_PORTS} {what}.")
    if len({port.name for port in ports}) != len(ports):
        raise WireError(f"two {what} have the same name")
    return ports


def _port(model: Gathered, start: int, end: int, skip: set[bytes]) -> Tensor | None:
    raw, kind_at = b"", None
    for number, kind, a, b in fields(model.data, start, end):
        if number == 1 and kind == BYTES:
            raw = bytes(model.data[a : min(b, a + 4096)])
        elif number == 2 and kind == BYTES:
            if kind_at is not None:
                raise WireError("an input or output has two types")
            kind_at = (a, b)
    if raw in skip:
        return None
    name = tensor_name(raw)
    tensor_type: tuple[int, int] | None = None
    for number, kind, a, b in fields(model.data, *(kind_at or (0, 0))):
        if number == 1 and kind == BYTES and tensor_type is None:
            tensor_type = (a, b)
        elif number != 6:
            raise ModelRejected(
                Reason.TENSOR_NOT_SUPPORTED,
                f'"{name}" is a sequence, map, optional or sparse value. Only plain tensors are supported; '
                "for scikit-learn exports switch ZipMap off (options={id(model): {'zipmap': False}}).",
            )
    if tensor_type is None:
        raise WireError("an input or output has no tensor type")
    return _tensor_port(model, name, *tensor_type)


def _tensor_port(model: Gathered, name: str, start: int, end: int) -> Tensor:
    element = 0
    shape: tuple[Dim, ...] | None = None
    for number, kind, a, b in fields(model.data, start, end):
        if number == 1 and kind == VARINT:
            element = a
        elif number == 2 and kind == BYTES:
            if shape is not None:
                raise WireError("an input or output has two shapes")
            shape = tuple(_dim(model, c, d) for n, k, c, d in fields(model.data, a, b) if n == 1 and k == BYTES)
    if element not in _SUPPORTED:
        raise ModelRejected(
            Reason.TENSOR_NOT_SUPPORTED,
            f'"{name}" has the element type {_DTYPES.get(element, "unknown")}, which apps cannot pass. Add a Cast, for example to float32.',
        )
    if shape is not None and len(shape) > MAX_RANK:
        raise ModelRejected(Reason.TENSOR_NOT_SUPPORTED, f'"{name}" has more than {MAX_RANK} dimensions.')
    if shape is not None and prod(dim for dim in shape if isinstance(dim, int)) > MAX_DIM:
        raise ModelRejected(Reason.TENSOR_TOO_LARGE, f'"{name}" has more than {MAX_DIM} elements.')
    return Tensor(name, _DTYPES[element], shape)


def _dim(model: Gathered, start: int, end: int) -> Dim:
    dim: Dim = None
    for number, kind, a, b in fields(model.data, start, end):
        if number == 1 and kind == VARINT:
            value = signed(a)
            if value > MAX_DIM:
                raise ModelRejected(Reason.TENSOR_TOO_LARGE, f"An input or output has a dimension of {value}.")
            # Exporters write -1, and some 0, for a dimension they do not know.
            dim = value if value > 0 else None
        elif number == 2 and kind == BYTES:
            symbol = model.text(a, b)
            # tf2onnx makes up a name for each dimension that it does not know.
            dim = symbol if is_symbol(symbol) and not symbol.startswith("unk__") else None
    return dim
