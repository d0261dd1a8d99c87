"""Reads the signatures of a SavedModel: names, tensors, types and shapes of its inputs and outputs. TensorFlow is not needed.

Field numbers: MetaGraphDef and SignatureDef in <https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/meta_graph.proto>.
The operators are judged by `tensorflow.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.packager.domain import MAX_RANK, Dim, Tensor, tensor_name
from services.packager.errors import ModelRejected, Reason
from services.packager.formats.protowire import BYTES, VARINT, Buffer, WireError, fields, signed

#: The signature that TensorFlow's exporters write when nobody says otherwise.
DEFAULT_SIGNATURE = "serving_default"

MAX_SIGNATURES = 100
MAX_PORTS = 256
_INIT = "__saved_model_init_op"
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 9: "int64", 10: "bool", 17: "uint16",
    19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip


@dataclass(slots=True)
class Signature:
    """One way to call a SavedModel; the tensors have the signature's names."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _Meta:
    tags: list[str] = field(default_factory=list)
    signatures: dict[str, Signature] = field(default_factory=dict)


def read_signature(data: Buffer) -> tuple[str, tuple[str, ...], Signature]:
    """Return the signature to serve, by its key, and the tags of its graph.

    Raises `ModelRejected`: there is none or more than one could be meant, or an end has a type that apps cannot pass; `WireError`.
    """
    metas = [_meta(data, a, b) for number, kind, a, b in fields(data, 0, len(data)) if (number, kind) == (2, BYTES)]
    meta = next((one for one in metas if "serve" in one.tags), metas[0] if metas else _Meta())
    usable = {key: one for key, one in meta.signatures.items() if one.outputs}
    key = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in usable else next(iter(usable)) if len(usable) == 1 else None
    if key is None:
        have = ", ".join(sorted(usable)) or "none"
        raise ModelRejected(
            Reason.GRAPH_NODES_NEEDED,
            f'The SavedModel has no signature "{DEFAULT_SIGNATURE}" (it has: {have}). Export it with one: '
            "tf.saved_model.save(model, path, signatures=model.call.get_concrete_function(…)), or model.export(path) in Keras.",
        )
    return key, tuple(meta.tags), usable[key]


def _meta(data: Buffer, start: int, end: int) -> _Meta:
    """MetaGraphDef: meta_info_def = 1 (tags = 4), signature_def = 5."""
    meta = _Meta()
    for number, kind, a, b in fields(data, start, end):
        if (number, kind) == (1, BYTES):
            meta.tags += [_text(data, c, d) for inner, form, c, d in fields(data, a, b) if (inner, form) == (4, BYTES)]
        elif (number, kind) == (5, BYTES):
            key, value = _entry(data, a, b)
            if key != _INIT:
                meta.signatures[key] = _signature(data, *value)
            if len(meta.signatures) > MAX_SIGNATURES:
                raise WireError("far too many signatures")
    return meta


def _signature(data: Buffer, start: int, end: int) -> Signature:
    """SignatureDef: inputs = 1, outputs = 2, both maps of name to TensorInfo."""
    signature = Signature()
    for number, kind, a, b in fields(data, start, end):
        if kind == BYTES and number in {1, 2}:
            key, value = _entry(data, a, b)
            side = signature.inputs if number == 1 else signature.outputs
            side.append(_tensor(data, key, *value))
            if len(side) > MAX_PORTS:
                raise ModelRejected(Reason.MODEL_TOO_COMPLEX, f"A signature has more than {MAX_PORTS} inputs or outputs.")
    # A map has no order of its own.
    signature.inputs.sort(key=lambda tensor: tensor.name)
    signature.outputs.sort(key=lambda tensor: tensor.name)
    return signature


def _entry(data: Buffer, start: int, end: int) -> tuple[str, tuple[int, int]]:
    key, value = "", (end, end)
    for number, kind, a, b in fields(data, start, end):
        if (number, kind) == (1, BYTES):
            key = _text(data, a, b)
        elif (number, kind) == (2, BYTES):
            value = a, b
    return key, value


def _tensor(data: Buffer, key: str, start: int, end: int) -> Tensor:
    """TensorInfo: dtype = 2, tensor_shape = 3; other encodings than one dense tensor are 4 and 5."""
    name, dtype, shape = tensor_name(key.encode()), 0, None
    for number, kind, a, b in fields(data, start, end):
        if (number, kind) == (2, VARINT):
            dtype = a
        elif (number, kind) == (3, BYTES):
            shape = _shape(data, a, b)
        elif number in {4, 5}:
            dtype = 0
    if dtype not in _DTYPES:
        raise ModelRejected(
            Reason.TENSOR_NOT_SUPPORTED, f'"{name}" is no plain tensor of a type that apps can pass. Export it as a number or a string.'
        )
    return Tensor(name, _DTYPES[dtype], shape)


def _shape(data: Buffer, start: int, end: int) -> tuple[Dim, ...] | None:
    """TensorShapeProto: dim = 2 (size = 1), unknown_rank = 3."""
    dims: list[Dim] = []
    for number, kind, a, b in fields(data, start, end):
        if (number, kind) == (3, VARINT) and a:
            return None
        if (number, kind) == (2, BYTES):
            size = next((signed(c) for inner, form, c, _ in fields(data, a, b) if (inner, form) == (1, VARINT)), 0)
            dims.append(size if 0 < size < 2**31 else None)
            if len(dims) > MAX_RANK:
                raise WireError("a tensor has too many dimensions")
    return tuple(dims)


def _text(data: Buffer, start: int, end: int) -> str:
    if end - start > 4_096:
        raise WireError("a name is too long")
    try:
        return bytes(data[start:end]).decode()
    except UnicodeDecodeError as error:
        raise WireError("a name is not text") from error
