"""PERF-T4: bytes per sample on the wire, 100 samples per batch, against the same samples as plain JSON lines.

Bytes are counted, not timed. A JSON line carries what the server needs to keep of one sample: install, time, phase, latency, the package
and the facts by which analytics are grouped; the ratio against lines without the facts and the package's digest is printed too.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from bench._measure import SEED, AnswersDiffer, Pair, pairs_wanted, summarise, versions
from latebind.device.clock import SystemClock, format_time
from latebind.device.spool import Spool
from latebind.device.telemetry import RunSource, Telemetry, bucket_of
from latebind_proto.telemetry_pb2 import PHASE_STEADY, DeviceFacts, TelemetryBatch

GOALS = {"T4": "telemetry bytes per sample, 100 per batch, against JSON lines"}

SAMPLES = 100
SOURCE = RunSource("c_4k7tq2mz", "tiny-yolo-v2", 7, "onnx-int8", "8f3a" * 16, "onnxruntime", "1.32.0")
FACTS = {
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
    "sdk_version": "0.1.0",
}
INSTALL = "8d1c54f2-7c1f-4f0f-9f0e-0a6f3f1c2b3d"


def _measurements(seed: int) -> tuple[list[int], list[int]]:
    """Times (Unix ms) and latencies (µs) of a camera at about 10 frames per second: log-normal around 12 ms, a few slow frames."""
    rng = np.random.default_rng(seed)
    latencies = np.exp(rng.normal(np.log(12_000), 0.08, SAMPLES))
    latencies[rng.random(SAMPLES) < 0.03] *= 2.5
    at_ms = 1_790_000_000_000 + np.cumsum(np.maximum(rng.normal(100, 8, SAMPLES), 1)).astype(np.int64)
    return at_ms.tolist(), latencies.astype(np.int64).tolist()


def _batch(at_ms: list[int], latencies: list[int], *, detail: bool) -> bytes:
    """The batch as the SDK sends it."""
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), max_bytes=1 << 20)
        limit = SAMPLES if detail else 1
        telemetry = Telemetry(spool=spool, facts=DeviceFacts(**FACTS), clock=SystemClock(), detail_per_minute=limit)
        telemetry.add(SOURCE, PHASE_STEADY, np.array(at_ms, np.int64), np.array(latencies, np.int64))
        telemetry.flush()
        (record,) = spool.peek(10)
        spool.close()
    return record.payload


def _check(batch: bytes, at_ms: list[int], latencies: list[int], *, detail: bool) -> None:
    message = TelemetryBatch.FromString(zstandard.ZstdDecompressor().decompress(batch))
    (series,) = message.series
    if detail:
        same = (
            np.cumsum(series.samples.latency_delta_us).tolist() == latencies
            and (series.base_ms + np.cumsum(series.samples.at_delta_ms)).tolist() == at_ms
        )
    else:
        buckets = dict(zip(np.cumsum(series.sketch.bucket_delta).tolist(), series.sketch.count, strict=True))
        expected: dict[int, int] = {}
        for latency in latencies:
            expected[bucket_of(latency)] = expected.get(bucket_of(latency), 0) + 1
        same = buckets == expected
    if not same:
        raise AnswersDiffer("the batch does not decode to the samples")


def _lines(at_ms: list[int], latencies: list[int], *, full: bool) -> bytes:
    package = {name: value for name, value in asdict(SOURCE).items() if full or name in {"collection", "model_id", "version", "variant"}}
    facts: dict[str, Any] = {name: value for name, value in FACTS.items() if value} if full else {}
    lines = [
        json.dumps({"install_id": INSTALL, "at": format_time(at / 1000), "phase": "steady", "latency_us": latency, **package, **facts})
        for at, latency in zip(at_ms, latencies, strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Compare full detail and sketch with JSON lines, over differently seeded batches."""
    parts = []
    for name, detail, target in (("full detail", True, 1 / 25), ("sketch", False, 1 / 100)):
        pairs, lean, compressed = [], [], []
        for number in range(pairs_wanted()):
            at_ms, latencies = _measurements(SEED + number)
            batch = _batch(at_ms, latencies, detail=detail)
            _check(batch, at_ms, latencies, detail=detail)
            lines = _lines(at_ms, latencies, full=True)
            pairs.append(Pair(len(batch) / SAMPLES, len(lines) / SAMPLES))
            lean.append(len(batch) / len(_lines(at_ms, latencies, full=False)))
            compressed.append(len(zstandard.ZstdCompressor(level=9).compress(lines)) / SAMPLES)
        parts.append(
            summarise(
                pairs,
                better="lower",
                target=target,
                unit="bytes per sample",
                a={"name": f"TelemetryBatch, {name}, zstd", "versions": versions("latebind", "protobuf", "zstandard")},
                b={"name": "JSON lines with the same fields"},
                equality="the batch decodes to the samples (detail) or to their buckets (sketch)",
                name=name,
                ratio_to_lean_lines=sorted(lean),
                zstd_json_bytes_per_sample=sorted(compressed),
            )
        )
    return {"parts": parts, "note": "the batch holds the whole device facts, the package and its digest once; lean lines hold neither"}
