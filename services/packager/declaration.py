"""The declaration of a version: what its owner uploaded and says of it. Pure. docs/topics.md has its fields.

The registry has checked it at commit. It is read strictly here too, because everything in it ends up in a signed manifest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from services.packager.answer import tensor_from_json
from services.packager.domain import MAX_NAME, Tensor, is_plain_name
from services.packager.errors import ModelRejected, Reason

PARAM_TYPES = frozenset({"int", "float", "bool", "string", "int[]", "float[]", "string[]", "json", "file"})
GOLDEN_FOLDER = "golden"

MAX_VARIANTS = 32
MAX_FILES = 1_000
MAX_DECLARATION_BYTES = 4 * 2**20

#: What can be made of a source: kind to (format, precision).
KINDS = {
    "onnx-fp32": ("onnx", "fp32"),
    "onnx-fp16": ("onnx", "fp16"),
    "onnx-int8": ("onnx", "int8"),
    "ort": ("onnx", "fp32"),
    "tflite-fp32": ("tflite", "fp32"),
    "tflite-int8": ("tflite", "int8"),
}
#: What devices must know at least, for ONNX: profile to (highest opset, highest IR). LIBRARIES 5.4.
PROFILES = {"portable": (15, 8), "modern": (18, 10)}

ORT_PATH = "model.ort"

_RESERVED = ("manifest.json", "signature.json", GOLDEN_FOLDER)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VARIANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded file: `path` inside the package, digest in lower-case hex, size in bytes, role `graph`, `graph-data` or `auxiliary`."""

    path: str
    sha256: str
    size: int
    role: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The path without its last part; empty at the top."""
        return self.path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Variant:
    """One runnable form. `name` None: by content. `required`: the version fails with it.

    `precision`: what it was made to have; `sources` and `steps`: what it was made of and how. `wants_ort`: the graph is to be there
    once more, as ONNX Runtime loads it fastest; then `ort` is that form, for the runtime `ort_version` only. Uploaded ready-made, it has
    none of them.
    """

    name: str | None
    graph: File
    data: tuple[File, ...]
    required: bool = True
    precision: str | None = None
    sources: tuple[str, ...] = ()
    steps: tuple[dict[str, Any], ...] = ()
    wants_ort: bool = False
    ort: File | None = None
    ort_version: str = ""

    @property
    def files(self) -> tuple[File, ...]:
        """The graph, its data files, its form for one runtime."""
        return (self.graph, *self.data, *((self.ort,) if self.ort else ()))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A variant to be made of the source: a key of `KINDS`, one of `PROFILES`. `required`: the version fails with it."""

    name: str
    kind: str
    profile: str = "portable"
    slim: bool = True
    required: bool = False

    @property
    def graph_path(self) -> str:
        """Where its graph lies in the package."""
        return f"model.{KINDS[self.kind][0]}"

    @property
    def paths(self) -> list[str]:
        """What will be made for the package."""
        return [self.graph_path, *([ORT_PATH] if self.kind == "ort" else ())]


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """What the variants are made of. `names`: name of an input or output in the package to its name in the source, where they differ."""

    files: tuple[File, ...]
    names: dict[str, str]


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """An .npz with inputs and labels or expected outputs; `output`: the one that the labels belong to; `min_accuracy`: from 0 to 1."""

    file: File
    min_accuracy: float | None
    output: str | None


@dataclass(frozen=True, slots=True)
class Declaration:
    """A whole declaration. `inputs` and `outputs` None: the model's own are taken. `params`, `requires`, `lineage` go on as they are."""

    variants: tuple[Variant | Wanted, ...]
    files: tuple[File, ...]
    params: dict[str, Any]
    inputs: tuple[Tensor, ...] | None
    outputs: tuple[Tensor, ...] | None
    requires: dict[str, Any]
    rtol: float | None
    atol: float | None
    lineage: dict[str, Any]
    source: SourceFiles | None = None
    calibration: File | None = None
    evaluation: EvaluationSet | None = None
    golden_input: File | None = None

    @property
    def private_files(self) -> tuple[File, ...]:
        """What packaging reads and no package carries as it is."""
        sets = (self.calibration, self.evaluation.file if self.evaluation else None, self.golden_input)
        return (*(self.source.files if self.source else ()), *(one for one in sets if one is not None))


