"""The rules of a version declaration (docs/topics.md): paths, parameter values, tensors. Pure.

Its shape (which members, of which JSON type) is checked before, by `schemas.py` or by the catalogue's reader of manifests. Whether the
files exist is the service's question; whether the model agrees with what is declared is the packager's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from services.registry.versions.errors import DeclarationInvalid

MAX_VARIANTS = 32
MAX_FILES = 1000
MAX_PARAMS = 256
MAX_VALUE_BYTES = 64 << 10
MAX_TENSORS = 256
MAX_RANK = 32
MAX_DEPTH = 8
MAX_PATH = 300
PARAMETER_TYPES = ("int", "float", "bool", "string", "int[]", "float[]", "string[]", "json", "file")
DTYPES = frozenset(
    {"float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"bool", "string", "complex64", "complex128"}
)
#: What the packager writes itself.
_RESERVED = ("manifest.json", "signature.json", "golden")

_VARIANT = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_PLAIN = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_.+*/ -]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_ERRORS = 50

Fault = dict[str, str]


def check_declaration(declaration: Mapping[str, Any]) -> None:
    """Hold a declaration against the rules. Raises `DeclarationInvalid`, which lists up to 50 faults."""
    faults: list[Fault] = []
    for fault in _faults(declaration):
        faults.append(fault)
        if len(faults) == _MAX_ERRORS:
            break
    if faults:
        raise DeclarationInvalid(f"the declaration is wrong at: {', '.join(fault['field'] for fault in faults[:5])}", errors=faults)


def with_roles(files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a variant's files with their roles filled in.

    When none is called the graph, it is the only one without a role, or the only one that ends in .onnx or .tflite; others are its data.
    """
    unsaid = [index for index, file in enumerate(files) if not file.get("role")]
    graphs = [index for index, file in enumerate(files) if file.get("role") == "graph"]
    if not graphs:
        graphs = unsaid if len(unsaid) == 1 else [index for index in unsaid if files[index]["path"].endswith((".onnx", ".tflite"))]
    return [{**file, "role": file.get("role") or ("graph" if index in graphs else "graph-data")} for index, file in enumerate(files)]


