"""What a push declares: which local files make a version, with which parameters, inputs and outputs. From flags, or from a latebind.yaml.

Pure but for one question: whether a file is there. What a declaration may hold is docs/topics.md, "Version declaration"; the server
checks it, this module only finds mistakes that need the local files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latebind.errors import LatebindError

PARAM_TYPES = ("int", "float", "bool", "string", "int[]", "float[]", "string[]", "json", "file")

_PARAM = re.compile(r"(?P<name>[^:=\s]+):(?P<type>[a-z]+(?:\[\])?)=(?P<value>.*)", re.DOTALL)
_TENSOR = re.compile(r"(?P<name>.+):(?P<dtype>[a-z]+[0-9]*)\[(?P<shape>[^\]]*)\]")
_KEYS = frozenset({
    "model", "description", "labels", "notes", "alias", "variants", "files", "params", "inputs", "outputs", "requires", "golden",
    "lineage", "source", "calibration", "evaluation",
})  # fmt: skip
#: What the server can make of a source.
KINDS = ("onnx-fp32", "onnx-fp16", "onnx-int8", "tflite-fp32", "tflite-int8", "ort")
PROFILES = ("portable", "modern")


class DeclarationInvalid(LatebindError):
    """A flag or an entry of latebind.yaml says nothing that can be pushed."""

    default_code = "DECLARATION_INVALID"


class ImportRefused(LatebindError):
    """What is elsewhere cannot be taken over; the text says what to do instead."""

    default_code = "IMPORT_REFUSED"


class ImportFailed(LatebindError):
    """What is elsewhere did not arrive, or not whole."""

    default_code = "IMPORT_FAILED"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine and its path in the package."""

    source: Path
    path: str

    @classmethod
    def at(cls, source: Path, path: str | None = None) -> LocalFile:
        """A file that goes into the package under `path`, else under its own name. Raises DeclarationInvalid when it is not there."""
        if not source.is_file():
            raise DeclarationInvalid(f"there is no file {source}")
        return cls(source, path or source.name)


@dataclass(frozen=True, slots=True)
class LocalVariant:
    """One runnable form: its graph first, then the graph's data files. Without a name the server names it by content."""

    name: str | None
    files: tuple[LocalFile, ...]


@dataclass(frozen=True, slots=True)
class WantedVariant:
    """A variant that the server makes of the source; `kind` is one of `KINDS`. `required`: the version fails with it."""

    kind: str
    name: str | None = None
    profile: str | None = None
    slim: bool | None = None
    required: bool = False

    def entry(self) -> dict[str, Any]:
        """What a declaration says of it."""
        how = {name: value for name, value in (("profile", self.profile), ("slim", self.slim)) if value is not None}
        named = {"name": self.name} if self.name is not None else {}
        return {**named, "convert": {"to": self.kind, **how}, **({"required": True} if self.required else {})}


