"""A slow and plain reading of PRODUCT section 6, to hold `binding.py` against. It shares no code with it.

Rules, context and catalogue come as the JSON values that people and devices write; the answer is a plain dictionary. The catalogue is
`{"versions": {(model, version): {"archived": bool, "manifests": [manifest, …]}}, "aliases": {(model, alias): version}}`, where a
manifest is that of PRODUCT section 4 with its digest under "digest".
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from functools import cmp_to_key


def answer(document: dict, context: dict, catalogue: dict, install_id: str, now: datetime, known_engines: dict) -> dict:
    """Read the rules from top to bottom."""
    refused: list[dict] = []
    anything_matched = False
    for rule in document.get("rules", []):
        when = rule.get("when")
        if when is not None and not holds(when, context):
            continue
        if not is_open(rule.get("active"), now):
            continue
        rollout = rule.get("rollout")
        if rollout is not None and not included(rollout, install_id):
            continue
        anything_matched = True
        serve = rule["serve"]
        reason = "TARGETING_MATCH"
        if "split" in serve:
            reason = "SPLIT"
            serve = split_option(serve, install_id)
        served, failures = try_to_serve(serve, context, catalogue, known_engines)
        if served is not None:
            return {"reason": reason, "rule_id": rule["id"], "digest": served}
        refused += failures
    default = document.get("default")
    if default is not None:
        anything_matched = True
        served, failures = try_to_serve(default, context, catalogue, known_engines)
        if served is not None:
            return {"reason": "DEFAULT", "rule_id": None, "digest": served}
        refused += failures
    if not anything_matched:
        return {"reason": "NO_MATCH", "packages": []}
    packages = []
    for entry in refused:
        if entry not in packages:
            packages.append(entry)
    return {"reason": "NO_COMPATIBLE_PACKAGE", "packages": packages}


# --- when ---------------------------------------------------------------------------------------------------------------------------


def holds(when: dict, context: dict) -> bool:
    if "all" in when:
        return all(holds(part, context) for part in when["all"])
    if "any" in when:
        return any(holds(part, context) for part in when["any"])
    if "not" in when:
        return not holds(when["not"], context)
    return predicate(when["op"], look_up(context, when["attr"]), when["value"])


def look_up(context: dict, path: str):
    """Follow the dotted path. Keys the context does not define count as attributes (section 5)."""
    first, _, rest = path.partition(".")
    if first == "attributes":
        given = context.get("attributes") or {}
        if rest in given and given[rest] is not None:
            return given[rest]
        return unknown_key(context, rest)
    if not rest:
        return context.get(first)
    section = context.get(first)
    return section.get(rest) if isinstance(section, dict) else None


KNOWN = {
    "": {"install_id", "app", "sdk", "device", "os", "locale", "country", "groups", "runtimes", "attributes", "installed"},
    "app": {"id", "version"},
    "sdk": {"name", "version"},
    "device": {"model", "manufacturer", "soc", "abi", "ram_mb", "accelerators"},
    "os": {"name", "version", "api_level"},
}


def unknown_key(context: dict, name: str):
    found = None
    if name in context and name not in KNOWN[""]:
        found = context[name]
    first, _, rest = name.partition(".")
    if first in ("app", "sdk", "device", "os") and rest and rest not in KNOWN[first]:
        found = (context.get(first) or {}).get(rest)
    # Attributes are typed: what is none of the types is not kept.
    return found if is_bool(found) or is_number(found) or is_string(found) or is_list(found) else None


def is_bool(value) -> bool:
    return isinstance(value, bool)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_string(value) -> bool:
    return isinstance(value, str)


def is_list(value) -> bool:
    return isinstance(value, list) and all(is_string(member) for member in value)


def equal(one, other) -> bool:
    if is_bool(one) or is_bool(other):
        return is_bool(one) and is_bool(other) and one == other
    if is_number(one) and is_number(other):
        return one == other
    return is_string(one) and is_string(other) and one == other


def predicate(op: str, actual, value) -> bool:
    if op == "exists":
        return (actual is not None) == value
    if op == "eq":
        return equal(actual, value)
    if op == "ne":
        return not equal(actual, value)
    if op == "in":
        return any(equal(actual, member) for member in value)
    if op == "not_in":
        return not any(equal(actual, member) for member in value)
    if op in ("gt", "gte", "lt", "lte", "between"):
        if not is_number(actual):
            return False
        return {
            "gt": lambda: actual > value,
            "gte": lambda: actual >= value,
            "lt": lambda: actual < value,
            "lte": lambda: actual <= value,
            "between": lambda: value[0] <= actual <= value[1],
        }[op]()
    if op == "prefix":
        return is_string(actual) and actual[: len(value)] == value
    if op == "suffix":
        return is_string(actual) and (value == "" or actual[-len(value) :] == value)
    if op == "contains_any":
        return is_list(actual) and any(member in actual for member in value)
    if op == "contains_all":
        return is_list(actual) and all(member in actual for member in value)
    if not is_string(actual):
        return False
    order = compare_versions(actual, value)
    if order is None:
        return False
    return {"semver_gt": order > 0, "semver_gte": order >= 0, "semver_lt": order < 0, "semver_lte": order <= 0}[op]


# --- semantic versions (semver.org, 2.0) ----------------------------------------------------------------------------------------------


def read_version(text: str):
    """Return (numbers, pre-release identifiers) or None."""
    if len(text) > 256:
        return None
    body, plus, build = text.partition("+")
    if plus and not all(re.fullmatch(r"[0-9A-Za-z-]+", part) for part in build.split(".")):
        return None
    core, dash, before = body.partition("-")
    numbers = core.split(".")
    if len(numbers) > 3 or not all(re.fullmatch(r"0|[1-9][0-9]*", part) for part in numbers):
        return None
    identifiers = before.split(".") if dash else []
    for part in identifiers:
        if not re.fullmatch(r"[0-9A-Za-z-]+", part) or (part.isdigit() and len(part) > 1 and part[0] == "0"):
            return None
    while len(numbers) < 3:
        numbers.append("0")
    return [int(part) for part in numbers], identifiers


def compare_versions(one: str, other: str):
    """Return below 0, 0 or above 0; None when one of them is no version."""
    mine, theirs = read_version(one), read_version(other)
    if mine is None or theirs is None:
        return None
    return compare_read(mine, theirs)


def compare_read(mine, theirs) -> int:
    if mine[0] != theirs[0]:
        return 1 if mine[0] > theirs[0] else -1
    if not mine[1] or not theirs[1]:
        return bool(theirs[1]) - bool(mine[1])
    for left, right in zip(mine[1], theirs[1], strict=False):
        if left == right:
            continue
        if left.isdigit() and right.isdigit():
            return 1 if int(left) > int(right) else -1
        if left.isdigit() != right.isdigit():
            return -1 if left.isdigit() else 1
        return 1 if left > right else -1
    return len(mine[1]) - len(theirs[1])


version_order = cmp_to_key(compare_read)


# --- time, percentage, split ------------------------------------------------------------------------------------------------------------


def is_open(active: dict | None, now: datetime) -> bool:
    if active is None:
        return True
    start, end = active.get("from"), active.get("until")
    if start is not None and now < datetime.fromisoformat(start):
        return False
    return end is None or now < datetime.fromisoformat(end)


def murmur3_x86_32(data: bytes, seed: int = 0) -> int:
    """Austin Appleby's MurmurHash3, x86, 32 bit."""
    mask = 0xFFFFFFFF
    h = seed
    rounded = len(data) // 4 * 4

    def mixed(k: int) -> int:
        k = k * 0xCC9E2D51 & mask
        k = (k << 15 | k >> 17) & mask
        return k * 0x1B873593 & mask

    for i in range(0, rounded, 4):
        h ^= mixed(int.from_bytes(data[i : i + 4], "little"))
        h = (h << 13 | h >> 19) & mask
        h = (h * 5 + 0xE6546B64) & mask
    if data[rounded:]:
        h ^= mixed(int.from_bytes(data[rounded:], "little"))
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    return h ^ h >> 16