def files_of(declaration: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every file with the place where it is declared: those of variants, source and sets, then the shared ones."""
    for index, variant in enumerate(declaration["variants"]):
        for place, file in enumerate(variant.get("files", ())):
            yield f"variants.{index}.files.{place}", file
    for place, file in enumerate((declaration.get("source") or {}).get("files", ())):
        yield f"source.files.{place}", file
    if declaration.get("calibration"):
        yield "calibration", declaration["calibration"]
    if declaration.get("evaluation"):
        yield "evaluation.file", declaration["evaluation"]["file"]
    if (declaration.get("golden") or {}).get("input"):
        yield "golden.input", declaration["golden"]["input"]
    for place, file in enumerate(declaration["files"]):
        yield f"files.{place}", file


def is_safe_path(path: str) -> bool:
    """Whether a path means the same on every file system: at most 8 plain names with '/' between them.

    A plain name has letters, digits and `._+-`, no leading dot and no dot at its end; so `..` is none.
    """
    parts = path.split("/")
    return len(path) <= MAX_PATH and len(parts) <= MAX_DEPTH and all(_PLAIN.fullmatch(part) and part[-1] != "." for part in parts)


def _fault(field: str, code: str, detail: str) -> Fault:
    return {"field": field, "code": code, "detail": detail}


def _faults(declaration: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _variant_faults(declaration)
    yield from _path_faults(declaration)
    yield from _parameter_faults(declaration)
    for side in ("inputs", "outputs"):
        if declaration.get(side) is not None:
            yield from _tensor_faults(side, declaration[side])
    for name in ("rtol", "atol"):
        value = (declaration.get("golden") or {}).get(name, 0)
        if not (math.isfinite(value) and value >= 0):
            yield _fault(f"golden.{name}", "OUT_OF_RANGE", "a finite number of at least 0")
    names = list(((declaration.get("source") or {}).get("names") or {}).values())
    if len(set(names)) != len(names):
        yield _fault("source.names", "DUPLICATE", "an input or output of the source has two names")
    yield from _lineage_faults(declaration.get("lineage") or {})


def _variant_faults(declaration: Mapping[str, Any]) -> Iterator[Fault]:
    variants: Sequence[Mapping[str, Any]] = declaration["variants"]
    if not 1 <= len(variants) <= MAX_VARIANTS:
        yield _fault("variants", "OUT_OF_RANGE", f"1 to {MAX_VARIANTS} variants")
    names: set[str] = set()
    for index, variant in enumerate(variants[:MAX_VARIANTS]):
        name = variant.get("name") or variant.get("convert", {}).get("to")
        if name is not None and not _VARIANT.fullmatch(name):
            yield _fault(f"variants.{index}.name", "NOT_A_NAME", "1 to 64 of a-z, 0-9, dot, dash and underscore")
        elif name is not None and name in names:
            yield _fault(f"variants.{index}.name", "DUPLICATE", f"another variant is called {name!r}")
        names.add(name or "")
        if ("files" in variant) == ("convert" in variant):
            yield _fault(f"variants.{index}", "FILES_OR_CONVERT", "a variant either has files, or says what the source is converted to")
        if "convert" in variant:
            if not declaration.get("source"):
                yield _fault(f"variants.{index}.convert", "NO_SOURCE", "there is no source to convert")
            continue
        graphs = sum(file["role"] == "graph" for file in variant["files"])
        if graphs != 1:
            yield _fault(f"variants.{index}.files", "ONE_GRAPH", f"exactly one file with the role 'graph' is needed, here are {graphs}")
        elif len({file["path"].rpartition("/")[0] for file in variant["files"]}) > 1:
            yield _fault(f"variants.{index}.files", "ANOTHER_FOLDER", "a graph's data files lie in the folder of the graph")


def _path_faults(declaration: Mapping[str, Any]) -> Iterator[Fault]:
    files = list(files_of(declaration))
    if len(files) > MAX_FILES:
        yield _fault("files", "OUT_OF_RANGE", f"at most {MAX_FILES} files")
        return
    shared = {_folded(file["path"]) for file in declaration["files"]}
    seen: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for place, file in files:
        path, room = file["path"], place.rpartition(".")[0]
        if not is_safe_path(path):
            yield _fault(f"{place}.path", "UNSAFE_PATH", "at most 8 plain names (letters, digits, ._+-) with '/' between them")
        elif _folded(path).split("/")[0] in _RESERVED:
            yield _fault(f"{place}.path", "RESERVED_PATH", "manifest.json, signature.json and golden/ belong to the packager")
        elif _folded(path) in seen.setdefault(room, set()) or (room.startswith("variants.") and _folded(path) in shared):
            yield _fault(f"{place}.path", "DUPLICATE", "another file of the package has this path, or one that differs in case only")
        seen.setdefault(room, set()).add(_folded(path))
        if not _DIGEST.fullmatch(file["sha256"]):
            yield _fault(f"{place}.sha256", "NOT_A_DIGEST", "64 lower-case hex digits")
        elif sizes.setdefault(file["sha256"], file["size"]) != file["size"]:
            yield _fault(f"{place}.size", "CONTRADICTION", "the same digest is declared with another size")
    yield from _folder_faults(declaration, shared)


def _folder_faults(declaration: Mapping[str, Any], shared: set[str]) -> Iterator[Fault]:
    """A path cannot be a file and the folder of another file."""
    for index, variant in enumerate(declaration["variants"]):
        paths = shared | {_folded(file["path"]) for file in variant.get("files", ())}
        for graph in _made_paths(variant) & shared:
            yield _fault(f"variants.{index}.convert", "DUPLICATE", f"an auxiliary file has the path of the graph, {graph}")
        for path in sorted(paths):
            parts = path.split("/")
            if any("/".join(parts[:end]) in paths for end in range(1, len(parts))):
                yield _fault(f"variants.{index}.files", "DUPLICATE", f"{path!r} lies below a path that is a file")


def _made_paths(variant: Mapping[str, Any]) -> set[str]:
    """Name what the packager will make for a variant: the graph, and for `ort` its second form."""
    kind = variant["convert"]["to"] if "convert" in variant else ""
    return {"model.onnx", "model.ort"} if kind == "ort" else {f"model.{kind.partition('-')[0]}"} if kind else set()


def _folded(path: str) -> str:
    return path.casefold()


def _parameter_faults(declaration: Mapping[str, Any]) -> Iterator[Fault]:
    params: Mapping[str, Mapping[str, Any]] = declaration["params"]
    if len(params) > MAX_PARAMS:
        yield _fault("params", "OUT_OF_RANGE", f"at most {MAX_PARAMS} parameters")
        return
    paths = {file["path"] for file in declaration["files"]}
    for name, param in params.items():
        kind, value, field = param["type"], param["value"], f"params.{name[:64]}"
        if not _PARAMETER.fullmatch(name):
            yield _fault(field, "NOT_A_NAME", "1 to 64 letters, digits, dots, dashes and underscores, not a digit first")
        elif kind not in _VALUES:
            yield _fault(f"{field}.type", "UNKNOWN_TYPE", f"one of {', '.join(PARAMETER_TYPES)}")
        elif not _is_json(value):
            yield _fault(f"{field}.value", "NOT_JSON", f"JSON without NaN, at most {MAX_VALUE_BYTES} bytes, integers of 64 bits")
        elif not _VALUES[kind](value):
            yield _fault(f"{field}.value", "WRONG_TYPE", f"the value is not of type {kind}; nothing is converted")
        elif kind == "file" and value not in paths:
            yield _fault(f"{field}.value", "NO_SUCH_FILE", "a parameter of type file holds the path of an entry of 'files'")
        elif (default := param.get("default")) is not None and (kind == "file" or not _is_json(default) or not _VALUES[kind](default)):
            wrong = "a file has no default: an older version does not carry it" if kind == "file" else f"the default is not of type {kind}"
            yield _fault(f"{field}.default", "WRONG_TYPE", wrong)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_float(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_json(value: Any) -> bool:
    """Whether a value can be stored and read back the same in any language: finite, valid Unicode, bounded, 64-bit integers."""
    try:
        if len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) > MAX_VALUE_BYTES:
            return False
    except (ValueError, RecursionError):
        return False
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, int) and not isinstance(item, bool) and not _is_int(item):
            return False
    return True


_VALUES: Mapping[str, Callable[[Any], bool]] = {
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


def _tensor_faults(side: str, tensors: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    if len(tensors) > MAX_TENSORS:
        yield _fault(side, "OUT_OF_RANGE", f"at most {MAX_TENSORS} tensors")
        return
    names: set[str] = set()
    for index, tensor in enumerate(tensors):
        if tensor["name"] in names:
            yield _fault(f"{side}.{index}.name", "DUPLICATE", "another tensor has this name")
        names.add(tensor["name"])
        lowest, highest = tensor.get("range") or (0, 0)
        if not (math.isfinite(lowest) and math.isfinite(highest) and lowest <= highest) or (side == "outputs" and "range" in tensor):
            yield _fault(f"{side}.{index}.range", "OUT_OF_RANGE", "an input's range is two finite numbers, the lower one first")
        if tensor["dtype"] not in DTYPES:
            yield _fault(f"{side}.{index}.dtype", "UNKNOWN_TYPE", f"one of {', '.join(sorted(DTYPES))}")
        if len(tensor["shape"]) > MAX_RANK:
            yield _fault(f"{side}.{index}.shape", "OUT_OF_RANGE", f"at most {MAX_RANK} dimensions")
        for dimension in tensor["shape"]:
            if isinstance(dimension, str) and not _SYMBOL.fullmatch(dimension):
                yield _fault(f"{side}.{index}.shape", "NOT_A_NAME", "a dimension is a size, null or the name of a symbol")
            elif isinstance(dimension, int) and not 0 <= dimension < 1 << 31:
                yield _fault(f"{side}.{index}.shape", "OUT_OF_RANGE", "a size is at least 0 and below 2147483648")


def _lineage_faults(lineage: Mapping[str, Any]) -> Iterator[Fault]:
    for index, digest in enumerate(lineage.get("source_sha256", ())):
        if not _DIGEST.fullmatch(digest):
            yield _fault(f"lineage.source_sha256.{index}", "NOT_A_DIGEST", "64 lower-case hex digits")
    for index, step in enumerate(lineage.get("steps", ())):
        if not _is_json(step.get("options", {})):
            yield _fault(f"lineage.steps.{index}.options", "NOT_JSON", f"JSON without NaN, at most {MAX_VALUE_BYTES} bytes")
