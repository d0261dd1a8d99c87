"""What the device measures, on its way from a run to the buffer on disk: preallocated slots per model, folded into samples or sketches.

A recorded run costs two clock reads and two stores; everything else happens once per flush. Sending is in `sender.py`.
Sketches are DDSketch-like log buckets with gamma 1.02 (Masson et al., VLDB 2019), as proto/latebind/v1/telemetry.proto says.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from array import array
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import zstandard

from latebind.device.clock import Clock
from latebind.device.spool import Spool
from latebind.errors import DiskFull
from latebind_proto.telemetry_pb2 import (
    PHASE_FIRST,
    PHASE_LOAD,
    PHASE_STEADY,
    DeviceFacts,
    Failure,
    FailurePhase,
    PackageRef,
    Phase,
    Samples,
    Series,
    Sketch,
    TelemetryBatch,
)

log = logging.getLogger("latebind")

GAMMA = 1.02
RING_SIZE = 4096
MAX_FAILURES = 100
MAX_DETAIL = 256
MAX_LATENCY_US = 2**31 - 1
_LOG_GAMMA = math.log(GAMMA)

Column = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RunSource:
    """What ran: the fields of the protobuf message PackageRef."""

    collection: str
    model_id: str
    version: int
    variant: str
    package: str
    engine: str
    engine_version: str

    def message(self) -> PackageRef:
        """As protobuf."""
        return PackageRef(
            collection=self.collection,
            model_id=self.model_id,
            version=self.version,
            variant=self.variant,
            package_digest=bytes.fromhex(self.package),
            engine=self.engine,
            engine_version=self.engine_version,
        )


class SampleRing:
    """Slots for the runs of one loaded model: start and end in nanoseconds of `time.perf_counter_ns`.

    The thread that runs the model writes them while it holds `lock`: `starts[count]`, `ends[count]`, then `count`; when the last slot is
    filled it calls `fold()`.
    """

    __slots__ = ("__weakref__", "_telemetry", "count", "ends", "last", "lock", "source", "starts", "total")

    def __init__(self, telemetry: Telemetry, source: RunSource, lock: threading.Lock) -> None:
        self.starts: array[int] = array("q", bytes(8 * RING_SIZE))
        self.ends: array[int] = array("q", bytes(8 * RING_SIZE))
        self.count = 0
        self.total = 0
        self.last = RING_SIZE - 1
        self.lock = lock
        self.source = source
        self._telemetry = telemetry

    def record(self, start: int, end: int) -> None:
        """Fill the next slot. The caller holds `lock`. (`Handle.run` has the same lines in place: it runs for every inference.)"""
        index = self.count
        self.starts[index] = start
        self.ends[index] = end
        self.count = index + 1
        if index >= self.last:
            self.fold()

    def fold(self) -> None:
        """Hand the filled slots over and begin anew. The caller holds `lock`."""
        count = self.count
        if not count:
            return
        starts = np.frombuffer(self.starts, np.int64, count)
        ends = np.frombuffer(self.ends, np.int64, count)
        latencies = np.minimum((ends - starts + 500) // 1000, MAX_LATENCY_US)
        at_ms = (ends + self._telemetry.wall_offset_ns()) // 1_000_000
        if self.total == 0:
            self._telemetry.add(self.source, PHASE_FIRST, at_ms[:1], latencies[:1])
            at_ms, latencies = at_ms[1:], latencies[1:]
        self._telemetry.add(self.source, PHASE_STEADY, at_ms, latencies)
        self.total += count
        self.count = 0


@dataclass(slots=True)
class _Pending:
    """Measurements of one source and phase since the last flush: columns, or buckets once there are too many."""

    at_ms: list[Column] = field(default_factory=list)
    latencies: list[Column] = field(default_factory=list)
    count: int = 0
    buckets: dict[int, int] = field(default_factory=dict)
    since_ms: int = 0
    until_ms: int = 0

    def add(self, at_ms: Column, latencies: Column, *, limit: int) -> None:
        first, last = int(at_ms.min()), int(at_ms.max())
        self.since_ms = min(self.since_ms, first) if self.count else first
        self.until_ms = max(self.until_ms, last) if self.count else last
        self.count += len(latencies)
        self.at_ms.append(at_ms)
        self.latencies.append(latencies)
        if self.buckets or self.count > limit:
            for column in self.latencies:
                for bucket, number in count_buckets(column).items():
                    self.buckets[bucket] = self.buckets.get(bucket, 0) + number
            self.at_ms, self.latencies = [], []

    def series(self, source: RunSource, phase: Phase.ValueType) -> Series:
        series = Series(package=source.message(), phase=phase, base_ms=self.since_ms)
        if self.buckets:
            series.sketch.CopyFrom(encode_sketch(self.buckets, span_ms=self.until_ms - self.since_ms))
        else:
            series.samples.CopyFrom(encode_samples(np.concatenate(self.at_ms), np.concatenate(self.latencies), base_ms=self.since_ms))
        return series


class Telemetry:
    """Collects measurements and failures of one install, and writes a batch to the buffer per `flush`. Safe to use from several threads."""

    def __init__(self, *, spool: Spool, facts: DeviceFacts, clock: Clock, detail_per_minute: int) -> None:
        """Above `detail_per_minute` runs of one model, a flush sends a sketch instead of single samples."""
        self._spool = spool
        self._facts = facts
        self._clock = clock
        self._detail_per_minute = detail_per_minute
        self._lock = threading.Lock()
        self._flush_lock = threading.Lock()
        self._pending: dict[tuple[RunSource, Phase.ValueType], _Pending] = {}
        self._failures: list[Failure] = []
        self._lost = 0
        self._rings: weakref.WeakSet[SampleRing] = weakref.WeakSet()
        self._flushed_at = clock.monotonic()

    def ring(self, source: RunSource, lock: threading.Lock) -> SampleRing:
        """Slots for a model that was loaded; flushed for as long as it lives."""
        ring = SampleRing(self, source, lock)
        with self._lock:
            self._rings.add(ring)
        return ring

    def record(self, source: RunSource, phase: Phase.ValueType, latency_us: int, *, at_ms: int | None = None) -> None:
        """One measurement. `at_ms` is Unix milliseconds; now when left out."""
        moment = int(self._clock.now() * 1000) if at_ms is None else at_ms
        self.add(source, phase, np.array([moment], np.int64), np.array([min(max(latency_us, 0), MAX_LATENCY_US)], np.int64))

    def record_load(self, source: RunSource, latency_us: int) -> None:
        """The time from files on disk to a model that can run."""
        self.record(source, PHASE_LOAD, latency_us)

    def fail(self, source: RunSource | None, phase: FailurePhase.ValueType, code: str, detail: str = "", *, collection: str = "") -> None:
        """One failure. Without a source the collection alone says where it belongs."""
        package = source.message() if source is not None else PackageRef(collection=collection)
        failure = Failure(package=package, phase=phase, code=code, detail=detail[:MAX_DETAIL], at_ms=int(self._clock.now() * 1000))
        with self._lock:
            if len(self._failures) < MAX_FAILURES:
                self._failures.append(failure)
            else:
                self._lost += 1

    def add(self, source: RunSource, phase: Phase.ValueType, at_ms: Column, latencies: Column) -> None:
        """Columns of measurements: Unix milliseconds and microseconds."""
        if not len(latencies):
            return
        with self._lock:
            minutes = max(1.0, (self._clock.monotonic() - self._flushed_at) / 60.0)
            pending = self._pending.setdefault((source, phase), _Pending())
            pending.add(at_ms, latencies, limit=int(self._detail_per_minute * minutes))

    def wall_offset_ns(self) -> int:
        """What to add to `time.perf_counter_ns` for the device's wall time."""
        return int(self._clock.now() * 1e9) - time.perf_counter_ns()

    def flush(self) -> int:
        """Write what has come together as one batch to the buffer; the number of measurements and failures in it.

        When the disk is full they are counted as dropped; the next batch tells the server.
        """
        with self._flush_lock:
            with self._lock:
                rings = list(self._rings)
            for ring in rings:
                with ring.lock:
                    ring.fold()
            with self._lock:
                pending, failures, lost = self._pending, self._failures, self._lost
                self._pending, self._failures, self._lost = {}, [], 0
                self._flushed_at = self._clock.monotonic()
            weight = sum(entry.count for entry in pending.values()) + len(failures)
            if not weight and not lost:
                return 0
            dropped = self._spool.dropped
            batch = TelemetryBatch(
                batch_id=os.urandom(16),
                created_at_ms=int(self._clock.now() * 1000),
                facts=self._facts,
                series=[entry.series(source, phase) for (source, phase), entry in pending.items()],
                failures=failures,
                dropped_samples=dropped + lost,
            )
            try:
                self._spool.append(compress(batch), weight=weight + lost, reports_dropped=dropped)
            except DiskFull as error:
                log.warning("telemetry dropped: %s", error)
            return weight