def included(rollout: dict, install_id: str) -> bool:
    h = murmur3_x86_32((rollout["salt"] + "." + install_id).encode())
    return (h * 100000) >> 32 < Decimal(str(rollout["percent"])) * 1000


def split_option(serve: dict, install_id: str) -> dict:
    h = murmur3_x86_32((serve["salt"] + "." + install_id).encode())
    total_weight = sum(option["weight"] for option in serve["split"])
    point = (h * total_weight) >> 32
    running = 0
    for option in serve["split"]:
        running += option["weight"]
        if running > point:
            return option
    raise AssertionError


# --- can run ----------------------------------------------------------------------------------------------------------------------------


def try_to_serve(target: dict, context: dict, catalogue: dict, known_engines: dict):
    """Return (digest, []) or (None, what was refused)."""
    model, variant = target["model"], target.get("variant")

    def gone(version, condition, needed, reported):
        entry = {"model_id": model, "version": version, "variant": variant, "condition": condition, "needed": needed, "reported": reported}
        return None, [entry]

    version = target.get("version")
    if "alias" in target and target["alias"] is not None:
        version = catalogue["aliases"].get((model, target["alias"]))
        if version is None:
            return gone(None, "alias", target["alias"], None)
    entry = catalogue["versions"].get((model, version))
    if entry is None:
        return gone(version, "version", "ready", None)
    if entry["archived"]:
        return gone(version, "archived", False, True)
    manifests = [manifest for manifest in entry["manifests"] if variant is None or manifest["variant"] == variant]
    if not manifests:
        return gone(version, "variant", variant, [manifest["variant"] for manifest in entry["manifests"]])
    failures = []
    for manifest in manifests:
        obstacle = why_not(manifest, context, known_engines)
        if obstacle is None:
            return manifest["digest"], []
        condition, needed, reported = obstacle
        failures.append(
            {
                "model_id": model,
                "version": version,
                "variant": manifest["variant"],
                "condition": condition,
                "needed": needed,
                "reported": reported,
            }
        )
    return None, failures


