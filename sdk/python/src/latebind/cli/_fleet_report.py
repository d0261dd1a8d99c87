"""What a fleet of simulated devices counted: who has what and why not, moves, failures, latencies. Values out, nothing printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from latebind.cli._fleet import SimulatedDevice
from latebind.device.state import PackageRef
from latebind.errors import NoCompatiblePackage


def summarise(devices: Sequence[SimulatedDevice]) -> dict[str, Any]:
    """Who has what and why not, moves, failures, and latencies by model and kind."""
    return {
        "devices": len(devices),
        "real_devices": sum(device.real for device in devices),
        "device_kinds": len({device.kind.name for device in devices}),
        "kinds": _by_kind(devices),
        "packages": _by_package(devices),
        "refusals": dict(Counter(error.code for device in devices for error in device.refusals.values())),
        "refusal_reasons": _reasons(devices),
        "inferences": sum(ran.inferences for device in devices for ran in device.runs.values()),
        "failed_inferences": sum(device.failed_inferences for device in devices),
        "failures": dict(sum((device.failures for device in devices), Counter[str]())),
        "moved_devices": sum(bool(device.moves) for device in devices),
        "moves": [
            {"collection": collection, "from": old, "to": new, "devices": count}
            for (collection, old, new), count in Counter(
                (collection, name_of(old), name_of(new)) for device in devices for collection, old, new in device.moves
            ).items()
        ],
        "bytes_received": sum(device.received for device in devices),
        "latency": _latency(devices),
    }


def name_of(ref: PackageRef) -> str:
    """A package in words: `magika v2 onnx-fp32`."""
    return f"{ref.model_id} v{ref.version} {ref.variant}"


def _by_kind(devices: Sequence[SimulatedDevice]) -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {}
    for device in devices:
        entry = kinds.setdefault(
            device.kind.name, {"kind": device.kind.name, "devices": 0, "real": 0, "packages": Counter(), "refusals": Counter()}
        )
        entry["devices"] += 1
        entry["real"] += device.real
        for collection in {collection for collection, _ in device.runs} | set(device.refusals):
            ref = device.agent.current(collection)
            if collection in device.refusals:
                entry["refusals"][device.refusals[collection].code] += 1
            elif ref is not None:
                entry["packages"][name_of(ref)] += 1
    return [{**entry, "packages": dict(entry["packages"]), "refusals": dict(entry["refusals"])} for entry in kinds.values()]


def _by_package(devices: Sequence[SimulatedDevice]) -> list[dict[str, Any]]:
    packages: dict[str, dict[str, Any]] = {}
    for device in devices:
        for ran in device.runs.values():
            ref = ran.package
            start = {
                "package": ref.digest,
                "model_id": ref.model_id,
                "version": ref.version,
                "variant": ref.variant,
                "devices": 0,
                "inferences": 0,
            }
            entry = packages.setdefault(ref.digest, start)
            entry["devices"] += 1
            entry["inferences"] += ran.inferences
    return sorted(packages.values(), key=lambda entry: (entry["model_id"], entry["version"], entry["variant"]))


def _reasons(devices: Sequence[SimulatedDevice]) -> list[dict[str, Any]]:
    """Why packages could not run, with the number of devices for each reason."""
    counted: Counter[tuple[str, str, str, str, str]] = Counter()
    for device in devices:
        for error in device.refusals.values():
            for one in error.packages if isinstance(error, NoCompatiblePackage) else []:
                package = f"{one.get('model_id')} v{one.get('version')} {one.get('variant')}"
                key = (device.kind.name, package, str(one.get("condition")), str(one.get("needed")), str(one.get("reported")))
                counted[key] += 1
    names = ("kind", "package", "condition", "needed", "reported")
    return [{**dict(zip(names, key, strict=True)), "devices": count} for key, count in sorted(counted.items())]


def _latency(devices: Sequence[SimulatedDevice]) -> list[dict[str, Any]]:
    """Percentiles of steady runs by model and kind, in milliseconds; real and made-up ones apart."""
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for device in devices:
        for ran in device.runs.values():
            groups.setdefault((ran.package.model_id, device.kind.name, device.real), []).extend(ran.steady_us)
    return [
        {"model_id": model_id, "kind": kind, "real": real, "count": len(values), **percentiles(values)}
        for (model_id, kind, real), values in sorted(groups.items())
        if values
    ]


def percentiles(values_us: Sequence[int]) -> dict[str, float]:
    """`p50_ms` and `p95_ms` of latencies in microseconds: measured values, as the server's exact quantiles are, nothing in between."""
    low, high = np.percentile(np.asarray(values_us), [50, 95], method="inverted_cdf")
    return {"p50_ms": round(float(low) / 1000, 3), "p95_ms": round(float(high) / 1000, 3)}
