"""Random rules, catalogues and devices from a seed, drawn from small pools so that they meet often. Used by tests and benchmarks."""

from __future__ import annotations

import random
import uuid
from typing import Any

SOCS = ["sm8650", "sm8750", "tensor-g4", "exynos-2400", "mt6989", "SM8650", ""]
MODELS = ["yolo", "magika"]
VARIANTS = ["onnx-fp32", "onnx-int8", "tflite-fp32"]
VERSIONS = ["16", "16.0.0", "15", "4.2.0", "4.2.0-rc.1", "4.2.0-rc.2", "4.2.0-alpha", "4.10.0", "1.2.3+7", "01.2", "1.2.3.4", "x", "1.0-0"]
NUMBERS: list[Any] = [0, 1, 21, 28, 29, 29.0, 29.5, 30, 36, -1, 4096, 12288]
GROUPS = ["beta", "staff", "east", "west"]
WRONG: list[Any] = ["29", 29, True, False, 1.0, [], ["beta"], ["beta", 3], "beta", 0]
MOMENTS = ["2026-11-01T00:00:00Z", "2026-11-22T10:00:00Z", "2026-11-22T12:00:00+02:00", "2026-12-01T00:00:00Z"]

TEXT = {
    "device.soc": SOCS,
    "device.model": ["Pixel 9", "Pixel 8", "Galaxy S24"],
    "os.version": VERSIONS,
    "app.version": VERSIONS,
    "country": ["DE", "FR", "US"],
    "locale": ["de-DE", "en-US"],
    "os.name": ["android", "linux"],
}
NUMERIC = {"os.api_level": NUMBERS, "device.ram_mb": NUMBERS}
LISTS = {"groups": GROUPS, "device.accelerators": ["gpu", "npu", "dsp"]}
FREE = ["attributes.fleet", "attributes.ring", "attributes.device.npu_tops", "attributes.beta_user"]
FREE_VALUES: list[Any] = ["north", "south", 1, 1.0, 2, True, False, "1", "4.2.0"]


def leaf(rng: random.Random) -> dict[str, Any]:
    """Return a predicate that a publish would accept."""
    family = rng.choice(["text", "text", "number", "list", "free", "exists"])
    if family == "exists":
        attr = rng.choice([*TEXT, *NUMERIC, *LISTS, *FREE])
        return {"attr": attr, "op": "exists", "value": rng.random() < 0.5}
    if family == "list":
        attr = rng.choice(list(LISTS))
        return {"attr": attr, "op": rng.choice(["contains_any", "contains_all"]), "value": some(rng, LISTS[attr])}
    if family == "number":
        attr = rng.choice(list(NUMERIC))
        return _numeric(rng, attr, NUMERIC[attr])
    if family == "text":
        attr = rng.choice(list(TEXT))
        return _textual(rng, attr, TEXT[attr])
    attr = rng.choice(FREE)
    kind = rng.randrange(4)
    if kind == 0:
        return _numeric(rng, attr, NUMBERS[:6])
    if kind == 1:
        return _textual(rng, attr, ["north", "south", "4.2.0", "1"])
    if kind == 2:
        return {"attr": attr, "op": rng.choice(["contains_any", "contains_all"]), "value": some(rng, GROUPS)}
    op = rng.choice(["eq", "ne", "in", "not_in"])
    return {"attr": attr, "op": op, "value": rng.choice(FREE_VALUES) if op in ("eq", "ne") else some(rng, FREE_VALUES)}


def _numeric(rng: random.Random, attr: str, pool: list[Any]) -> dict[str, Any]:
    op = rng.choice(["eq", "ne", "in", "not_in", "gt", "gte", "lt", "lte", "between"])
    if op == "between":
        return {"attr": attr, "op": op, "value": sorted(rng.choices(pool, k=2))}
    return {"attr": attr, "op": op, "value": some(rng, pool) if op in ("in", "not_in") else rng.choice(pool)}