def why_not(manifest: dict, context: dict, known_engines: dict):
    engine = manifest["engine"]
    reported = context.get("runtimes")
    runtimes = [runtime for runtime in reported if isinstance(runtime, dict)] if isinstance(reported, list) else []
    same = [runtime for runtime in runtimes if runtime.get("engine") == engine["name"]]
    if not same:
        return "engine", engine["name"], sorted({str(runtime.get("engine")) for runtime in runtimes})
    obstacles = [runtime_obstacle(engine, runtime, known_engines) for runtime in same]
    if None not in obstacles:
        return obstacles[0]
    requires = manifest.get("requires") or {}
    device = context.get("device") or {}
    if requires.get("abi"):
        allowed = [requires["abi"]] if is_string(requires["abi"]) else requires["abi"]
        if is_string(device.get("abi")) and device["abi"] not in allowed:
            return "abi", allowed, device["abi"]
    if requires.get("ram_mb") is not None and is_number(device.get("ram_mb")) and device["ram_mb"] < requires["ram_mb"]:
        return "ram_mb", requires["ram_mb"], device["ram_mb"]
    needed = requires.get("accelerators") or []
    if needed and isinstance(device.get("accelerators"), list) and any(name not in device["accelerators"] for name in needed):
        return "accelerators", sorted(needed), device["accelerators"]
    return None


def runtime_obstacle(engine: dict, runtime: dict, known_engines: dict):
    version = runtime.get("version") if is_string(runtime.get("version")) else None
    if engine.get("min_version") is not None and version is not None:
        has = engine_version(version)
        if has is None or compare_read(has, engine_version(engine["min_version"])) < 0:
            return "min_version", engine["min_version"], version
    needs = {"ir_version": engine.get("ir_version"), "opset": (engine.get("opset") or {}).get("")}
    for which, condition in enumerate(("ir_version", "opset")):
        needed = needs[condition]
        if needed is None:
            continue
        most = runtime.get({"ir_version": "max_ir", "opset": "max_opset"}[condition])
        if is_number(most):
            if needed > most:
                return condition, needed, most
            continue
        # What is known of that engine version; nothing is known above the newest entry.
        if engine["name"] != "onnxruntime" or version is None:
            continue
        has = engine_version(version)
        if has is None or has[0][0] != 1 or has[0][1] not in known_engines:
            continue
        if needed > known_engines[has[0][1]][which]:
            return condition, needed, known_engines[has[0][1]][which]
    return None


def engine_version(text: str):
    read = read_version(text)
    if read is None:
        match = re.match(r"\d{1,9}(\.\d{1,9}){0,2}", text)
        if match:
            numbers = [int(part) for part in match[0].split(".")]
            read = ([*numbers, 0, 0])[:3], []
    return read
