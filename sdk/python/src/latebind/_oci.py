"""Writes a version as an OCI image layout after CNCF ModelPack v0.0.7: one manifest per package, raw uncompressed layers.

Formats: OCI image-spec v1.1 (image-layout.md, manifest.md), modelpack/model-spec v0.0.7 (spec.md, config.md, annotations.md), Kitfile
v1.0.0 (KitOps). The same packages make the same bytes. The signed manifest and its signature are layers too, so what is exported can be
verified by whoever has the account's public key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latebind._files import write_whole

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
DATASET = "application/vnd.cncf.model.dataset.v1.raw"

_PATH = "org.cncf.model.filepath"
_TITLE = "org.opencontainers.image.title"
_LAYERS = {"graph": WEIGHT, "graph-data": WEIGHT, "graph-ort": WEIGHT, "golden": DATASET, "auxiliary": WEIGHT_CONFIG}
_FORMATS = {"onnxruntime": "onnx", "litert": "tflite"}

Package = Mapping[str, Any]


def write_layout(
    folder: Path, packages: Sequence[Package], model: Mapping[str, Any], fetch: Callable[[Mapping[str, Any], Path], None]
) -> None:
    """Write the layout into an empty folder. `packages` are the API's, whole, of one version; `model` is the API's model.

    `fetch` puts one file of a package where it belongs, checked against its digest. `index.json` comes last: a folder without it was
    broken off.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    entries = []
    for package in packages:
        for file in package["files"]:
            if not (blobs / file["sha256"]).exists():
                fetch(file, blobs / file["sha256"])
        entries.append(_write_manifest(blobs, package, model))
    write_whole(folder / "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    write_whole(folder / "index.json", _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}))


def tag_of(manifest: Mapping[str, Any]) -> str:
    """The reference of a package in the index: `7-onnx-int8`."""
    return f"{manifest['version']}-{manifest['variant']}"


def _write_manifest(blobs: Path, package: Package, model: Mapping[str, Any]) -> dict[str, Any]:
    manifest, raw = package["manifest"], package["manifest_bytes"]
    layers = [_layer(_LAYERS[file["role"]], file["path"], file["sha256"], file["size"]) for file in manifest["files"]]
    written = {
        "manifest.json": (WEIGHT_CONFIG, raw),
        "signature.json": (WEIGHT_CONFIG, _json(package["signature"])),
        "README.md": (DOC, _card(manifest, model, package["digest"]).encode()),
        "Kitfile": (DOC, _kitfile(manifest, model).encode()),
    }
    taken = {file["path"] for file in manifest["files"]}
    for path, (kind, data) in written.items():
        if path not in taken:  # an owner's own card stands
            layers.append(_layer(kind, path, _put(blobs, data), len(data)))
    config = _json(_config(manifest, model, [layer["digest"] for layer in layers]))
    annotations = {
        "org.opencontainers.image.created": manifest["created_at"],
        "org.opencontainers.image.title": manifest["model_id"],
        "org.opencontainers.image.version": str(manifest["version"]),
        "dev.latebind.package": package["digest"],
        "dev.latebind.account": manifest["account"],
        "dev.latebind.variant": manifest["variant"],
        "dev.latebind.lineage": json.dumps(manifest["lineage"], separators=(",", ":"), sort_keys=True),
    }
    image = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": f"sha256:{_put(blobs, config)}", "size": len(config)},
            "layers": layers,
            "annotations": annotations,
        }
    )
    return {
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "digest": f"sha256:{_put(blobs, image)}",
        "size": len(image),
        "annotations": {"org.opencontainers.image.ref.name": tag_of(manifest)},
    }


def _config(manifest: Mapping[str, Any], model: Mapping[str, Any], digests: list[str]) -> dict[str, Any]:
    descriptor = {
        "createdAt": manifest["created_at"],
        "authors": [manifest["account"]],
        "name": manifest["model_id"],
        "version": str(manifest["version"]),
        "revision": manifest["variant"],
        "title": manifest["model_id"],
    }
    if model["description"]:
        descriptor["description"] = model["description"]
    if model["labels"].get("license"):
        descriptor["licenses"] = [model["labels"]["license"]]
    precision = manifest["variant"].rpartition("-")[2]
    config = {"format": _FORMATS.get(manifest["engine"]["name"], manifest["engine"]["name"])}
    if precision in {"fp32", "fp16", "int8"}:
        config["precision"] = precision
    return {"descriptor": descriptor, "modelfs": {"type": "layers", "diffIds": digests}, "config": config}


def _kitfile(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """YAML whose every scalar is written as JSON, which YAML 1.2 contains: no text can break out of its place."""
    q = json.dumps
    graph = next(file for file in manifest["files"] if file["role"] == "graph")
    lines = ["manifestVersion: 1.0.0", "package:", f"  name: {q(manifest['model_id'])}", f"  version: {q(str(manifest['version']))}"]
    if model["description"]:
        lines.append(f"  description: {q(model['description'])}")
    if model["labels"].get("license"):
        lines.append(f"  license: {q(model['labels']['license'])}")
    lines += [f"  authors: [{q(manifest['account'])}]", "model:", f"  name: {q(manifest['model_id'])}", f"  path: {q(graph['path'])}"]
    lines += [f"  framework: {q(manifest['engine']['name'])}", f"  version: {q(str(manifest['version']))}"]
    parts = [file for file in manifest["files"] if file["role"] in {"graph-data", "graph-ort", "auxiliary"}]
    if parts:
        lines.append("  parts:")
        for file in parts:
            lines += [f"    - path: {q(file['path'])}", f"      type: {q(file['role'])}"]
    if manifest["params"]:
        lines.append("  parameters:")
        lines += [f"    {q(name)}: {q(param['value'])}" for name, param in manifest["params"].items()]
    lines += ["docs:", '  - path: "README.md"']
    return "\n".join(lines) + "\n"


def _card(manifest: Mapping[str, Any], model: Mapping[str, Any], digest: str) -> str:
    """A model card: what a person wants to know first."""

    def tensors(side: str) -> list[str]:
        return [f"- `{one['name']}` {one['dtype']} {json.dumps(one['shape'])}" for one in manifest[side]]

    lines = [f"# {manifest['model_id']} version {manifest['version']}, {manifest['variant']}", ""]
    if model["description"]:
        lines += [model["description"], ""]
    lines += [f"Runs on {manifest['engine']['name']} {manifest['engine'].get('min_version', '')} or newer.", "", "## Inputs", ""]
    lines += [*tensors("inputs"), "", "## Outputs", "", *tensors("outputs"), ""]
    if manifest["params"]:
        lines += ["## Parameters", ""]
        lines += [
            f"- `{name}` ({one['type']}): `{json.dumps(one['value'], ensure_ascii=False)}`" for name, one in manifest["params"].items()
        ]
        lines.append("")
    steps = [f"- {step['tool']} {step.get('version', '')}".rstrip() for step in manifest["lineage"]["steps"]]
    lines += ["## Origin", "", f"Package `{digest}` of the account `{manifest['account']}`, made {manifest['created_at']}.", *steps]
    return "\n".join(lines) + "\n"


def _layer(kind: str, path: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size, "annotations": {_PATH: path, _TITLE: path}}


def _put(blobs: Path, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    write_whole(blobs / sha256, data, durable=False)
    return sha256


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