def _textual(rng: random.Random, attr: str, pool: list[str]) -> dict[str, Any]:
    op = rng.choice(["eq", "ne", "in", "not_in", "prefix", "suffix", "semver_gt", "semver_gte", "semver_lt", "semver_lte"])
    if op.startswith("semver"):
        return {"attr": attr, "op": op, "value": rng.choice(["16", "4.2.0", "4.2.0-rc.1", "4.2", "1.2.3", "0"])}
    if op in ("prefix", "suffix"):
        word = rng.choice(pool)
        return {"attr": attr, "op": op, "value": word[: rng.randrange(4)] if op == "prefix" else word[max(0, len(word) - 2) :]}
    return {"attr": attr, "op": op, "value": some(rng, pool) if op in ("in", "not_in") else rng.choice(pool)}


def some(rng: random.Random, pool: list[Any]) -> list[Any]:
    """Return one to three values of the pool."""
    return rng.choices(pool, k=rng.randint(1, 3))


def predicate(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a predicate, at most four deep."""
    kind = rng.random()
    if depth >= 4 or kind < 0.5:
        return leaf(rng)
    if kind < 0.65:
        return {"not": predicate(rng, depth + 1)}
    return {"all" if kind < 0.85 else "any": [predicate(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def target(rng: random.Random) -> dict[str, Any]:
    """Return a target; some of them point at what is archived or gone."""
    found: dict[str, Any] = {"model": rng.choice(MODELS)}
    if rng.random() < 0.3:
        found["alias"] = rng.choice(["stable", "canary", "gone"])
    else:
        found["version"] = rng.randint(1, 4)
    if rng.random() < 0.4:
        found["variant"] = rng.choice(VARIANTS)
    return found


def rule(rng: random.Random, name: str) -> dict[str, Any]:
    """Return a rule."""
    found: dict[str, Any] = {"id": name}
    if rng.random() < 0.9:
        found["when"] = predicate(rng)
    if rng.random() < 0.2:
        first, last = sorted(rng.sample(range(len(MOMENTS)), 2))
        found["active"] = {"from": rng.choice([None, MOMENTS[first]]), "until": rng.choice([None, MOMENTS[last]])}
        if found["active"] == {"from": MOMENTS[1], "until": MOMENTS[2]}:  # the same moment, written in two zones
            found["active"]["until"] = None
    if rng.random() < 0.4:
        found["rollout"] = {"percent": rng.choice([0, 0.001, 16.1, 25.0, 50, 99.999, 100]), "salt": rng.choice(["r7", "r8"])}
    if rng.random() < 0.25:
        arms = [{"weight": rng.randint(0, 3), **target(rng)} for _ in range(rng.randint(1, 3))]
        arms[0]["weight"] += 1
        found["serve"] = {"split": arms, "salt": "ab-1"}
    else:
        found["serve"] = target(rng)
    return found


def document(rng: random.Random, *, most: int = 8) -> dict[str, Any]:
    """Return a rules document."""
    found: dict[str, Any] = {"rules": [rule(rng, f"r{place}") for place in range(rng.randint(0, most))]}
    if rng.random() < 0.6:
        found["default"] = target(rng)
    return found


def manifest(rng: random.Random, model: str, version: int, variant: str) -> dict[str, Any]:
    """Return what a decision reads of a manifest, with its digest."""
    engine: dict[str, Any] = {"name": "litert" if variant.startswith("tflite") else "onnxruntime"}
    if rng.random() < 0.8:
        engine["min_version"] = rng.choice(["1.16", "1.18", "1.20.1", "2.1.0", "1.20.0-rc.1"])
    if engine["name"] == "onnxruntime":
        engine["ir_version"], engine["opset"] = rng.choice([8, 9, 10, 12]), {"": rng.choice([13, 17, 21, 23]), "ai.onnx.ml": 3}
    requires: dict[str, Any] = {}
    if rng.random() < 0.4:
        requires["ram_mb"] = rng.choice([512, 4096, 8192.0])
    if rng.random() < 0.3:
        requires["abi"] = rng.choice([["arm64-v8a"], ["arm64-v8a", "x86_64"], "arm64-v8a"])
    if rng.random() < 0.2:
        requires["accelerators"] = rng.choice([["npu"], ["gpu", "npu"]])
    return {
        "model_id": model,
        "version": version,
        "variant": variant,
        "engine": engine,
        "requires": requires,
        "digest": f"{model}-{version}-{variant}",
    }


def catalogue(rng: random.Random) -> dict[str, Any]:
    """Return versions 1 to 3 of both models (one archived now and then) and their aliases."""
    versions = {}
    for model in MODELS:
        for version in (1, 2, 3):
            variants = rng.sample(VARIANTS, rng.randint(1, 3))
            versions[model, version] = {
                "archived": rng.random() < 0.15,
                "manifests": [manifest(rng, model, version, variant) for variant in variants],
            }
    aliases = {(model, alias): rng.randint(1, 3) for model in MODELS for alias in ("stable", "canary") if rng.random() < 0.9}
    return {"versions": versions, "aliases": aliases}


def maybe(rng: random.Random, section: dict[str, Any], key: str, pool: list[Any]) -> None:
    """Set a key: usually from the pool, sometimes not at all, null, or of a wrong type."""
    chance = rng.random()
    if chance < 0.75:
        section[key] = rng.choice(pool)
    elif chance < 0.85:
        section[key] = rng.choice(WRONG)
    elif chance < 0.9:
        section[key] = None


def device(rng: random.Random) -> dict[str, Any]:
    """Return a device context, with gaps and mistakes."""
    found: dict[str, Any] = {"install_id": str(uuid.UUID(int=rng.getrandbits(128), version=4))}
    for path, pool in (TEXT | NUMERIC).items():
        section, dot, key = path.partition(".")
        maybe(rng, found.setdefault(section, {}) if dot else found, key if dot else section, pool)
    for path, members in LISTS.items():
        section, dot, key = path.partition(".")
        maybe(rng, found.setdefault(section, {}) if dot else found, key if dot else section, [some(rng, members), members, []])
    if rng.random() < 0.8:
        found["attributes"] = {}
        # An attribute that has no type at all is refused with the request, so there are no mixed lists here.
        for name, pool in (
            ("fleet", ["north", "south", 1, 2.0]),
            ("ring", [1, 2, 29, "1", "4.2.0", ["beta"]]),
            ("beta_user", [True, False]),
        ):
            maybe(rng, found["attributes"], name, pool)
            if found["attributes"].get(name) == ["beta", 3]:
                found["attributes"][name] = ["beta", "3"]
    maybe(rng, found["device"], "npu_tops", [1, 1.0, 2, "north"])
    maybe(rng, found["device"], "abi", ["arm64-v8a", "x86_64"])
    if rng.random() < 0.3:
        found["ring"] = rng.choice([1, "north", ["beta"], {"a": 1}])
    if rng.random() < 0.95:
        found["runtimes"] = [runtime(rng) for _ in range(rng.randint(0, 3))]
    for section in ("app", "sdk", "os"):
        if rng.random() < 0.05:
            found[section] = None
    return found


def runtime(rng: random.Random) -> dict[str, Any]:
    """Return one reported runtime."""
    found: dict[str, Any] = {"engine": rng.choice(["onnxruntime", "onnxruntime", "litert", "ncnn"])}
    maybe(rng, found, "version", ["1.15.0", "1.18", "1.20.1", "1.20.0-rc.2", "1.32.0", "1.99.0", "2.1.0", "2.1.0rc1", "v3", "2"])
    if rng.random() < 0.4:
        maybe(rng, found, "max_ir", [1, 9, 10.0, 10, 13])
        maybe(rng, found, "max_opset", [17, 21, 23])
    return found
