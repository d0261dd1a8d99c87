"""Builds manifests and statements: declaration, what the child found, and digests in; bytes and a package digest out. Pure.

The same inputs give the same bytes. The bytes are signed and served exactly as built here (no canonicalisation).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.packager.answer import Answer, tensor_to_json
from services.packager.declaration import GOLDEN_FOLDER, Declaration, File, Variant
from services.packager.domain import Engine, Tensor, agree
from services.packager.errors import ModelRejected, Reason

STATEMENT_TYPE = "application/vnd.in-toto+json"
GOLDEN_INPUT = f"{GOLDEN_FOLDER}/input.npz"
GOLDEN_OUTPUT = f"{GOLDEN_FOLDER}/output.npz"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose version is packaged. `created_at` (RFC 3339) is the time of the commit, so that a repeated job makes the same bytes."""

    account: str
    model_id: str
    version: int
    job_id: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as it will be served. `digest` is the package's id, `size` the sum of its files in bytes."""

    variant: str
    body: bytes
    digest: str
    files: tuple[File, ...]
    size: int


def variant_name(variant: Variant, answer: Answer) -> str:
    """Return the declared name, or format and precision: `onnx-fp32`, `tflite-int8`."""
    return variant.name or f"{answer.found.format}-{answer.found.precision}"


def check_variants(names: list[str], answers: list[Answer]) -> None:
    """Check that all variants of a version can stand in for each other. Raises `ModelRejected`: DECLARATION_INVALID, VARIANTS_DISAGREE."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelRejected(Reason.DECLARATION_INVALID, f'Two variants would be called "{twice}". Give them names.')
    for name, answer in zip(names[1:], answers[1:], strict=True):
        first = answers[0]
        _compare("input", names[0], first.found.inputs, name, answer.found.inputs)
        _compare("output", names[0], first.found.outputs, name, answer.found.outputs)


def examination(tool_version: str, sandbox: str) -> dict[str, Any]:
    """Return the last step of a lineage: who examined the variant, and how strong the walls around that were."""
    return {"tool": "latebind-packager", "version": tool_version, "options": {"sandbox": sandbox}}


def build_manifest(
    identity: Identity,
    declaration: Declaration,
    variant: Variant,
    answer: Answer,
    *,
    golden_input: File,
    golden_output: File,
    examined: Mapping[str, Any],
) -> Manifest:
    """Build the manifest (version 1) of one variant; `examined` is the last step of its lineage.

    Files come in this order: graph, its data files, its form for one runtime, golden input and output, then the version's auxiliary files.
    """
    files = (*variant.files, golden_input, golden_output, *declaration.files)
    name = variant_name(variant, answer)
    manifest = {
        "manifest_version": 1,
        "account": identity.account,
        "model_id": identity.model_id,
        "version": identity.version,
        "variant": name,
        "created_at": identity.created_at,
        "engine": _engine(answer.found.engine, variant),
        "inputs": [tensor_to_json(tensor) for tensor in answer.found.inputs],
        "outputs": [tensor_to_json(tensor) for tensor in answer.found.outputs],
        "params": declaration.params,
        "files": [{"path": file.path, "role": file.role, "size": file.size, "sha256": file.sha256} for file in files],
        "requires": {"ram_mb": answer.ram_mb, **declaration.requires},
        "golden": {
            "input": golden_input.path,
            "output": golden_output.path,
            "rtol": answer.rtol,
            "atol": answer.atol,
        },
        "lineage": {
            "source_sha256": declaration.lineage["source_sha256"] or list(variant.sources) or [file.sha256 for file in variant.files],
            "steps": [*declaration.lineage["steps"], *variant.steps, examined],
        },
    }
    body = _json(manifest)
    return Manifest(name, body, hashlib.sha256(body).hexdigest(), files, sum(file.size for file in files))


def build_statement(identity: Identity, manifest: Manifest, tool_version: str, sandbox: str) -> bytes:
    """Build the in-toto Statement v1 that is signed: subjects are the manifest and its files in order. docs/wire.md has the fields."""
    subjects = [("manifest.json", manifest.digest), *((file.path, file.sha256) for file in manifest.files)]
    return _json(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
            "predicateType": "https://latebind.dev/package/v1",
            "predicate": {
                "account": identity.account,
                "model_id": identity.model_id,
                "version": identity.version,
                "variant": manifest.variant,
                "job_id": identity.job_id,
                "tool": {"name": "latebind-packager", "version": tool_version},
                "sandbox": sandbox,
            },
        }
    )


def _engine(engine: Engine, variant: Variant) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": engine.name,
        "min_version": engine.min_version,
        "min_runtime_version": engine.min_runtime_version,
        "ir_version": engine.ir_version,
        "opset": engine.opset,
        "operators": list(engine.operators),
        "ort": None if variant.ort is None else {"path": variant.ort.path, "version": variant.ort_version},
    }
    return {name: value for name, value in fields.items() if value is not None}


def _compare(kind: str, first_name: str, first: tuple[Tensor, ...], name: str, others: tuple[Tensor, ...]) -> None:
    by_name = {tensor.name: tensor for tensor in others}
    for tensor in first:
        other = by_name.pop(tensor.name, None)
        if other is None or not agree(tensor, other):
            found = "does not exist" if other is None else f"is {other.describe()}"
            raise ModelRejected(
                Reason.VARIANTS_DISAGREE,
                f'The {kind} "{tensor.name}" is {tensor.describe()} in variant {first_name}, but {found} in variant {name}. '
                "An app must be able to use every variant of a version alike: export them with the same names, types and shapes.",
            )
    if by_name:
        extra = next(iter(by_name))
        raise ModelRejected(Reason.VARIANTS_DISAGREE, f'Variant {name} has the {kind} "{extra}", which variant {first_name} does not have.')


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
