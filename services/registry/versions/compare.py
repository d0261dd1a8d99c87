"""What differs between two versions: each is laid out as facts (area, name → value), and the facts are compared. Pure.

Engines and operators are known from the signed manifests only; a version that is not ready has none of them yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.registry.versions.contract import Breach, ContractLevel

#: The order in which areas are answered.
AREAS = ("parameters", "inputs", "outputs", "variants", "engine", "operators", "files", "sizes", "requires", "golden")

Facts = dict[tuple[str, str], Any]


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
    """Differences first, then what is the same; both by area, then by name. `breaches`: promises of the first that the second breaks."""

    differences: list[Difference]
    same: list[Fact]
    contract_level: ContractLevel = ContractLevel.FROZEN
    breaches: list[Breach] = field(default_factory=list)


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


def facts_of(declaration: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> Facts:
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
        facts["golden", key] = value
    names = [manifest["variant"] for manifest in manifests]
    for index, variant in enumerate(declaration["variants"]):
        name = names[index] if index < len(names) else variant.get("name") or f"variant {index + 1}"
        facts["variants", name] = {"place": index + 1}
        for file in variant["files"]:
            facts["files", f"{name}: {file['path']}"] = {"sha256": file["sha256"], "size": file["size"]}
    for manifest in manifests:
        facts.update(_facts_of_package(manifest))
    return facts


def _facts_of_package(manifest: Mapping[str, Any]) -> Facts:
    variant, engine = manifest["variant"], manifest["engine"]
    facts: Facts = {("engine", f"{variant}: {key}"): value for key, value in engine.items() if key != "operators" and value is not None}
    for operator in engine.get("operators", ()):
        facts["operators", f"{variant}: {operator}"] = True
    facts["sizes", variant] = sum(file["size"] for file in manifest["files"])
    return facts
