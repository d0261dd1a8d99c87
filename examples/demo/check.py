"""Holds the server's figures against what the devices counted themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from examples.demo.devices import APP, RealDevice

# Many runs within a minute travel as a sketch whose buckets are 2 % wide; few runs travel one by one and agree exactly.
TOLERANCE = 0.021

Package = tuple[str, int, str]


def counted_inferences(fleet: dict[str, Any], real: Sequence[RealDevice]) -> dict[tuple[bool, Package], int]:
    """Inferences by (is real, package) as devices counted them."""
    counts: dict[tuple[bool, Package], int] = defaultdict(int)
    for one in fleet["packages"]:
        counts[False, (one["model_id"], one["version"], one["variant"])] += one["inferences"]
    for device in real:
        for ran in device.ran.values():
            counts[True, (ran.model_id, ran.version, ran.variant)] += ran.first + len(ran.steady_us)
    return dict(counts)


def server_inferences(items: Iterable[dict[str, Any]]) -> dict[tuple[bool, Package], int]:
    """The same from `latebind stats inferences --by app_id --by model --by version --by variant`."""
    counts: dict[tuple[bool, Package], int] = defaultdict(int)
    for item in items:
        counts[item["app_id"] == APP["id"], (item["model"], item["version"], item["variant"])] += item["inferences"]
    return dict(counts)


def counted_latency(
    fleet: dict[str, Any], real: Sequence[RealDevice], names: dict[str, str]
) -> dict[tuple[bool, str, str], dict[str, float]]:
    """Count, p50 and p95 (ms) of steady runs by (is real, model, device model). `names`: kind to device model."""
    found: dict[tuple[bool, str, str], dict[str, float]] = {}
    for one in fleet["latency"]:
        found[False, one["model_id"], names[one["kind"]]] = {name: one[name] for name in ("count", "p50_ms", "p95_ms")}
    values: dict[tuple[str, str], list[int]] = defaultdict(list)
    for device in real:
        for ran in device.ran.values():
            values[ran.model_id, names[device.kind.name]] += ran.steady_us
    for (model, name), latencies in values.items():
        if latencies:
            low, high = np.percentile(latencies, [50, 95], method="inverted_cdf")
            found[True, model, name] = {"count": len(latencies), "p50_ms": low / 1000, "p95_ms": high / 1000}
    return found


def server_latency(items: Iterable[dict[str, Any]], *, real: bool) -> dict[tuple[bool, str, str], dict[str, float]]:
    """The same from `latebind stats latency --phase steady --by model --by device_model --where app_id=…`."""
    return {(real, one["model"], one["device_model"]): {name: one[name] for name in ("count", "p50_ms", "p95_ms")} for one in items}


def differences(counted: dict[Any, Any], served: dict[Any, Any]) -> list[str]:
    """What does not agree, in words. Counts agree exactly, percentiles within the width of a sketch's bucket."""
    wrong = []
    for key in sorted(counted.keys() | served.keys(), key=str):
        mine, theirs = counted.get(key), served.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            for name, value in mine.items():
                if abs(theirs[name] - value) > (0 if name == "count" else TOLERANCE * value + 0.0015):
                    wrong.append(f"{key} {name}: devices say {value}, the server {theirs[name]}")
        elif mine != theirs:
            wrong.append(f"{key}: devices say {mine}, the server {theirs}")
    return wrong
