"""The package manifest (v1) as the device reads it: checked field by field, then plain values. Pure.

A manifest is parsed only after its bytes matched a signed digest (`verify.py`); the checks here keep a mistake of a trusted signer from
becoming a file outside the cache or a crash later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latebind.errors import VerificationFailed

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 10_000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. A dimension is a size, None (dynamic) or the name of a symbol; a shape of None means an unknown rank."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def fixed(self) -> tuple[int, ...] | None:
        """The shape when every dimension is known, else None."""
        sizes = tuple(size for size in self.shape or () if isinstance(size, int))
        return sizes if self.shape is not None and len(sizes) == len(self.shape) else None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One typed constant of the model. For type `file` the value is the path of one of the package's files."""

    type: str
    value: Any


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file: where it stands in the package, what it is for, and its identity."""

    path: str
    role: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Golden:
    """What the model answered when it was packaged, and how close an answer must come (as in `numpy.allclose`)."""

    input: str
    output: str
    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class OrtForm:
    """The model once more, as one version of ONNX Runtime loads it fastest; no other version may load it."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A package: PRODUCT section 4."""

    account: str
    model_id: str
    version: int
    variant: str
    engine: str
    engine_min_version: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    params: Mapping[str, Parameter]
    files: tuple[PackageFile, ...]
    golden: Golden | None
    ort: OrtForm | None = None

    @property
    def graph(self) -> PackageFile:
        """The model file itself."""
        return next(file for file in self.files if file.role == "graph")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> PackageFile | None:
        """The file at a path of the package."""
        return next((file for file in self.files if file.path == path), None)


def loads_strictly(data: bytes) -> Any:
    """Parse JSON without its ambiguities: no repeated names, no NaN or Infinity. Raises VerificationFailed (`JSON_INVALID`)."""
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"signed data is not plain JSON: {error}", code="JSON_INVALID") from error


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises VerificationFailed (`MANIFEST_INVALID`, `MANIFEST_UNSUPPORTED`)."""
    raw = loads_strictly(data)
    if not isinstance(raw, dict):
        raise _invalid("it is not an object")
    if raw.get("manifest_version") != 1:
        raise VerificationFailed(f"manifest version {raw.get('manifest_version')!r} is newer than this SDK", code="MANIFEST_UNSUPPORTED")
    engine = _field(raw, "engine", dict)
    manifest = Manifest(
        account=_field(raw, "account", str),
        model_id=_field(raw, "model_id", str),
        version=_field(raw, "version", int),
        variant=_field(raw, "variant", str),
        engine=_field(engine, "name", str),
        engine_min_version=_optional(engine, "min_version", str),
        inputs=_tensors(raw, "inputs"),
        outputs=_tensors(raw, "outputs"),
        params={name: _parameter(name, value) for name, value in _field(raw, "params", dict).items()},
        files=_files(raw),
        golden=_golden(_optional(raw, "golden", dict)),
        ort=_ort(_optional(engine, "ort", dict)),
    )
    _check_references(manifest)
    return manifest


def is_digest(value: object) -> bool:
    """Whether a value is a lower-case hex SHA-256."""
    return isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value)


def is_safe_path(path: str) -> bool:
    """Whether a package path stays inside its package on every file system: relative, no `..`, no backslash, no control characters."""
    parts = path.split("/")
    plain = all(part not in {"", ".", ".."} and len(part.encode()) <= 255 for part in parts)
    return plain and len(path) <= 1024 and not any(ord(char) < 32 or char in "\\:\x7f" for char in path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is repeated")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _invalid(what: str) -> VerificationFailed:
    return VerificationFailed(f"the package's manifest cannot be used: {what}", code="MANIFEST_INVALID")


def _field(raw: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = raw.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _invalid(f"{name!r} is missing or not of the right type")
    return value


def _optional(raw: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    return None if raw.get(name) is None else _field(raw, name, kind)


def _number(raw: Mapping[str, Any], name: str) -> float:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise _invalid(f"{name!r} is not a number of at least 0")
    return float(value)


def _tensors(raw: Mapping[str, Any], name: str) -> tuple[TensorSpec, ...]:
    tensors = []
    for entry in _field(raw, name, list):
        if not isinstance(entry, dict):
            raise _invalid(f"{name!r} holds something that is not an object")
        listed = _optional(entry, "shape", list)
        shape = None if listed is None else tuple(listed)
        for size in shape or ():
            if isinstance(size, bool) or not (size is None or isinstance(size, str) or (isinstance(size, int) and size >= 0)):
                raise _invalid(f"a shape in {name!r} holds {size!r}")
        tensors.append(TensorSpec(_field(entry, "name", str), _field(entry, "dtype", str), shape))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise _invalid(f"{name!r} names a tensor twice")
    return tuple(tensors)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_float(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


_PARAMETER_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": _is_float,
    "bool": lambda value: isinstance(value, bool),
    "string": _is_string,
    "int[]": _list_of(_is_int),
    "float[]": _list_of(_is_float),
    "string[]": _list_of(_is_string),
    "json": lambda value: True,
    "file": _is_string,
}


def _parameter(name: str, raw: Any) -> Parameter:
    if not isinstance(raw, dict) or "value" not in raw:
        raise _invalid(f"parameter {name!r} has no value")
    kind = _field(raw, "type", str)
    check = _PARAMETER_TYPES.get(kind)
    if check is None or not check(raw["value"]):
        raise _invalid(f"parameter {name!r} is not of type {kind!r}")
    value = raw["value"]
    if kind == "float":
        value = float(value)
    elif kind == "float[]":
        value = [float(item) for item in value]
    return Parameter(kind, value)


def _files(raw: Mapping[str, Any]) -> tuple[PackageFile, ...]:
    entries = _field(raw, "files", list)
    if len(entries) > MAX_FILES:
        raise _invalid(f"more than {MAX_FILES} files")
    files = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise _invalid("'files' holds something that is not an object")
        file = PackageFile(_field(entry, "path", str), _field(entry, "role", str), _field(entry, "size", int), _field(entry, "sha256", str))
        if not is_safe_path(file.path) or not is_digest(file.sha256) or file.size < 0:
            raise _invalid(f"file {file.path!r} has an unsafe path, a wrong digest or a wrong size")
        files.append(file)
    if len({file.path for file in files}) != len(files):
        raise _invalid("two files have the same path")
    if sum(file.role == "graph" for file in files) != 1:
        raise _invalid("there must be exactly one file with the role 'graph'")
    sizes: dict[str, int] = {}
    if any(sizes.setdefault(file.sha256, file.size) != file.size for file in files):
        raise _invalid("one digest has two sizes")
    return tuple(files)


def _golden(raw: Mapping[str, Any] | None) -> Golden | None:
    if raw is None:
        return None
    return Golden(_field(raw, "input", str), _field(raw, "output", str), _number(raw, "rtol"), _number(raw, "atol"))


def _ort(raw: Mapping[str, Any] | None) -> OrtForm | None:
    return None if raw is None else OrtForm(_field(raw, "path", str), _field(raw, "version", str))


def _check_references(manifest: Manifest) -> None:
    """Paths that the manifest names elsewhere must be among its files."""
    named = [parameter.value for parameter in manifest.params.values() if parameter.type == "file"]
    if manifest.golden is not None:
        named += [manifest.golden.input, manifest.golden.output]
    if manifest.ort is not None:
        named.append(manifest.ort.path)
    for path in named:
        if manifest.file(path) is None:
            raise _invalid(f"it names the file {path!r}, which is not in the package")
