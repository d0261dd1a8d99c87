"""Batches as devices make them, and a plain reading of what analytics must say about them."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zstandard

from latebind_proto.events_pb2 import TelemetryReceived
from latebind_proto.telemetry_pb2 import DeviceFacts, Failure, PackageRef, Series, TelemetryBatch

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
PHASES = {1: "load", 2: "first", 3: "steady"}
FAILURE_PHASES = {1: "resolve", 2: "download", 3: "verify", 4: "load", 5: "run"}

PIXEL = {
    "device_model": "Pixel 9",
    "manufacturer": "Google",
    "soc": "tensor-g4",
    "abi": "arm64-v8a",
    "os_name": "android",
    "os_version": "16",
    "api_level": 36,
    "country": "DE",
    "app_id": "com.acme.cam",
    "app_version": "4.2.0",
    "sdk_name": "latebind-python",
    "sdk_version": "1.0.0",
}
OLD_PHONE = {
    **PIXEL,
    "device_model": "Moto G",
    "soc": "sm6225",
    "os_version": "11",
    "api_level": 30,
    "country": "BR",
    "app_version": "4.1.0",
}
LAPTOP = {"device_model": "XPS", "soc": "i7", "os_name": "linux", "app_version": "4.2.0"}
DEVICES = (PIXEL, OLD_PHONE, LAPTOP)


def package(model: str = "yolo", version: int = 7, variant: str = "onnx-fp32", **more: Any) -> PackageRef:
    return PackageRef(
        collection="c_1", model_id=model, version=version, variant=variant, engine="onnxruntime", package_digest=b"d" * 32, **more
    )


def deltas(values: Iterable[int], start: int = 0) -> list[int]:
    result = []
    for value in values:
        result.append(value - start)
        start = value
    return result


def samples(
    latencies: Sequence[int],
    *,
    of: PackageRef | None = None,
    phase: int = 3,
    at_ms: Sequence[int] | None = None,
    base_ms: int = NOW_MS - 60_000,
) -> Series:
    moments = at_ms if at_ms is not None else [base_ms + 20 * number for number in range(len(latencies))]
    series = Series(package=of or package(), phase=phase, base_ms=base_ms)
    series.samples.at_delta_ms.extend(deltas(moments, base_ms))
    series.samples.latency_delta_us.extend(deltas(latencies))
    return series


def sketch(buckets: Mapping[int, int], *, of: PackageRef | None = None, phase: int = 3, base_ms: int = NOW_MS - 60_000) -> Series:
    series = Series(package=of or package(), phase=phase, base_ms=base_ms)
    series.sketch.span_ms = 60_000
    series.sketch.bucket_delta.extend(deltas(sorted(buckets)))
    series.sketch.count.extend(buckets[bucket] for bucket in sorted(buckets))
    return series


def failure(
    phase: int = 5, code: str = "RUN_FAILED", *, at_ms: int = NOW_MS - 30_000, of: PackageRef | None = None, detail: str = ""
) -> Failure:
    return Failure(package=of, phase=phase, code=code, detail=detail, at_ms=at_ms)


def batch(
    *series: Series,
    facts: Mapping[str, Any] = PIXEL,
    failures: Sequence[Failure] = (),
    created_ms: int = NOW_MS - 1000,
    batch_id: bytes | None = None,
    dropped: int = 0,
) -> TelemetryBatch:
    return TelemetryBatch(
        batch_id=batch_id or uuid.uuid4().bytes,
        created_at_ms=created_ms,
        facts=DeviceFacts(**facts),
        series=series,
        failures=failures,
        dropped_samples=dropped,
    )


def envelope(
    body: TelemetryBatch | bytes,
    *,
    account: str = "acme",
    install: str = "install-1",
    country: str = "",
    received_ms: int = NOW_MS,
    encoding: str = "protobuf",
) -> bytes:
    content = body.SerializeToString() if isinstance(body, TelemetryBatch) else body
    if encoding == "protobuf+zstd" and isinstance(body, TelemetryBatch):
        content = zstandard.compress(content)
    return TelemetryReceived(
        account=account, install_id=install, country=country, received_at_ms=received_ms, encoding=encoding, body=content
    ).SerializeToString()


def random_batch(rng: random.Random, *, facts: Mapping[str, Any] | None = None, days: int = 3) -> TelemetryBatch:
    """A batch with samples, sketches and failures of some versions on some days."""
    series = []
    for _ in range(rng.randint(1, 3)):
        of = package(rng.choice(["yolo", "digits"]), rng.choice([7, 8]), rng.choice(["onnx-fp32", "onnx-int8"]))
        base = NOW_MS - rng.randint(1, days * 86_400_000)
        phase = rng.choice([1, 2, 3, 3, 3])
        if rng.random() < 0.3:
            series.append(
                sketch({rng.randint(300, 700): rng.randint(1, 50) for _ in range(rng.randint(1, 8))}, of=of, phase=phase, base_ms=base)
            )
        else:
            latencies = [int(rng.lognormvariate(9, 0.5)) for _ in range(rng.randint(0, 30))]
            series.append(samples(latencies, of=of, phase=phase, base_ms=base))
    failures = [
        failure(rng.randint(1, 5), rng.choice(["TIMEOUT", "DIGEST_MISMATCH"]), at_ms=NOW_MS - rng.randint(1, 86_400_000), of=package())
        for _ in range(rng.choice([0, 0, 1, 2]))
    ]
    return batch(*series, facts=facts or rng.choice(DEVICES), failures=failures, dropped=rng.choice([0, 0, 0, 5]))


@dataclass
class Told:
    """What one run, sketch bucket or failure is to analytics."""

    install: str
    at_ms: int
    phase: int
    value_us: float
    weight: int
    dims: Mapping[str, Any]
    code: str = ""


@dataclass
class History:
    """What the senders know they have sent, for one account. Repeats of a batch are told once."""

    runs: list[Told] = field(default_factory=list)
    failures: list[Told] = field(default_factory=list)
    active: set[tuple[str, str]] = field(default_factory=set)
    dropped: int = 0
    seen: set[tuple[str, bytes]] = field(default_factory=set)

    def add(self, install: str, sent: TelemetryBatch) -> None:
        """Read a batch whose clock is right, value by value."""
        if (install, sent.batch_id) in self.seen:
            return
        self.seen.add((install, sent.batch_id))
        self.dropped += sent.dropped_samples
        self.active.add((install, _day(sent.created_at_ms)))
        for series in sent.series:
            dims = _dims(sent.facts, series.package)
            if series.WhichOneof("values") == "samples":
                at, latency = series.base_ms, 0
                for at_delta, latency_delta in zip(series.samples.at_delta_ms, series.samples.latency_delta_us, strict=True):
                    at, latency = at + at_delta, latency + latency_delta
                    self.runs.append(Told(install, at, series.phase, float(latency), 1, dims))
            else:
                bucket = 0
                for step, count in zip(series.sketch.bucket_delta, series.sketch.count, strict=True):
                    bucket += step
                    value = float(np.float32(2 * 1.02**bucket / 2.02))
                    self.runs.append(Told(install, series.base_ms, series.phase, value, count, dims))
        for one in sent.failures:
            self.failures.append(Told(install, one.at_ms, one.phase, 0.0, 1, _dims(sent.facts, one.package), one.code))
        self.active |= {(told.install, _day(told.at_ms)) for told in (*self.runs, *self.failures) if told.install == install}

    def latency(self, *by: str) -> dict[tuple[Any, ...], dict[str, float]]:
        """Expected figures by group and phase."""
        groups: dict[tuple[Any, ...], list[Told]] = {}
        for run in self.runs:
            groups.setdefault((*(run.dims[name] for name in by), PHASES[run.phase]), []).append(run)
        return {key: figures(runs) for key, runs in groups.items()}

    def inferences(self, *by: str) -> dict[tuple[Any, ...], int]:
        """Expected number of first and steady runs by group."""
        counts: dict[tuple[Any, ...], int] = {}
        for run in self.runs:
            if run.phase != 1:
                key = tuple(run.dims[name] for name in by)
                counts[key] = counts.get(key, 0) + run.weight
        return counts

    def failed(self) -> dict[tuple[str, str], int]:
        """Expected failures by phase and code."""
        counts: dict[tuple[str, str], int] = {}
        for told in self.failures:
            key = (FAILURE_PHASES[told.phase], told.code)
            counts[key] = counts.get(key, 0) + 1
        return counts

    def actives(self) -> dict[str, int]:
        """Expected active installs by day."""
        days: dict[str, set[str]] = {}
        for install, day in self.active:
            days.setdefault(day, set()).add(install)
        return {day: len(installs) for day, installs in days.items()}

    def adoption(self) -> dict[tuple[str, str, int], int]:
        """Expected installs by day, model and version: those that ran it, or told of a failure of it."""
        found: dict[tuple[str, str, int], set[str]] = {}
        for told in (*self.runs, *self.failures):
            if told.dims["model"]:
                found.setdefault((_day(told.at_ms), told.dims["model"], told.dims["version"]), set()).add(told.install)
        return {key: len(installs) for key, installs in found.items()}


def figures(runs: Sequence[Told]) -> dict[str, float]:
    """Count, mean and percentiles, the way the words are defined: the smallest value that so many runs do not exceed."""
    ordered = sorted(runs, key=lambda run: run.value_us)
    total = sum(run.weight for run in ordered)
    result: dict[str, float] = {"count": total, "mean_ms": sum(run.value_us * run.weight for run in ordered) / total / 1000}
    for name, level in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        needed, reached = math.ceil(total * level), 0
        for run in ordered:
            reached += run.weight
            if reached >= needed:
                result[name] = run.value_us / 1000
                break
    return result


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def _dims(facts: DeviceFacts, of: PackageRef) -> dict[str, Any]:
    return {
        "model": of.model_id,
        "version": of.version,
        "variant": of.variant,
        "device_model": facts.device_model or None,
        "soc": facts.soc or None,
        "os": facts.os_name or None,
        "api_level": facts.api_level or None,
        "country": facts.country or None,
        "app_version": facts.app_version or None,
    }
