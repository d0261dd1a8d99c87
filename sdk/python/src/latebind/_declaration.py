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
_KEYS = frozenset(
    {
        "model",
        "description",
        "labels",
        "notes",
        "alias",
        "variants",
        "files",
        "params",
        "inputs",
        "outputs",
        "requires",
        "golden",
        "lineage",
    }
)


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
class Push:
    """Everything that one push needs. `aliases` are moved to the version once it is ready."""

    model_id: str
    variants: tuple[LocalVariant, ...]
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

    @property
    def sources(self) -> list[Path]:
        """The local files to upload, each once."""
        files = [file for variant in self.variants for file in variant.files] + list(self.files)
        return list(dict.fromkeys(file.source for file in files))

    def declaration(self, uploaded: Mapping[Path, tuple[str, int]]) -> dict[str, Any]:
        """The declaration, with the digest and size that each uploaded file turned out to have."""

        def entry(file: LocalFile, **more: Any) -> dict[str, Any]:
            sha256, size = uploaded[file.source]
            return {"path": file.path, "sha256": sha256, "size": size, **more}

        variants = []
        for variant in self.variants:
            graph, *data = variant.files
            listed = [entry(graph, role="graph"), *(entry(one, role="graph-data") for one in data)]
            variants.append({"files": listed} if variant.name is None else {"name": variant.name, "files": listed})
        optional = {
            "inputs": [dict(tensor) for tensor in self.inputs],
            "outputs": [dict(tensor) for tensor in self.outputs],
            "requires": dict(self.requires),
            "golden": dict(self.golden),
            "lineage": dict(self.lineage),
            "notes": self.notes,
        }
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
    push = Push(
        model_id=document["model"],
        variants=tuple(_read_variant(one, base) for one in _list(document, "variants")),
        files=tuple(_read_file(one, base) for one in _list(document, "files")),
        params=dict(_read_param(name, one) for name, one in _mapping(document, "params").items()),
        inputs=tuple(_read_tensor(one) for one in _list(document, "inputs")),
        outputs=tuple(_read_tensor(one) for one in _list(document, "outputs")),
        requires=_mapping(document, "requires"),
        golden=_mapping(document, "golden"),
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


def _read_variant(entry: Any, base: Path) -> LocalVariant:
    if isinstance(entry, str):
        return parse_variant(entry, base)
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
    if isinstance(entry, dict) and set(entry) == {"name", "dtype", "shape"}:
        return dict(entry)
    raise DeclarationInvalid(f"an input or output in latebind.yaml needs `name`, `dtype` and `shape`, not {entry!r}")