def parse_declaration(raw: bytes) -> Declaration:
    """Read a declaration. Raises `ModelRejected` with DECLARATION_INVALID that says what is wrong."""
    if len(raw) > MAX_DECLARATION_BYTES:
        _invalid("it is too large")
    try:
        body = json.loads(raw, parse_constant=_no_constant)
        # Escapes can make text that no encoding has; it would fail only when the manifest is written.
        json.dumps(body, ensure_ascii=False).encode()
        return _declaration(body)
    except (RecursionError, TypeError, AttributeError, KeyError) as error:
        _invalid(f"a field is missing or of the wrong kind ({error})")
    except ValueError as error:
        _invalid(str(error))


def _declaration(body: dict[str, Any]) -> Declaration:
    variants = tuple(_wanted(entry) if "convert" in entry else _variant(entry) for entry in body["variants"])
    files = tuple(_file(entry, "auxiliary") for entry in body.get("files") or ())
    if not 0 < len(variants) <= MAX_VARIANTS:
        raise ValueError(f"a version has 1 to {MAX_VARIANTS} variants")
    names = [variant.name for variant in variants if variant.name is not None]
    if len(set(names)) != len(names):
        raise ValueError("two variants have the same name")
    source = _source(body.get("source"))
    if source is None and any(isinstance(variant, Wanted) for variant in variants):
        raise ValueError("a variant is to be converted, but there is no source")
    for variant in variants:
        own = variant.paths if isinstance(variant, Wanted) else [file.path for file in variant.files]
        paths = [*own, *(file.path for file in files)]
        if len(set(paths)) != len(paths):
            raise ValueError("two files of one variant have the same path")
        if len(paths) > MAX_FILES:
            raise ValueError(f"a variant has at most {MAX_FILES} files")
        _check_params(body.get("params") or {}, set(paths))
    golden = body.get("golden") or {}
    return Declaration(
        variants,
        files,
        dict(body.get("params") or {}),
        _tensors(body.get("inputs"), "inputs"),
        _tensors(body.get("outputs"), "outputs"),
        _requires(body.get("requires") or {}),
        _tolerance(golden.get("rtol")),
        _tolerance(golden.get("atol")),
        _lineage(body.get("lineage") or {}),
        source,
        None if body.get("calibration") is None else _file(body["calibration"], "calibration"),
        _evaluation(body.get("evaluation")),
        None if golden.get("input") is None else _file(golden["input"], "golden-input"),
    )


def _wanted(entry: dict[str, Any]) -> Wanted:
    how = entry["convert"]
    kind, profile = how["to"], how.get("profile") or "portable"
    if kind not in KINDS or profile not in PROFILES or "files" in entry:
        raise ValueError(f"a variant is converted to one of {', '.join(KINDS)}, with a profile of {', '.join(PROFILES)}, and has no files")
    name = entry.get("name") or kind
    flags = [how.get("slim", True), entry.get("required") or False]
    if not isinstance(name, str) or _VARIANT.fullmatch(name) is None or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("a variant's name has 1 to 64 characters of a-z, 0-9, '.', '_' and '-'; slim and required are true or false")
    return Wanted(name, kind, profile, *flags)


def _source(entry: Any) -> SourceFiles | None:
    if entry is None:
        return None
    files = tuple(_file(file, "source") for file in entry["files"])
    names = entry.get("names") or {}
    if not 0 < len(files) <= MAX_FILES or len({file.path for file in files}) != len(files):
        raise ValueError(f"a source has 1 to {MAX_FILES} files with different paths")
    if not all(isinstance(one, str) and 0 < len(one) <= MAX_NAME for pair in names.items() for one in pair):
        raise ValueError("source.names maps names to names")
    if len(set(names.values())) != len(names):
        raise ValueError("source.names calls one end of the source by two names")
    return SourceFiles(files, dict(names))


def _evaluation(entry: Any) -> EvaluationSet | None:
    if entry is None:
        return None
    floor, output = entry.get("min_accuracy"), entry.get("output")
    if floor is not None and (type(floor) not in {int, float} or not 0 <= floor <= 1):
        raise ValueError("evaluation.min_accuracy is a number from 0 to 1")
    if output is not None and not isinstance(output, str):
        raise ValueError("evaluation.output is the name of an output")
    return EvaluationSet(_file(entry["file"], "evaluation"), None if floor is None else float(floor), output)


