"""Batches as devices make them, on the wire format of docs/wire.md, with everything the checker needs to know about each.

Some are poisoned: taken by the edge, which reads only the id, and impossible to count.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from latebind_proto.telemetry_pb2 import TelemetryBatch

PACKAGE_FIELDS = ("collection", "model", "version", "variant", "engine")
FACT_FIELDS = ("device_model", "soc", "abi", "os", "os_version", "api_level", "country", "app_id", "app_version", "sdk_version")
#: Every dimension that analytics group by.
DIMENSIONS = (*PACKAGE_FIELDS, *FACT_FIELDS)
LOAD, FIRST, STEADY = 1, 2, 3
#: How the server rejects each kind of poisoned batch (docs/telemetry.md).
POISONS = ("MALFORMED", "PHASE", "COLUMNS", "LATENCY")
Values = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Series:
    """Measurements of one package in one phase. A sample's identity is (install, batch, place of the series, place in `values`).

    `values` are microseconds as the column store keeps them; `weights` are 1, or a sketch's counts.
    """

    package: Values
    phase: int
    values: NDArray[np.float32]
    weights: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that failed, on a package or before there was one."""

    package: Values | None
    phase: int
    code: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch and its bytes. `poison` is the reason for which the server will reject it, or empty."""

    id: bytes
    device: int
    created_ms: int
    facts: Values
    series: Sequence[Series]
    failures: Sequence[Failure]
    poison: str
    body: bytes
    packed: bool

    @property
    def size(self) -> int:
        """Samples and sketch buckets."""
        return sum(len(one.values) for one in self.series)


def facts_of(rng: random.Random) -> Values:
    """The facts of one device. Few different values, so that groups are large and one too many shows in each."""
    return {
        "device_model": rng.choice(["pixel-9", "galaxy-s26", "fairphone-6", "moto-g"]),
        "soc": rng.choice(["tensor-g5", "sm8850", "mt6989"]),
        "abi": rng.choice(["arm64-v8a", "x86_64"]),
        "os": rng.choice(["android", "linux"]),
        "os_version": rng.choice(["16", "17"]),
        "api_level": rng.choice([0, 36, 37]),
        "country": rng.choice(["", "CH", "DE", "JP"]),
        "app_id": rng.choice(["com.example.camera", "com.example.keyboard"]),
        "app_version": rng.choice(["1.0", "1.1", "2.0"]),
        "sdk_version": rng.choice(["0.3.0", "0.4.0"]),
    }


def _package(rng: random.Random) -> Values:
    model = rng.choice(["detector", "translator"])
    return {
        "collection": f"c_{model}",
        "model": model,
        "version": rng.randint(1, 3),
        "variant": rng.choice(["onnx-int8", "onnx-fp32"]),
        "engine": "onnxruntime",
    }


def make(rng: random.Random, device: int, facts: Values, created_ms: int, *, samples: int, poisoned: bool) -> Batch:
    """Make a batch of about `samples` samples: single ones in one or two series, a sketch, loads, failures now and then."""
    message = TelemetryBatch(batch_id=rng.randbytes(16), created_at_ms=created_ms)
    _write_facts(message, facts)
    poison = rng.choice(POISONS) if poisoned else ""
    series = []
    package = _package(rng)
    for phase, count in ((LOAD, 1), (FIRST, 1), (STEADY, max(1, samples - 12))):
        series.append(_samples(message, rng, package, phase, count))
    if rng.random() < 0.3:
        series.append(_sketch(message, rng, _package(rng)))
    failures = []
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        failures.append(_failure(message, rng, package if rng.random() < 0.7 else None))
    if poison == "PHASE":
        message.series[0].phase = 9  # type: ignore[assignment]
    elif poison == "COLUMNS":
        message.series[-1].samples.at_delta_ms.append(0)
        message.series[-1].samples.latency_delta_us.extend([0, 0, 0])
    elif poison == "LATENCY":
        message.series[0].samples.latency_delta_us[0] = -1
    body = message.SerializeToString()
    if poison == "MALFORMED":
        body = body[:18] + rng.randbytes(40) + b"\xff"
    packed = rng.random() < 0.7
    if packed:
        body = zstandard.ZstdCompressor(level=1).compress(body)
    return Batch(message.batch_id, device, created_ms, facts, series, failures, poison, body, packed)


def _write_facts(message: TelemetryBatch, facts: Values) -> None:
    names = {"os": "os_name"}
    for name, value in facts.items():
        setattr(message.facts, names.get(name, name), value)


def _write_package(target: object, package: Values) -> None:
    names = {"model": "model_id"}
    for name, value in package.items():
        setattr(target, names.get(name, name), value)


def _samples(message: TelemetryBatch, rng: random.Random, package: Values, phase: int, count: int) -> Series:
    latencies = [rng.randint(100, 5_000_000) for _ in range(count)]
    one = message.series.add(phase=phase, base_ms=message.created_at_ms)
    _write_package(one.package, package)
    one.samples.at_delta_ms.extend([0] * count)
    one.samples.latency_delta_us.extend(np.diff(latencies, prepend=0).tolist())
    return Series(package, phase, np.asarray(latencies, np.float32), np.ones(count, np.int64))


def _sketch(message: TelemetryBatch, rng: random.Random, package: Values) -> Series:
    buckets = sorted(rng.sample(range(300, 700), 10))
    counts = [rng.randint(1, 5) for _ in buckets]
    one = message.series.add(phase=STEADY, base_ms=message.created_at_ms)
    _write_package(one.package, package)
    one.sketch.bucket_delta.extend(np.diff(buckets, prepend=0).tolist())
    one.sketch.count.extend(counts)
    # proto/latebind/v1/telemetry.proto: gamma is 1.02; the server keeps the middle of a bucket (docs/telemetry.md).
    values = 2.0 / 2.02 * 1.02 ** np.asarray(buckets, np.float64)
    return Series(package, STEADY, values.astype(np.float32), np.asarray(counts, np.int64))


def _failure(message: TelemetryBatch, rng: random.Random, package: Values | None) -> Failure:
    made = Failure(package, rng.randint(1, 5), rng.choice(["TIMEOUT", "OUT_OF_MEMORY", "DIGEST_MISMATCH"]))
    one = message.failures.add(phase=made.phase, code=made.code, detail="made by chaos", at_ms=message.created_at_ms)
    if package is not None:
        _write_package(one.package, package)
    return made