def compress(batch: TelemetryBatch) -> bytes:
    """The batch as it is sent: protobuf under zstd."""
    return zstandard.ZstdCompressor(level=9).compress(batch.SerializeToString())


def bucket_of(latency_us: int) -> int:
    """The sketch bucket i with gamma^(i-1) < latency <= gamma^i; everything up to 1 µs is in bucket 0."""
    return math.ceil(math.log(latency_us) / _LOG_GAMMA) if latency_us > 1 else 0


def count_buckets(latencies: Column) -> dict[int, int]:
    """`bucket_of` for a whole column, counted."""
    buckets = np.ceil(np.log(np.maximum(latencies, 1)) / _LOG_GAMMA).astype(np.int64)
    values, counts = np.unique(buckets, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def encode_samples(at_ms: Column, latencies: Column, *, base_ms: int) -> Samples:
    """Both columns as differences. A clock that jumps by more than 24 days within a flush is clamped."""
    at_ms = np.clip(at_ms, base_ms, base_ms + 2**31 - 1)
    return Samples(
        at_delta_ms=np.diff(at_ms, prepend=base_ms).tolist(),
        latency_delta_us=np.diff(latencies, prepend=0).tolist(),
    )


def encode_sketch(buckets: dict[int, int], *, span_ms: int) -> Sketch:
    """Non-empty buckets in ascending order, as differences."""
    indexes = sorted(buckets)
    deltas = [index - before for before, index in zip([0, *indexes], indexes, strict=False)]
    return Sketch(span_ms=min(max(span_ms, 0), 2**32 - 1), bucket_delta=deltas, count=[buckets[index] for index in indexes])
