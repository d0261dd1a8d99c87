"""Rules, packages and devices for the benchmarks of the deployer: the same ones for us and for the peers."""

from __future__ import annotations

import random
import uuid
from typing import Any

from services.deployer.binding import Bound, Catalogue, VersionEntry, bind, compile_rules
from services.deployer.compatibility import Package, package_of
from services.deployer.rules import parse_rules

SOCS = [f"soc-{number}" for number in range(200)]
COUNTRIES = ["DE", "FR", "US", "JP", "BR", "IN", "GB", "ES"]
LEVELS = list(range(24, 37))
VERSIONS = [f"{major}.{minor}.0" for major in range(1, 6) for minor in range(4)]


def rule(rng: random.Random, name: str, socs: list[str]) -> dict[str, Any]:
    """Return a rule over four attributes; it serves everyone who meets it."""
    return {
        "id": name,
        "when": {
            "all": [
                {"attr": "device.soc", "op": "in", "value": rng.sample(socs, 3)},
                {"attr": "os.api_level", "op": "gte", "value": rng.choice(LEVELS[:6])},
                {"attr": "country", "op": "in", "value": rng.sample(COUNTRIES, 3)},
                {"attr": "app.version", "op": "semver_gte", "value": rng.choice(VERSIONS[:10])},
            ]
        },
        "rollout": {"percent": 100, "salt": name},
        "serve": {"model": "yolo", "version": rng.randint(1, 3)},
    }


def document(rng: random.Random, rules: int, *, default: bool = False) -> dict[str, Any]:
    """Return a document of so many rules. With few rules the devices come from few systems-on-chip, so that many match."""
    socs = SOCS[: max(6, min(len(SOCS), rules // 2))]
    found: dict[str, Any] = {"rules": [rule(rng, f"r{place}", socs) for place in range(rules)]}
    if default:
        found["default"] = {"model": "yolo", "version": 1}
    return found


def device(rng: random.Random, rules: int) -> dict[str, Any]:
    """Return a device context of about 700 bytes; every package runs on it."""
    socs = SOCS[: max(6, min(len(SOCS), rules // 2))]
    return {
        "install_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "app": {"id": "com.acme.cam", "version": rng.choice(VERSIONS)},
        "sdk": {"name": "latebind-python", "version": "1.0.0"},
        "device": {
            "model": "Pixel 9",
            "manufacturer": "Google",
            "soc": rng.choice(socs),
            "abi": "arm64-v8a",
            "ram_mb": 12288,
            "accelerators": ["gpu", "npu"],
        },
        "os": {"name": "android", "version": "16", "api_level": rng.choice(LEVELS)},
        "locale": "de-DE",
        "country": rng.choice(COUNTRIES),
        "groups": ["beta"],
        "runtimes": [
            {"engine": "onnxruntime", "version": "1.20.1", "max_ir": 10, "max_opset": 21},
            {"engine": "litert", "version": "2.1.0"},
        ],
        "attributes": {"fleet": "north"},
        "installed": [],
    }


def manifest(version: int) -> dict[str, Any]:
    """Return a small manifest."""
    return {
        "model_id": "yolo",
        "version": version,
        "variant": "onnx-fp32",
        "engine": {"name": "onnxruntime", "min_version": "1.18", "ir_version": 9, "opset": {"": 17}},
        "requires": {"ram_mb": 512},
        "files": [{"path": "model.onnx", "role": "graph", "size": 1000, "sha256": f"{version:064x}"}],
    }


def packages() -> dict[int, Package]:
    """Return the package of each version."""
    return {version: package_of(manifest(version), digest=f"{version:064x}", size=1000) for version in (1, 2, 3)}


def catalogue() -> Catalogue:
    """Return three versions with one package each."""
    return Catalogue({("yolo", version): VersionEntry((package,)) for version, package in packages().items()}, {})


def bound(content: dict[str, Any], found: Catalogue, *, collection: str = "c", now: float = 0.0) -> Bound:
    """Return a document compiled, bound and open."""
    return bind(compile_rules(parse_rules(content)), found, collection=collection, revision=1, content="x").at(now)
