"""ONNX Runtime as an engine: prebuilt bindings for fixed shapes, plain runs otherwise.

A binding ties the model to buffers once; a run is then a copy in, the call, and a copy out. On a tiny network that takes less time than
`InferenceSession.run` (bench/sdk_run_overhead.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

# ONNX Runtime 1.29 and later start a thread at import that reports to its maker and keeps a device id in the home folder. Whether an app
# does that is its owner's decision: who wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from latebind.device.engines import Array, conform, feed_of
from latebind.device.manifest import Manifest, TensorSpec
from latebind.errors import InferenceFailed, LoadFailed

# Above this an input is handed over where it lies instead of being copied into the prepared buffer.
COPY_LIMIT_BYTES = 64 << 10
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}

_Shape = tuple[int | str | None, ...]


class OnnxRuntimeEngine:
    """Loads ONNX files with the CPU provider. `max_ir` and `max_opset` are what this build of the runtime itself says."""

    name = "onnxruntime"

    def __init__(self) -> None:
        self.version: str = ort.__version__
        self.max_ir = _ask_limit(_tiny_model(ir=1 << 20, opset=1), r"max supported IR version: (\d+)")
        self.max_opset = _ask_limit(_tiny_model(ir=7, opset=1 << 20), r"support for domain ai\.onnx is till opset (\d+)")

    def load(self, manifest: Manifest, graph: bytes, paths: Mapping[str, Path], *, threads: int | None) -> OnnxModel:
        """See `Engine.load`. External data (role `graph-data`) must be files of the package with plain names."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        external = [file for file in manifest.files if file.role == "graph-data"]
        try:
            if external:
                data = [paths[file.path].read_bytes() for file in external]
                options.add_external_initializers_from_files_in_memory([file.path for file in external], data, [len(item) for item in data])
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # The runtime raises classes of its own that have no common base but Exception.
            raise LoadFailed(
                f"ONNX Runtime {self.version} cannot load {manifest.model_id} version {manifest.version}: {_short(error)}"
            ) from error
        return OnnxModel(session, manifest)


class OnnxModel:
    """One session and, when all shapes are fixed, its prebuilt binding."""

    def __init__(self, session: Any, manifest: Manifest) -> None:
        self.inputs = _agree(session.get_inputs(), manifest.inputs, "input")
        self.outputs = _agree(session.get_outputs(), manifest.outputs, "output")
        self._session = session
        self._names = [spec.name for spec in self.outputs]
        self._bound = _Bound.prepare(session, self.inputs, self.outputs)
        self._dtypes = {spec.name: _numpy_dtype(spec) for spec in self.inputs}

    def run(self, inputs: Any) -> dict[str, Array]:
        """See `EngineModel.run`."""
        bound = self._bound
        if bound is not None:
            return bound.run(inputs)
        feed = {spec.name: conform(value, spec, self._dtypes[spec.name]) for spec, value in _pairs(inputs, self.inputs)}
        try:
            return dict(zip(self._names, self._session.run(self._names, feed), strict=True))
        except Exception as error:  # As above.
            raise InferenceFailed(f"the model failed to run: {_short(error)}") from error

    def close(self) -> None:
        """See `EngineModel.close`."""
        self._bound = None
        self._session = None