def _variant(entry: dict[str, Any]) -> Variant:
    name = entry.get("name")
    if name is not None and (not isinstance(name, str) or _VARIANT.fullmatch(name) is None):
        raise ValueError("a variant's name has 1 to 64 characters of a-z, 0-9, '.', '_' and '-'")
    files = [_file(file, None) for file in entry["files"]]
    graphs = [file for file in files if file.role == "graph"]
    if not graphs:
        unsaid = [file for file in files if not file.role]
        graphs = unsaid if len(unsaid) == 1 else [file for file in unsaid if file.path.endswith((".onnx", ".tflite"))]
    if len(graphs) != 1:
        raise ValueError('each variant has exactly one file with the role "graph"')
    graph = File(graphs[0].path, graphs[0].sha256, graphs[0].size, "graph")
    data = tuple(File(file.path, file.sha256, file.size, "graph-data") for file in files if file is not graphs[0])
    for file in data:
        if file.folder != graph.folder or not is_plain_name(file.name):
            raise ValueError(f'"{file.path}": a data file lies in the folder of its graph and has a plain name')
    return Variant(name, graph, data, entry.get("required") is not False)


def _file(entry: dict[str, Any], role: str | None) -> File:
    path, digest, size = entry["path"], entry["sha256"], entry["size"]
    declared = entry.get("role")
    parts = path.split("/")
    if len(path) > 300 or len(parts) > 8 or not all(is_plain_name(part) for part in parts) or parts[0].casefold() in _RESERVED:
        raise ValueError(f"{path!r:.80}: a path has plain names with '/' between them; {', '.join(_RESERVED)} belong to the packager")
    if not isinstance(digest, str) or _SHA256.fullmatch(digest) is None or type(size) is not int or size < 0:
        raise ValueError(f"{path}: a file has a sha256 of 64 hex digits and a size in bytes")
    if role is None and declared not in {None, "graph", "graph-data"}:
        raise ValueError(f'{path}: the files of a variant have the role "graph" or "graph-data"')
    return File(path, digest, size, role or declared or "")


def _check_params(params: dict[str, Any], paths: set[str]) -> None:
    for name, param in params.items():
        if not isinstance(param, dict) or param.get("type") not in PARAM_TYPES or "value" not in param:
            raise ValueError(f"parameter {name}: a type of {', '.join(sorted(PARAM_TYPES))} and a value are needed")
        if param["type"] == "file" and param["value"] not in paths:
            raise ValueError(f"parameter {name}: there is no file {param['value']!r:.100} in this version")


def _tensors(entries: Any, what: str) -> tuple[Tensor, ...] | None:
    if entries is None or entries == []:
        return None
    tensors = tuple(tensor_from_json(entry) for entry in entries)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError(f"two {what} have the same name")
    return tensors


def _requires(requires: dict[str, Any]) -> dict[str, Any]:
    for name, value in requires.items():
        if name == "ram_mb":
            good = type(value) is int and 0 < value < 2**24
        elif name in {"abi", "accelerators"}:
            good = isinstance(value, list) and all(isinstance(one, str) and 0 < len(one) <= 64 for one in value)
        else:
            good = False
        if not good:
            raise ValueError(f"requires: {name} is unknown or of the wrong type (ram_mb: number; abi, accelerators: lists of names)")
    return dict(requires)


def _tolerance(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in {int, float} or not 0 <= value <= 1e12:
        raise ValueError("golden: rtol and atol are numbers that are not negative")
    return float(value)


def _lineage(lineage: dict[str, Any]) -> dict[str, Any]:
    sources, steps = lineage.get("source_sha256") or [], lineage.get("steps") or []
    if not all(isinstance(source, str) and _SHA256.fullmatch(source) for source in sources) or not isinstance(steps, list):
        raise ValueError("lineage: source_sha256 is a list of digests, steps a list")
    return {"source_sha256": list(sources), "steps": steps}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _invalid(why: str) -> NoReturn:
    raise ModelRejected(Reason.DECLARATION_INVALID, f"The declaration cannot be used: {why}.")
