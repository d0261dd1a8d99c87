"""PERF-T1: rows per second from device batches to chDB, against the same rows inserted from a prebuilt Arrow table.

A: records of the event log → `services.telemetry.decode` → insert, as the writer does it, decoding one chunk ahead of the insert.
B: the tables that A makes, built beforehand as Arrow, → the same inserts. Batches hold 100 samples with random latencies and times,
from 50 kinds of devices, compressed as the SDK sends them. Log and commit are not in it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from bench._measure import SEED, AnswersDiffer, interleave, summarise, versions
from kit.olap import Coded, ColumnStore, open_olap
from latebind_proto.events_pb2 import TelemetryReceived
from latebind_proto.telemetry_pb2 import PHASE_STEADY, DeviceFacts, PackageRef, Series, TelemetryBatch
from services.telemetry.columnstore import TABLES, Tables
from services.telemetry.decode import Reject, decode
from services.telemetry.writer import decoded

GOALS = {"T1": "telemetry rows/s: batches → decode → chDB, against a prebuilt Arrow table → chDB"}

SAMPLES = 100
#: A range of the writer as it is when one partition of four has them.
BATCHES = 2000
BLOCKS = 3
KINDS = 50
_NOW_MS = 1_790_000_000_000


def _record(rng: random.Random, numbers: np.random.Generator) -> bytes:
    """One record of `telemetry.received`."""
    kind = rng.randrange(KINDS)
    facts = DeviceFacts(
        device_model=f"Model {kind}",
        manufacturer=f"Maker {kind % 9}",
        soc=f"soc-{kind % 17}",
        abi="arm64-v8a",
        os_name="android",
        os_version=str(11 + kind % 6),
        api_level=30 + kind % 6,
        country=("DE", "FR", "US", "BR", "IN")[kind % 5],
        app_id="com.acme.cam",
        app_version=f"4.{kind % 4}.0",
        sdk_name="latebind-python",
        sdk_version="0.1.0",
    )
    package = PackageRef(
        collection="c_4k7tq2mz",
        model_id="tiny-yolo-v2",
        version=1 + kind % 3,
        variant="onnx-int8",
        engine="onnxruntime",
        package_digest=b"d" * 32,
    )
    latencies = np.exp(numbers.normal(9.4, 0.4, SAMPLES)).astype(np.int64)
    base_ms = _NOW_MS - rng.randrange(86_400_000)
    series = Series(package=package, phase=PHASE_STEADY, base_ms=base_ms)
    series.samples.at_delta_ms.extend(numbers.integers(20, 200, SAMPLES).tolist())
    series.samples.latency_delta_us.extend(np.diff(latencies, prepend=0).tolist())
    batch = TelemetryBatch(batch_id=rng.randbytes(16), created_at_ms=_NOW_MS, facts=facts, series=[series])
    return TelemetryReceived(
        account="acme",
        install_id=f"install-{rng.randrange(100_000)}",
        received_at_ms=_NOW_MS + 1000,
        encoding="protobuf+zstd",
        body=zstandard.compress(batch.SerializeToString()),
    ).SerializeToString()


def _arrow(columns: Mapping[str, Any]) -> dict[str, pa.Array]:
    """A table as Arrow arrays, in the form that the adapter inserts fastest."""
    return {name: _dictionary(column) if isinstance(column, Coded) else pa.array(column) for name, column in columns.items()}


def _dictionary(column: Coded) -> pa.Array:
    return pa.array(column.values, pa.string()).take(pa.array(column.codes)).dictionary_encode()


class _Ingest:
    """Both sides, on one store."""

    def __init__(self, olap: ColumnStore, blocks: Sequence[Sequence[bytes]]) -> None:
        self._olap, self._tables, self._blocks = olap, Tables(olap), blocks
        self._prebuilt = [[{table: _arrow(getattr(chunk, table)) for table in TABLES} for chunk in _decoded(block)] for block in blocks]
        self._inserts = 0

    async def batches(self, block: int) -> int:
        rows = 0
        rejects: list[Reject] = []
        async for chunk in decoded(self._blocks[block], rejects):
            rows += await self._insert({table: getattr(chunk, table) for table in TABLES})
        return rows

    async def arrow(self, block: int) -> int:
        rows = 0
        for tables in self._prebuilt[block]:
            rows += await self._insert(tables)
        return rows

    async def _insert(self, tables: Mapping[str, Mapping[str, Any]]) -> int:
        self._inserts += 1
        for table, columns in tables.items():
            if len(columns["day"]):
                await self._tables.insert(table, columns, token=f"bench/{self._inserts}")
        return len(tables["samples"]["day"])

    async def empty(self) -> None:
        for table in TABLES:
            await self._olap.execute(f"TRUNCATE TABLE {table}")

    async def digest(self) -> list[Any]:
        """Count and order-free hash of each table."""
        return [await self._tables.query(f"SELECT count() AS n, sum(cityHash64(*)) AS hash FROM {table}", {}) for table in TABLES]


def _decoded(block: Sequence[bytes]) -> list[Any]:
    rejects: list[Reject] = []
    chunks = list(decode(block, rejects))
    if rejects:
        raise AnswersDiffer(f"{len(rejects)} batches were rejected: {rejects[0].reason}")
    return chunks


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Measure T1."""
    rng, numbers = random.Random(SEED), np.random.default_rng(SEED)
    blocks = [[_record(rng, numbers) for _ in range(BATCHES)] for _ in range(BLOCKS)]
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        return runner.run(_run(Path(folder), blocks, seconds))


async def _run(folder: Path, blocks: Sequence[Sequence[bytes]], seconds: float) -> dict[str, Any]:
    async with open_olap(f"chdb:{folder}/olap") as olap:
        ingest = _Ingest(olap, blocks)
        found = []
        for side in (ingest.batches, ingest.arrow):
            rows = sum([await side(block) for block in range(BLOCKS)])
            found.append((rows, await ingest.digest()))
            await ingest.empty()
        if found[0] != found[1] or found[0][0] != BLOCKS * BATCHES * SAMPLES:
            raise AnswersDiffer(f"the tables differ: {found}")
        loop = asyncio.get_running_loop()

        def measured(side: Any) -> Any:
            async def go() -> float:
                await ingest.empty()
                rows, block, start = 0, 0, time.perf_counter()
                while time.perf_counter() - start < seconds:
                    rows += await side(block % BLOCKS)
                    block += 1
                return rows / (time.perf_counter() - start)

            return lambda: asyncio.run_coroutine_threadsafe(go(), loop).result()

        pairs = await asyncio.to_thread(interleave, measured(ingest.batches), measured(ingest.arrow))
    return summarise(
        pairs,
        better="higher",
        target=0.60,
        unit="rows/s",
        a={"name": "batches → decode → chDB", "versions": versions("protobuf", "numpy", "zstandard", "chdb")},
        b={"name": "prebuilt Arrow table → chDB", "versions": versions("pyarrow", "chdb")},
        equality=f"count and hash of all three tables, {BLOCKS * BATCHES * SAMPLES} samples",
        backend="chDB",
        samples_per_batch=SAMPLES,
        batches_per_insert=BATCHES,
    )
