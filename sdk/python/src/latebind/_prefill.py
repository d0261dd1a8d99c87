"""From what others wrote about a model (ONNX and TFLite metadata, MLflow's MLmodel, a Hugging Face card) to what a push declares.

Everything here is a proposal that flags win over. Pure, but for reading the model's own files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latebind._declaration import LocalFile, LocalVariant, Push
from latebind._files import write_whole
from latebind._modelfiles import ModelFacts, is_plain

MAX_CARD = 256 << 10

_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_DTYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}
    | {"complex64", "complex128"}
)
#: MLflow's column types (mlflow.types.DataType) that a parameter can have.
_PARAM_TYPES = {"integer": "int", "long": "int", "float": "float", "double": "float", "boolean": "bool", "string": "string"}
#: What metadata of a model says of it as a whole, and is no parameter.
_ABOUT = {"license": "license", "licence": "license", "author": "author", "name": "title", "version": "source-version"}


@dataclass(slots=True)
class Fetched:
    """A model that lies on this machine with all that belongs to it. `origin` is where it came from, with a pinned version."""

    graph: Path
    origin: str
    name: str
    data: list[Path] = field(default_factory=list)
    facts: ModelFacts = field(default_factory=ModelFacts)
    card: str = ""
    mlmodel: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def plan(fetched: Fetched, folder: Path, *, tool_version: str) -> tuple[Push, list[str]]:
    """What to push, and what people should know about it. Files that were packed into the model are written into `folder`."""
    notes: list[str] = []
    labels, params, description = _from_facts(fetched.facts, notes)
    front, first_words = read_card(fetched.card)
    labels |= front
    description = first_words or description
    inputs, outputs, signed = _from_mlmodel(fetched.mlmodel, fetched.facts, notes)
    params |= signed
    files = []
    for name, content in fetched.facts.associated.items():
        write_whole(folder / name, content, durable=False)
        files.append(LocalFile(folder / name, name))
    step = {"tool": "latebind-import", "version": tool_version, "options": {"source": fetched.origin, **fetched.details}}
    push = Push(
        model_id=slug_of(fetched.name),
        variants=(LocalVariant(None, (LocalFile(fetched.graph, fetched.graph.name), *(LocalFile(one, one.name) for one in fetched.data))),),
        files=tuple(files),
        params=params,
        inputs=inputs,
        outputs=outputs,
        lineage={"steps": [step]},
        description=description[:4000],
        labels={name: value[:255] for name, value in labels.items()},
    )
    return push, notes


def overridden(push: Push, **flags: Any) -> Push:
    """The push with what was said on the command line; None and empty leave the proposal."""
    merged = {name: value for name, value in flags.items() if value}
    for name in ("params", "labels"):
        if name in merged:
            merged[name] = {**getattr(push, name), **merged[name]}
    if "files" in merged:
        merged["files"] = (*push.files, *merged["files"])
    return replace(push, **merged)


def slug_of(name: str) -> str:
    """A model id made of a name: `Acme/Tiny YOLO v2` becomes `tiny-yolo-v2`."""
    text = re.sub(r"[^a-z0-9._-]+", "-", name.rpartition("/")[2].lower())[:64]
    return text.strip("._-") or "model"


def read_card(text: str) -> tuple[dict[str, str], str]:
    """Labels from the YAML front matter of a Hugging Face card, and its first paragraph. A card that cannot be read says nothing."""
    import yaml  # noqa: PLC0415 - part of the extra `cli`

    match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n?(.*)", text[:MAX_CARD], re.DOTALL)
    front, body = (match[1], match[2]) if match else ("", text[:MAX_CARD])
    try:
        parsed = yaml.safe_load(front)
    except (yaml.YAMLError, RecursionError, ValueError):
        parsed = None
    labels: dict[str, str] = {}
    if isinstance(parsed, dict):
        wanted = {
            "license": "license",
            "pipeline_tag": "task",
            "library_name": "library",
            "base_model": "base-model",
            "language": "language",
        }
        for key, label in wanted.items():
            value = parsed.get(key)
            if isinstance(value, list):
                value = ", ".join(str(one) for one in value[:10] if isinstance(one, str))
            if isinstance(value, str) and value:
                labels[label] = value
    paragraphs = (part.strip() for part in re.split(r"\r?\n\s*\r?\n", body))
    words = next((part for part in paragraphs if part and part[0] not in "#<!|[`-*>"), "")
    return labels, " ".join(words.split())[:1000]


def _from_facts(facts: ModelFacts, notes: list[str]) -> tuple[dict[str, str], dict[str, Any], str]:
    """Labels, parameters (always strings: a guessed type would bind the contract) and a description."""
    labels: dict[str, str] = {}
    params: dict[str, Any] = {}
    description = facts.metadata.get("description") or facts.description
    for name, value in facts.metadata.items():
        if name == "description":
            continue
        if name.lower() in _ABOUT:
            labels[_ABOUT[name.lower()]] = value
        elif _PARAMETER.fullmatch(name):
            params[name] = {"type": "string", "value": value}
        else:
            notes.append(f"the metadata {name[:64]!r} is left out: it is no name of a parameter")
    return labels, params, " ".join(description.split())


def _from_mlmodel(
    mlmodel: Mapping[str, Any], facts: ModelFacts, notes: list[str]
) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...], dict[str, Any]]:
    """Inputs, outputs and parameters of a signature, as far as it says them; tensors only where the model has the same names."""
    signature = mlmodel.get("signature")
    if not isinstance(signature, Mapping):
        return (), (), {}
    sides = []
    for side, names in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        listed = _loads(signature.get(side))
        tensors = tuple(tensor for one in listed if (tensor := _tensor(one)) is not None)
        if listed and (len(tensors) != len(listed) or {one["name"] for one in tensors} != set(names)):
            notes.append(f"the signature's {side} do not name the model's ({', '.join(names)}): the model's own are taken")
            tensors = ()
        sides.append(tensors)
    params = {}
    for one in _loads(signature.get("params")):
        name, kind = str(one.get("name")), _PARAM_TYPES.get(str(one.get("type") or one.get("dtype")))
        if kind is None or not _PARAMETER.fullmatch(name) or one.get("default") is None:
            notes.append(f"the signature's parameter {name[:64]!r} is left out: it has no default of a type that is known here")
        else:
            params[name] = {"type": f"{kind}[]" if one.get("shape") else kind, "value": one["default"]}
    return sides[0], sides[1], params


def _loads(text: Any) -> list[Mapping[str, Any]]:
    """MLflow keeps the parts of a signature as JSON texts."""
    try:
        parsed = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return []
    return [one for one in parsed if isinstance(one, Mapping)] if isinstance(parsed, list) else []


def _tensor(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}, "name": "x"}`; -1 is an open size."""
    spec = entry.get("tensor-spec")
    if not isinstance(spec, Mapping) or not isinstance(entry.get("name"), str):
        return None
    dtype, shape = spec.get("dtype"), spec.get("shape")
    dtype = "string" if dtype in {"str", "object"} else dtype
    if dtype not in {*_DTYPES, "string"} or not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        return None
    return {"name": entry["name"], "dtype": dtype, "shape": [None if size < 0 else size for size in shape]}


def data_names(facts: ModelFacts) -> list[str]:
    """Names of the files with a model's external tensors, each plain. Raises ValueError: it points somewhere else."""
    for name in facts.data:
        if not is_plain(name):
            raise ValueError(f"the model keeps tensors in {name[:100]!r}, which is no plain name of a file beside it")
    return list(facts.data)