@dataclass(frozen=True, slots=True)
class LocalSource:
    """What variants are made of: the files of a folder, or single files. `names`: name in the package to name in the source."""

    files: tuple[LocalFile, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, *more: Path) -> LocalSource:
        """The source at a path: a SavedModel folder with all of its files, or a file with its data files. Raises DeclarationInvalid."""
        if not path.is_dir():
            return cls(tuple(LocalFile.at(one) for one in (path, *more)))
        if more:
            raise DeclarationInvalid(f"{path} is a folder; a source is one folder, or one file with its data files")
        files = tuple(LocalFile(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*")) if file.is_file())
        if not files:
            raise DeclarationInvalid(f"the folder {path} is empty")
        return cls(files)


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """An .npz with inputs and `labels` or expected outputs. `min_accuracy`: from 0 to 1; `output`: the one that the labels belong to."""

    file: LocalFile
    min_accuracy: float | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """Everything that one push needs. `aliases` are moved to the version once it is ready."""

    model_id: str
    variants: tuple[LocalVariant | WantedVariant, ...]
    files: tuple[LocalFile, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...] = ()
    outputs: tuple[Mapping[str, Any], ...] = ()
    requires: Mapping[str, Any] = field(default_factory=dict)
    golden: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    source: LocalSource | None = None
    calibration: LocalFile | None = None
    evaluation: EvaluationSet | None = None
    golden_input: LocalFile | None = None

    @property
    def sources(self) -> list[Path]:
        """The local files to upload, each once."""
        ready = [variant for variant in self.variants if isinstance(variant, LocalVariant)]
        files = [file for variant in ready for file in variant.files] + list(self.files)
        files += self.source.files if self.source else ()
        sets = (self.calibration, self.evaluation.file if self.evaluation else None, self.golden_input)
        files += [one for one in sets if one is not None]
        return list(dict.fromkeys(file.source for file in files))

    def declaration(self, uploaded: Mapping[Path, tuple[str, int]]) -> dict[str, Any]:
        """The declaration, with the digest and size that each uploaded file turned out to have."""

        def entry(file: LocalFile, **more: Any) -> dict[str, Any]:
            sha256, size = uploaded[file.source]
            return {"path": file.path, "sha256": sha256, "size": size, **more}

        variants: list[dict[str, Any]] = []
        for variant in self.variants:
            if isinstance(variant, WantedVariant):
                variants.append(variant.entry())
                continue
            graph, *data = variant.files
            listed = [entry(graph, role="graph"), *(entry(one, role="graph-data") for one in data)]
            variants.append({"files": listed} if variant.name is None else {"name": variant.name, "files": listed})
        optional: dict[str, Any] = {
            "inputs": [dict(tensor) for tensor in self.inputs],
            "outputs": [dict(tensor) for tensor in self.outputs],
            "requires": dict(self.requires),
            "golden": {**self.golden, **({} if self.golden_input is None else {"input": entry(self.golden_input)})},
            "lineage": dict(self.lineage),
            "notes": self.notes,
        }
        if self.source is not None:
            names = {"names": dict(self.source.names)} if self.source.names else {}
            optional["source"] = {"files": [entry(file) for file in self.source.files], **names}
        if self.calibration is not None:
            optional["calibration"] = entry(self.calibration)
        if self.evaluation is not None:
            more = {"min_accuracy": self.evaluation.min_accuracy, "output": self.evaluation.output}
            kept = {name: value for name, value in more.items() if value is not None}
            optional["evaluation"] = {"file": entry(self.evaluation.file), **kept}
        return {
            "variants": variants,
            "files": [entry(file) for file in self.files],
            "params": dict(self.params),
            **{name: value for name, value in optional.items() if value},
        }


def parse_param(text: str) -> tuple[str, dict[str, Any]]:
    """`S:int=13`, `labels:file=coco.labels`, `sizes:int[]=1,2,3`, `extra:json={"a": 1}` as a name and its declaration."""
    match = _PARAM.fullmatch(text)
    if match is None or match["type"] not in PARAM_TYPES:
        raise DeclarationInvalid(f"{text!r} is no parameter: write NAME:TYPE=VALUE with one of {', '.join(PARAM_TYPES)}")
    kind, value = match["type"], match["value"]
    try:
        return match["name"], {"type": kind, "value": _value(kind, value)}
    except ValueError as error:
        raise DeclarationInvalid(f"{value!r} is no {kind} (parameter {match['name']})") from error


def parse_default(text: str, params: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """`T=0.5` as the parameter T with the value that stands in for it in versions without it; `params` knows its type."""
    name, separator, value = text.partition("=")
    if not separator or name not in params:
        raise DeclarationInvalid(f"{text!r} is no default: write NAME=VALUE, with the name of a parameter of this push")
    kind = params[name]["type"]
    try:
        return name, {**params[name], "default": _value(kind, value)}
    except ValueError as error:
        raise DeclarationInvalid(f"{value!r} is no {kind} (default of parameter {name})") from error


def parse_tensor(text: str) -> dict[str, Any]:
    """`image:float32[1,height,?,3]` as a declaration; `?` is a size that nobody knows, a name one that is open."""
    match = _TENSOR.fullmatch(text.replace(" ", ""))
    if match is None:
        raise DeclarationInvalid(f"{text!r} is no tensor: write NAME:DTYPE[SIZE,SIZE,…], for example image:float32[1,416,416,3]")
    sizes = [size for size in match["shape"].split(",") if size]
    shape = [None if size == "?" else int(size) if size.isdigit() else size for size in sizes]
    return {"name": match["name"], "dtype": match["dtype"], "shape": shape}


def parse_file(text: str, base: Path = Path()) -> LocalFile:
    """`labels.txt`, or `coco.labels=labels.txt` to give it another path in the package."""
    source = base / text
    if "=" in text and not source.is_file():
        path, _, rest = text.partition("=")
        return LocalFile.at(base / rest, path)
    return LocalFile.at(source)


def parse_variant(text: str, base: Path = Path()) -> LocalVariant:
    """`model.onnx`, `onnx-int8=small.onnx`, or `big=model.onnx,weights.bin` with the graph's data files; `file=…` leaves the name open."""
    name, separator, rest = text.partition("=")
    if not separator:
        name, rest = "", text
    files = tuple(LocalFile.at(base / one) for one in rest.split(",") if one)
    if not files:
        raise DeclarationInvalid(f"{text!r} names no file: write NAME=FILE or FILE")
    return LocalVariant(name if name not in {"", "file"} else None, files)


def parse_wanted(text: str) -> WantedVariant:
    """`onnx-int8`, or `NAME=onnx-int8`."""
    name, separator, kind = text.strip().rpartition("=")
    if kind not in KINDS:
        raise DeclarationInvalid(f"{kind!r} is nothing that a source can become: one of {', '.join(KINDS)}")
    return WantedVariant(kind, name if separator else None)


def read_document(document: Any, base: Path) -> Push:
    """A parsed latebind.yaml; paths count from `base`. Raises DeclarationInvalid."""
    if not isinstance(document, dict):
        raise DeclarationInvalid("latebind.yaml holds no mapping; it needs at least `model` and `variants`")
    unknown = sorted(set(map(str, document)) - _KEYS)
    if unknown:
        raise DeclarationInvalid(f"latebind.yaml has unknown entries: {', '.join(unknown)} (known: {', '.join(sorted(_KEYS))})")
    if not isinstance(document.get("model"), str) or not document.get("variants"):
        raise DeclarationInvalid("latebind.yaml needs `model` (an id) and `variants` (at least one)")
    alias = document.get("alias") or []
    golden = _mapping(document, "golden")
    golden_input = golden.pop("input", None)
    push = Push(
        model_id=document["model"],
        variants=tuple(_read_variant(one, base) for one in _list(document, "variants")),
        source=_read_source(document.get("source"), base),
        calibration=None if document.get("calibration") is None else _read_file(document["calibration"], base),
        evaluation=_read_evaluation(document.get("evaluation"), base),
        files=tuple(_read_file(one, base) for one in _list(document, "files")),
        params=dict(_read_param(name, one) for name, one in _mapping(document, "params").items()),
        inputs=tuple(_read_tensor(one) for one in _list(document, "inputs")),
        outputs=tuple(_read_tensor(one) for one in _list(document, "outputs")),
        requires=_mapping(document, "requires"),
        golden=golden,
        golden_input=None if golden_input is None else _read_file(golden_input, base),
        lineage=_mapping(document, "lineage"),
        notes=str(document.get("notes") or ""),
        description=str(document.get("description") or ""),
        labels={str(name): str(value) for name, value in _mapping(document, "labels").items()},
        aliases=(alias,) if isinstance(alias, str) else tuple(str(one) for one in alias),
    )
    return with_file_params(push, base)


def with_file_params(push: Push, base: Path = Path()) -> Push:
    """The push with each file that only a `file` parameter names added to its files."""
    known = {file.path for file in push.files}
    files, params = list(push.files), dict(push.params)
    for name, param in push.params.items():
        if param.get("type") == "file" and param["value"] not in known:
            file = LocalFile.at(base / param["value"])
            params[name] = {**param, "value": file.path}
            if file.path not in known:
                known.add(file.path)
                files.append(file)
    return replace(push, files=tuple(files), params=params)


def _value(kind: str, text: str) -> Any:
    if kind.endswith("[]"):
        items = json.loads(text) if text.lstrip().startswith("[") else [part.strip() for part in text.split(",") if part.strip()]
        return [item if isinstance(item, int | float) and not isinstance(item, bool) else _value(kind[:-2], str(item)) for item in items]
    if kind == "bool":
        if text.lower() not in {"true", "false"}:
            raise ValueError(text)
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    return json.loads(text) if kind == "json" else text


def _list(document: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = document.get(name) or []
    if not isinstance(value, list):
        raise DeclarationInvalid(f"`{name}` in latebind.yaml must be a list")
    return value


def _mapping(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise DeclarationInvalid(f"`{name}` in latebind.yaml must be a mapping")
    return value


def _read_source(entry: Any, base: Path) -> LocalSource | None:
    if entry is None:
        return None
    if isinstance(entry, dict) and set(entry) <= {"path", "names"} and "path" in entry:
        names = _mapping(entry, "names")
        return replace(
            _read_source(entry["path"], base) or LocalSource(()), names={str(ours): str(theirs) for ours, theirs in names.items()}
        )
    paths = [entry] if isinstance(entry, str) else entry
    if not isinstance(paths, list) or not paths or not all(isinstance(one, str) for one in paths):
        raise DeclarationInvalid(f"`source` in latebind.yaml is a path, several paths, or has `path` and `names`, not {entry!r}")
    return LocalSource.at(*(base / one for one in paths))


def _read_evaluation(entry: Any, base: Path) -> EvaluationSet | None:
    if entry is None:
        return None
    if isinstance(entry, str):
        return EvaluationSet(parse_file(entry, base))
    if isinstance(entry, dict) and set(entry) <= {"path", "min_accuracy", "output"} and isinstance(entry.get("path"), str):
        return EvaluationSet(LocalFile.at(base / entry["path"]), entry.get("min_accuracy"), entry.get("output"))
    raise DeclarationInvalid(f"`evaluation` in latebind.yaml has `path`, `min_accuracy` and `output`, not {entry!r}")


def _read_variant(entry: Any, base: Path) -> LocalVariant | WantedVariant:
    if isinstance(entry, str):
        return parse_wanted(entry) if entry.rpartition("=")[2] in KINDS else parse_variant(entry, base)
    if isinstance(entry, dict) and set(entry) <= {"name", "convert", "profile", "slim", "required"} and "convert" in entry:
        wanted = parse_wanted(str(entry["convert"]))
        more = {key: entry[key] for key in ("name", "profile", "slim", "required") if key in entry}
        if more.get("profile", "portable") not in PROFILES:
            raise DeclarationInvalid(f"the profile of a variant is one of {', '.join(PROFILES)}, not {more['profile']!r}")
        return replace(wanted, **more)
    if isinstance(entry, dict) and set(entry) <= {"name", "files"} and isinstance(entry.get("files"), list) and entry["files"]:
        return LocalVariant(entry.get("name"), tuple(_read_file(one, base) for one in entry["files"]))
    raise DeclarationInvalid(f"a variant in latebind.yaml needs `files` (the graph first) and may have a `name`, not {entry!r}")


def _read_file(entry: Any, base: Path) -> LocalFile:
    if isinstance(entry, str):
        return parse_file(entry, base)
    if isinstance(entry, dict) and set(entry) <= {"path", "as"} and isinstance(entry.get("path"), str):
        return LocalFile.at(base / entry["path"], entry.get("as"))
    raise DeclarationInvalid(f"a file in latebind.yaml is a path, or has `path` and `as`, not {entry!r}")


def _read_param(name: str, entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, dict) and {"type", "value"} <= set(entry) <= {"type", "value", "default"} and entry["type"] in PARAM_TYPES:
        return str(name), dict(entry)
    raise DeclarationInvalid(
        f"the parameter {name!r} in latebind.yaml needs `type` ({', '.join(PARAM_TYPES)}) and `value`, and may have a `default`"
    )


def _read_tensor(entry: Any) -> Mapping[str, Any]:
    if isinstance(entry, str):
        return parse_tensor(entry)
    if isinstance(entry, dict) and {"name", "dtype", "shape"} <= set(entry) <= {"name", "dtype", "shape", "range"}:
        return dict(entry)
    raise DeclarationInvalid(f"an input or output in latebind.yaml needs `name`, `dtype` and `shape`, not {entry!r}")