class _Bound:
    """Buffers of fixed shape, bound to a session once."""

    @classmethod
    def prepare(cls, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> _Bound | None:
        """None when a shape is not fixed or a dtype has no plain buffer."""
        specs = (*inputs, *outputs)
        if not inputs or any(spec.fixed is None or _numpy_dtype(spec) is None for spec in specs):
            return None
        return cls(session, inputs, outputs)

    def __init__(self, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._specs = inputs
        self._binding = session.io_binding()
        self._run = session.run_with_iobinding
        self._ins = {spec.name: _Input(self._binding, spec) for spec in inputs}
        self._outs: list[tuple[str, Array]] = []
        for spec in outputs:
            buffer = np.empty(spec.fixed or (), _numpy_dtype(spec))
            self._binding.bind_ortvalue_output(spec.name, ort.OrtValue.ortvalue_from_numpy(buffer))
            self._outs.append((spec.name, buffer))
        self._only_in = next(iter(self._ins.values())) if len(self._ins) == 1 else None
        self._only_out = self._outs[0] if len(self._outs) == 1 else None

    def run(self, inputs: Any) -> dict[str, Array]:
        only = self._only_in
        if only is not None:
            value = inputs
            if type(inputs) is not np.ndarray:
                value = (
                    inputs[only.name]
                    if type(inputs) is dict and len(inputs) == 1 and only.name in inputs
                    else self._feed(inputs)[only.name]
                )
            only.put(value)
        else:
            for name, value in self._feed(inputs).items():
                self._ins[name].put(value)
        try:
            self._run(self._binding)
        except Exception as error:  # As above.
            raise InferenceFailed(f"the model failed to run: {_short(error)}") from error
        if self._only_out is not None:
            name, buffer = self._only_out
            return {name: buffer.copy()}
        return {name: buffer.copy() for name, buffer in self._outs}

    def _feed(self, inputs: Any) -> Mapping[str, Any]:
        return feed_of(inputs, self._specs)


class _Input:
    """One bound input: small arrays are copied into its buffer, large ones are bound where they lie."""

    __slots__ = ("_binding", "_buffer", "_dtype", "_held", "_large", "_own", "_shape", "_spec", "name")

    def __init__(self, binding: Any, spec: TensorSpec) -> None:
        self.name = spec.name
        self._binding = binding
        self._spec = spec
        self._buffer = np.empty(spec.fixed or (), _numpy_dtype(spec))
        self._shape = self._buffer.shape
        self._dtype = self._buffer.dtype
        self._large = self._buffer.nbytes > COPY_LIMIT_BYTES
        self._own = ort.OrtValue.ortvalue_from_numpy(self._buffer)
        self._held: Array | None = None
        binding.bind_ortvalue_input(spec.name, self._own)

    def put(self, value: Any) -> None:
        if type(value) is not np.ndarray or value.shape != self._shape or value.dtype is not self._dtype:
            value = conform(value, self._spec, self._dtype)
        if self._large:
            self._put_large(value)
        else:
            self._buffer[...] = value

    def _put_large(self, value: Array) -> None:
        if value.flags.c_contiguous and value.flags.aligned:
            # The binding keeps only the address: the array is held until the next one takes its place.
            self._held = value
            self._binding.bind_input(self.name, "cpu", 0, self._dtype.type, self._shape, value.ctypes.data)
            return
        if self._held is not None:
            self._binding.bind_ortvalue_input(self.name, self._own)
            self._held = None
        self._buffer[...] = value


def _pairs(inputs: Any, specs: tuple[TensorSpec, ...]) -> list[tuple[TensorSpec, Any]]:
    feed = feed_of(inputs, specs)
    return [(spec, feed[spec.name]) for spec in specs]


def _agree(found: Any, declared: tuple[TensorSpec, ...], what: str) -> tuple[TensorSpec, ...]:
    """The model's tensors in the declared order, shapes as fixed as both sides together know. Raises LoadFailed when they contradict."""
    real = {entry.name: entry for entry in found}
    specs = []
    for spec in declared:
        entry = real.get(spec.name)
        if entry is None:
            raise LoadFailed(f"the model has no {what} {spec.name!r} (it has {sorted(real)})")
        dtype = _DTYPES.get(entry.type, entry.type)
        shape = _common_shape(tuple(entry.shape) if entry.shape is not None else None, spec.shape)
        if dtype != spec.dtype or shape is False:
            raise LoadFailed(f"{what} {spec.name!r} is {dtype}{entry.shape} in the model, but {spec.dtype}{spec.shape} in the manifest")
        specs.append(TensorSpec(spec.name, dtype, shape))
    if what == "input" and len(declared) != len(real):
        raise LoadFailed(f"the model has inputs that the manifest does not name: {sorted(real.keys() - {spec.name for spec in declared})}")
    return tuple(specs)


def _common_shape(own: _Shape | None, said: _Shape | None) -> _Shape | Literal[False] | None:
    """What both sides together know of a shape; False when they contradict."""
    if own is None or said is None:
        return said if own is None else own
    if len(own) != len(said) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(own, said, strict=True)):
        return False
    return tuple(a if isinstance(a, int) else b for a, b in zip(own, said, strict=True))


def _numpy_dtype(spec: TensorSpec) -> np.dtype[Any] | None:
    if spec.dtype not in _DTYPES.values() or spec.dtype == "string":
        return None
    return np.dtype(spec.dtype)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _ask_limit(model: bytes, pattern: str) -> int | None:
    """Load a model from the far future and read the limit out of the refusal; None when the runtime words it otherwise."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # As above.
        found = re.search(pattern, str(error))
        return int(found.group(1)) if found else None
    return None


def _tiny_model(*, ir: int, opset: int) -> bytes:
    """An identity network, written field by field (onnx.proto): ModelProto{ir_version, graph, opset_import}."""
    tensor = _field(2, _field(1, _varint_field(1, 1) + _field(2, b"")))
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity")
    graph = _field(1, node) + _field(2, b"g") + _field(11, _field(1, b"x") + tensor) + _field(12, _field(1, b"y") + tensor)
    return _varint_field(1, ir) + _field(7, graph) + _field(8, _varint_field(2, opset))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data
