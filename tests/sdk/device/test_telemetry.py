"""From runs to batches: nothing lost, nothing doubled, small."""

from __future__ import annotations

import math
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from latebind.device.clock import SystemClock
from latebind.device.spool import Spool
from latebind.device.telemetry import (
    GAMMA,
    MAX_FAILURES,
    RING_SIZE,
    RunSource,
    Telemetry,
    bucket_of,
    count_buckets,
    encode_samples,
    encode_sketch,
)
from latebind_proto.telemetry_pb2 import FAILURE_PHASE_RUN, PHASE_FIRST, PHASE_LOAD, PHASE_STEADY, DeviceFacts, TelemetryBatch

SOURCE = RunSource("c_1", "adder", 7, "onnx-fp32", "ab" * 32, "onnxruntime", "1.32.0")
LATENCIES = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=200)


class Device:
    """A telemetry collector with its buffer."""

    def __init__(self, folder: Path, *, detail_per_minute: int = 120, max_bytes: int = 1 << 20) -> None:
        self.spool = Spool(folder, max_bytes=max_bytes)
        facts = DeviceFacts(device_model="Pixel 9", api_level=36)
        self.telemetry = Telemetry(spool=self.spool, facts=facts, clock=SystemClock(), detail_per_minute=detail_per_minute)

    def batches(self) -> list[TelemetryBatch]:
        raw = [zstandard.ZstdDecompressor().decompress(record.payload) for record in self.spool.peek(1000)]
        return [TelemetryBatch.FromString(data) for data in raw]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def counted(batches: list[TelemetryBatch]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for batch in batches:
        for series in batch.series:
            counts[series.phase] += len(series.samples.latency_delta_us) + sum(series.sketch.count)
    return counts


@given(LATENCIES, st.integers(0, 2**40))
def test_columns_decode_to_what_was_measured(latencies: list[int], base: int) -> None:
    at_ms = base + np.cumsum(np.array(latencies, np.int64) % 50_000)
    samples = encode_samples(at_ms, np.array(latencies, np.int64), base_ms=int(at_ms.min()))
    assert np.cumsum(samples.latency_delta_us).tolist() == latencies
    assert (int(at_ms.min()) + np.cumsum(samples.at_delta_ms)).tolist() == at_ms.tolist()


@given(LATENCIES)
def test_sketches_decode_to_buckets_that_hold_the_latencies(latencies: list[int]) -> None:
    counts = count_buckets(np.array(latencies, np.int64))
    assert counts == Counter(bucket_of(latency) for latency in latencies)
    sketch = encode_sketch(counts, span_ms=5)
    indexes = np.cumsum(sketch.bucket_delta).tolist()
    assert indexes == sorted(set(indexes)) and dict(zip(indexes, sketch.count, strict=True)) == counts
    for latency in latencies:
        index = bucket_of(latency)
        assert GAMMA ** (index - 1) * (1 - 1e-9) < max(latency, 1) <= GAMMA**index * (1 + 1e-9)


def test_the_first_run_is_kept_apart(device: Device) -> None:
    lock = threading.Lock()
    ring = device.telemetry.ring(SOURCE, lock)
    device.telemetry.record_load(SOURCE, 5_000)
    for number in range(10):
        ring.record(number * 1_000_000, number * 1_000_000 + (number + 1) * 1000)
    assert device.telemetry.flush() == 11
    assert device.telemetry.flush() == 0
    (batch,) = device.batches()
    assert counted([batch]) == {PHASE_LOAD: 1, PHASE_FIRST: 1, PHASE_STEADY: 9}
    assert len(batch.batch_id) == 16 and batch.facts.device_model == "Pixel 9"
    steady = next(series for series in batch.series if series.phase == PHASE_STEADY)
    assert np.cumsum(steady.samples.latency_delta_us).tolist() == list(range(2, 11))
    package = steady.package
    assert (package.collection, package.version, package.package_digest.hex()) == ("c_1", 7, "ab" * 32)


def test_more_runs_than_slots_lose_nothing(device: Device) -> None:
    ring = device.telemetry.ring(SOURCE, threading.Lock())
    runs = RING_SIZE * 2 + 17
    for number in range(runs):
        ring.record(number * 1000, number * 1000 + 8000)
    assert device.telemetry.flush() == runs
    (batch,) = device.batches()
    assert counted([batch]) == {PHASE_FIRST: 1, PHASE_STEADY: runs - 1}
    assert next(series for series in batch.series if series.phase == PHASE_STEADY).WhichOneof("values") == "sketch"


def test_many_runs_become_a_sketch_and_few_stay_single(tmp_path: Path) -> None:
    device = Device(tmp_path, detail_per_minute=10)
    for number in range(11):
        device.telemetry.record(SOURCE, PHASE_STEADY, 100 + number)
    device.telemetry.record(SOURCE, PHASE_LOAD, 100)
    device.telemetry.flush()
    kinds = {series.phase: series.WhichOneof("values") for series in device.batches()[0].series}
    assert kinds == {PHASE_STEADY: "sketch", PHASE_LOAD: "samples"}


def test_failures_are_bounded_and_counted(device: Device) -> None:
    for _ in range(MAX_FAILURES + 5):
        device.telemetry.fail(SOURCE, FAILURE_PHASE_RUN, "INFERENCE_FAILED", "x" * 1000)
    device.telemetry.flush()
    (batch,) = device.batches()
    assert (len(batch.failures), batch.dropped_samples, len(batch.failures[0].detail)) == (MAX_FAILURES, 5, 256)


def test_what_the_buffer_gives_up_is_told_with_the_next_batch(tmp_path: Path) -> None:
    device = Device(tmp_path, max_bytes=4096)
    for _ in range(60):
        device.telemetry.record(SOURCE, PHASE_STEADY, 100)
        device.telemetry.flush()
    batches = device.batches()
    # Every batch stands for its samples, and for those that it reports as dropped.
    assert sum(counted(batches).values()) + sum(batch.dropped_samples for batch in batches) + device.spool.dropped >= 60
    assert batches[-1].dropped_samples > 0 or device.spool.dropped > 0


def test_a_clock_that_jumps_by_years_breaks_nothing(device: Device) -> None:
    for at_ms in (0, 10 * 365 * 86_400_000, 5, -(10**13)):
        device.telemetry.record(SOURCE, PHASE_STEADY, 100, at_ms=at_ms)
    device.telemetry.flush()
    assert counted(device.batches()) == {PHASE_STEADY: 4}


def test_recording_from_many_threads_loses_nothing(device: Device) -> None:
    stop = threading.Event()
    flushed = [0]

    def flush() -> None:
        while not stop.is_set():
            flushed[0] += device.telemetry.flush()

    def record() -> None:
        lock = threading.Lock()
        ring = device.telemetry.ring(SOURCE, lock)
        for number in range(3000):
            with lock:
                ring.record(number, number + 1000)
        device.telemetry.flush()
        keep.append(ring)

    keep: list[object] = []
    threads = [threading.Thread(target=record) for _ in range(3)]
    flusher = threading.Thread(target=flush)
    flusher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    flusher.join()
    device.telemetry.flush()
    assert sum(counted(device.batches()).values()) == 9000


def test_bucket_borders() -> None:
    assert (bucket_of(0), bucket_of(1), bucket_of(2)) == (0, 0, math.ceil(math.log(2) / math.log(GAMMA)))
