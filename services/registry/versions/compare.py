"""What differs between two versions: each is laid out as facts (area, name → value), and the facts are compared. Pure.

Engines and operators are known from the signed manifests only; a version that is not ready has none of them yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.registry.versions.contract import Breach, ContractLevel

#: The order in which areas are answered.
AREAS = ("parameters", "inputs", "outputs", "variants", "engine", "operators", "files", "sizes", "requires", "golden", "gates")

Facts = dict[tuple[str, str], Any]
#: What the gates found about the earlier and the later version.
Reports = tuple[dict[str, Any] | None, dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that differs: `added`, `removed` or `changed`; the side without it is None."""

    area: str
    name: str
    change: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact that is the same on both sides."""

    area: str
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences first, then what is the same; both by area, then by name. `breaches`: promises of the first that the second breaks.

    `reports`: what the gates found about each.
    """

    differences: list[Difference]
    same: list[Fact]
    contract_level: ContractLevel = ContractLevel.FROZEN
    breaches: list[Breach] = field(default_factory=list)
    reports: Reports = (None, None)


def compare(before: Facts, after: Facts) -> Comparison:
    """Compare two versions' facts."""
    differences, same = [], []
    for area, name in sorted(before.keys() | after.keys(), key=lambda fact: (AREAS.index(fact[0]), fact[1])):
        old, new = before.get((area, name)), after.get((area, name))
        if old == new:
            same.append(Fact(area, name, old))
        else:
            change = "added" if (area, name) not in before else "removed" if (area, name) not in after else "changed"
            differences.append(Difference(area, name, change, old, new))
    return Comparison(differences, same)


def facts_of(declaration: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]], report: Mapping[str, Any] | None = None) -> Facts:
    """Lay out a version. `manifests` are those of its packages; empty before it is ready."""
    facts: Facts = {}
    digests = {file["path"]: file["sha256"] for file in declaration["files"]}
    for name, param in declaration["params"].items():
        # A file parameter that keeps its path but not its bytes has changed.
        extra = {"sha256": digests[param["value"]]} if param["type"] == "file" else {}
        if param.get("default") is not None:
            extra["default"] = param["default"]
        facts["parameters", name] = {"type": param["type"], "value": param["value"], **extra}
    for side in ("inputs", "outputs"):
        tensors = declaration.get(side) or (manifests[0][side] if manifests else [])
        for tensor in tensors:
            facts[side, tensor["name"]] = {key: tensor[key] for key in ("dtype", "shape", "range") if tensor.get(key) is not None}
    for file in declaration["files"]:
        facts["files", file["path"]] = {"sha256": file["sha256"], "size": file["size"]}
    for key, value in (declaration.get("requires") or {}).items():
        facts["requires", key] = value
    for key, value in (declaration.get("golden") or {}).items():
        facts["golden", key] = value if key != "input" else {name: value[name] for name in ("sha256", "size")}
    for private in _private_files(declaration):
        facts["files", f"{private['of']}: {private['path']}"] = {"sha256": private["sha256"], "size": private["size"]}
    for index, (name, variant) in enumerate(zip(_names(declaration, manifests), declaration["variants"], strict=True)):
        facts["variants", name] = {"place": index + 1, **variant.get("convert", {})}
        for file in variant.get("files", ()):
            facts["files", f"{name}: {file['path']}"] = {"sha256": file["sha256"], "size": file["size"]}
    for manifest in manifests:
        facts.update(_facts_of_package(manifest))
    for row in (report or {}).get("variants", ()):
        facts.update(_facts_of_gates(row))
    return facts


def _names(declaration: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the variants: as declared, by what they are made to, or as the packager called what had no name."""
    said = [variant.get("name") or variant.get("convert", {}).get("to") for variant in declaration["variants"]]
    rest = [manifest["variant"] for manifest in manifests if manifest["variant"] not in said]
    return [name or (rest.pop(0) if rest else f"variant {index + 1}") for index, name in enumerate(said)]


def _private_files(declaration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the packager reads and no package carries."""
    files = [{"of": "source", **file} for file in (declaration.get("source") or {}).get("files", ())]
    if declaration.get("calibration"):
        files.append({"of": "calibration", **declaration["calibration"]})
    if declaration.get("evaluation"):
        files.append({"of": "evaluation", **declaration["evaluation"]["file"]})
    return files


def _facts_of_gates(row: Mapping[str, Any]) -> Facts:
    """What can be compared between two versions; speed and memory are estimates of one moment, and only in the whole reports."""
    name = row["variant"]
    facts: Facts = {("gates", f"{name}: state"): row["state"]}
    if row.get("accuracy"):
        facts["gates", f"{name}: accuracy"] = {key: row["accuracy"].get(key) for key in ("metric", "value", "samples", "floor")}
    for output in (row.get("parity") or {}).get("outputs", ()):
        facts["gates", f"{name}: parity of {output['name']}"] = {key: output[key] for key in ("worst", "mean", "passed")}
    return facts


def _facts_of_package(manifest: Mapping[str, Any]) -> Facts:
    variant, engine = manifest["variant"], manifest["engine"]
    facts: Facts = {("engine", f"{variant}: {key}"): value for key, value in engine.items() if key != "operators" and value is not None}
    for operator in engine.get("operators", ()):
        facts["operators", f"{variant}: {operator}"] = True
    facts["sizes", variant] = sum(file["size"] for file in manifest["files"])
    return facts
