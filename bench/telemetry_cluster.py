"""PERF-T2: rows per second from Kafka into ClickHouse, and what a million samples costs each part of the way.

A: the writer as it is shipped: records of `telemetry.received` in Kafka → plan in a database → decode → insert → commit, joining the
group included. B: `clickhouse-client` inserting the very rows that A made, from files in ClickHouse's Native format. C: what one writes
first: aiokafka, JSON with one object per sample, rows as tuples, an insert and a commit per 10,000 rows. Servers are this benchmark's
own; A and C use the same broker and the same store. Batches hold 100 samples, from 50 kinds of devices, compressed as the SDK sends them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from clickhouse_driver import Client

from bench._measure import SEED, AnswersDiffer, NotRun, cpu_seconds, interleave, pairs_wanted, summarise, versions
from bench.telemetry_ingest import SAMPLES, _record
from deploy.servers import Server
from kit.clock import SystemClock
from kit.db import Database, open_database
from kit.db.migrate import migrate
from kit.errors import Unavailable
from kit.eventlog import EventLog, Message, open_eventlog
from kit.identity import Kind, Principal
from kit.metrics import PrometheusMetrics
from kit.olap import ColumnStore, open_olap
from kit.workers import running
from latebind_proto.events_pb2 import TelemetryReceived
from services.telemetry import events
from services.telemetry.columnstore import TABLES, Tables
from services.telemetry.queries import Analytics
from services.telemetry.service import GROUP, Telemetry
from services.telemetry.settings import TelemetrySettings
from services.telemetry.writer import Writer, WriterOptions

GOALS = {"T2": "telemetry rows/s: Kafka → our writer → ClickHouse, against clickhouse-client with a Native file, and a naive consumer"}

#: So many records and samples per measurement; the naive consumer gets a part, for it is slow.
RECORDS = int(os.environ.get("BENCH_T2_RECORDS", "8000"))
NAIVE_RECORDS = 400
_NAIVE_ROWS = 10_000
_NAIVE_TOPIC = "naive"
_ROWS = "SELECT count() AS n, sum(cityHash64(*)) AS hash FROM"


class _Path:
    """The servers, and the three ways into the store."""

    def __init__(self, kafka: Server, clickhouse: Server, eventlog: EventLog, database: Database, olap: ColumnStore, folder: Path) -> None:
        self.kafka, self.clickhouse, self.log, self.database, self.olap, self._folder = kafka, clickhouse, eventlog, database, olap, folder
        self.tables = Tables(olap)
        rng, numbers = random.Random(SEED), np.random.default_rng(SEED)
        self.records = [_record(rng, numbers) for _ in range(RECORDS)]
        settings = TelemetrySettings()
        self._options = WriterOptions(settings.linger_s, settings.max_records, settings.max_bytes, settings.max_rejects_in_row)

    async def fill(self, records: Sequence[bytes]) -> None:
        messages = [Message(f"acme/{number}", record, {"event-id": f"e{number}"}) for number, record in enumerate(records)]
        for start in range(0, len(messages), 500):
            await self.log.append(events.RECEIVED, messages[start : start + 500])

    async def empty(self) -> None:
        for table in TABLES:
            await self.olap.execute(f"TRUNCATE TABLE {table}")

    async def ours(self, records: Sequence[bytes]) -> float:
        """Return rows/s of our writer over records that are in the log already."""
        await self.empty()
        await self.fill(records)
        writer = Writer(
            eventlog=self.log,
            database=self.database,
            tables=self.tables,
            clock=SystemClock(),
            metrics=PrometheusMetrics(),
            options=self._options,
        )
        start = time.perf_counter()
        async with running([writer]):
            while await self.log.lag(GROUP, events.RECEIVED):
                await asyncio.sleep(0.05)
            taken = time.perf_counter() - start
        return len(records) * SAMPLES / taken

    async def dump(self) -> None:
        """Write what is in the tables into files, for `native`."""
        for table in TABLES:
            with (self._folder / table).open("wb") as file:
                await asyncio.to_thread(self._client, f"SELECT * FROM {table} FORMAT Native", stdout=file)

    async def native(self) -> float:
        """Return rows/s of clickhouse-client over those files."""
        await self.empty()
        start = time.perf_counter()
        for table in TABLES:
            if not (self._folder / table).stat().st_size:
                continue  # the client refuses to insert nothing
            with (self._folder / table).open("rb") as file:
                await asyncio.to_thread(self._client, f"INSERT INTO {table} FORMAT Native", stdin=file)
        return RECORDS * SAMPLES / (time.perf_counter() - start)

    def _client(self, query: str, **files: Any) -> None:
        place = urlsplit(self.clickhouse.url)
        command = ["clickhouse-client", "--host", str(place.hostname), "--port", str(place.port), "--database", place.path.strip("/")]
        try:
            subprocess.run([*command, "--query", query], check=True, stderr=subprocess.PIPE, **files)
        except FileNotFoundError as error:
            raise NotRun("clickhouse-client is not installed") from error

    async def fill_naive(self) -> None:
        """Put the rows of the first records into a topic as JSON, one message per batch."""
        await self.ours(self.records[:NAIVE_RECORDS])
        rows = await self.olap.query("SELECT * FROM samples ORDER BY batch_hi, batch_lo, idx")
        producer = AIOKafkaProducer(bootstrap_servers=urlsplit(self.kafka.url).netloc)
        await self.log.make_topics({_NAIVE_TOPIC: 8})
        await producer.start()
        for start in range(0, len(rows), SAMPLES):
            await producer.send_and_wait(_NAIVE_TOPIC, json.dumps(rows[start : start + SAMPLES], default=str).encode())
        await producer.stop()

    async def naive(self, group: str) -> float:
        """Return rows/s of the naive consumer."""
        await self.empty()
        place = urlsplit(self.clickhouse.url)
        client = Client(str(place.hostname), port=place.port or 9000, database=place.path.strip("/"))
        start, written, rows = time.perf_counter(), 0, list[tuple[Any, ...]]()
        consumer = AIOKafkaConsumer(
            _NAIVE_TOPIC,
            bootstrap_servers=urlsplit(self.kafka.url).netloc,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        async for message in consumer:
            batch = json.loads(message.value)
            names = list(batch[0])
            rows += [tuple(_typed(name, row[name]) for name in names) for row in batch]
            if len(rows) >= _NAIVE_ROWS or written + len(rows) == NAIVE_RECORDS * SAMPLES:
                await asyncio.to_thread(client.execute, f"INSERT INTO samples ({', '.join(names)}) VALUES", rows)
                await consumer.commit()
                written, rows = written + len(rows), []
                if written == NAIVE_RECORDS * SAMPLES:
                    break
        taken = time.perf_counter() - start
        await consumer.stop()
        client.disconnect()
        return written / taken

    async def digest(self, *tables: str) -> list[Any]:
        return [await self.olap.query(f"{_ROWS} {table} FINAL") for table in tables]


def _typed(name: str, value: Any) -> Any:
    return date.fromisoformat(value) if name == "day" else datetime.fromisoformat(value) if name == "at" else value


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Measure T2. `seconds` does not matter: a measurement is so many rows."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Server("kafka", Path(folder) / "kafka") as kafka,
        Server("clickhouse", Path(folder) / "clickhouse") as clickhouse,
        asyncio.Runner() as runner,
    ):
        return runner.run(_run(kafka, clickhouse, Path(folder)))


async def _run(kafka: Server, clickhouse: Server, folder: Path) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        eventlog = await stack.enter_async_context(open_eventlog(f"{kafka.url}?partitions=8&append_s=60"))
        database = await stack.enter_async_context(open_database(f"sqlite:{folder}/telemetry.db", SystemClock()))
        olap = await stack.enter_async_context(open_olap(clickhouse.url))
        await migrate(database, "services.telemetry")
        path = _Path(kafka, clickhouse, eventlog, database, olap, folder)
        await path.tables.query("SELECT 1", {})
        await _answers(eventlog)
        # Equal rows first.
        costs = await _costs(path)
        ours = await path.digest(*TABLES)
        await path.dump()
        await path.native()
        if (native := await path.digest(*TABLES)) != ours or ours[0][0]["n"] != RECORDS * SAMPLES:
            raise AnswersDiffer(f"ours {ours}, from the file {native}")
        await path.fill_naive()
        some = await path.digest("samples")
        await path.naive("naive-first")
        if (naive := await path.digest("samples")) != some:
            raise AnswersDiffer(f"ours {some}, naive {naive}")
        loop = asyncio.get_running_loop()

        def measured(side: Callable[[], Awaitable[float]]) -> Callable[[], float]:
            async def go() -> float:
                return await side()

            return lambda: asyncio.run_coroutine_threadsafe(go(), loop).result()

        number = iter(range(1_000_000))
        file_pairs = await asyncio.to_thread(interleave, measured(lambda: path.ours(path.records)), measured(path.native))
        naive_pairs = await asyncio.to_thread(
            interleave, measured(lambda: path.ours(path.records)), measured(lambda: path.naive(f"naive-{next(number)}"))
        )
    a = {"name": "Kafka → our writer → ClickHouse", "versions": versions("aiokafka", "clickhouse-driver", "protobuf", "numpy", "zstandard")}
    against_naive = summarise(
        naive_pairs,
        better="higher",
        target=8.0,
        unit="rows/s",
        a=a,
        b={"name": "aiokafka + JSON + row tuples", "versions": versions("aiokafka", "clickhouse-driver")},
        equality=f"count and hash of samples, {NAIVE_RECORDS * SAMPLES} of them",
    )
    return summarise(
        file_pairs,
        better="higher",
        target=0.50,
        unit="rows/s",
        a=a,
        b={"name": "clickhouse-client, Native file", "versions": {"clickhouse": "18.16"}},
        equality=f"count and hash of all three tables, {RECORDS * SAMPLES} samples; of samples with the naive consumer",
        against_naive=against_naive,
        pairs_wanted=pairs_wanted(),
        samples_per_batch=SAMPLES,
        cost_per_million_samples=costs,
    )


async def _answers(eventlog: EventLog) -> None:
    """Wait until the broker serves groups: it makes a topic of its own for them at their first use."""
    async with asyncio.timeout(300):
        while True:
            try:
                await eventlog.lag(GROUP, events.RECEIVED)
                return
            except Unavailable:
                await asyncio.sleep(1)


async def _costs(path: _Path) -> dict[str, Any]:
    """CPU-seconds and bytes that a million samples cost on the way, each part on its own."""
    samples = RECORDS * SAMPLES / 1e6
    pids = {name: server.pid for name, server in (("kafka", path.kafka), ("clickhouse", path.clickhouse))}

    def used() -> dict[str, float]:
        return {"we": time.process_time(), **{name: cpu_seconds(pid) for name, pid in pids.items() if pid}}

    telemetry = Telemetry(
        eventlog=path.log, database=path.database, analytics=Analytics(path.tables, path.database, SystemClock()), clock=SystemClock()
    )
    envelopes = [TelemetryReceived.FromString(record) for record in path.records]
    before = used()
    for start in range(0, RECORDS, 50):
        await asyncio.gather(
            *(
                telemetry.accept(Principal(Kind.DEVICE, one.install_id, one.account), country="", encoding=one.encoding, body=one.body)
                for one in envelopes[start : start + 50]
            )
        )
    after = used()
    logs = path.kafka.folder
    topic_bytes = sum(file.stat().st_size for file in logs.rglob("*.log") if events.RECEIVED in str(file.parent))
    found: dict[str, Any] = {
        "api_accept_cpu_s": (after["we"] - before["we"]) / samples,
        "kafka_append_cpu_s": (after["kafka"] - before["kafka"]) / samples,
        "kafka_bytes": topic_bytes / samples,
    }
    # The same records again: what `ours` fills is not measured, and repeats of a batch are rows of the same identity.
    before = used()
    await path.ours([])
    after = used()
    found |= {
        "writer_cpu_s": (after["we"] - before["we"]) / samples,
        "kafka_read_cpu_s": (after["kafka"] - before["kafka"]) / samples,
        "clickhouse_insert_cpu_s": (after["clickhouse"] - before["clickhouse"]) / samples,
    }
    await asyncio.sleep(1)
    for table in TABLES:
        await path.olap.execute(f"OPTIMIZE TABLE {table} FINAL")
    merged = used()
    rows = await path.olap.query(
        "SELECT table, sum(bytes_on_disk) AS bytes FROM system.parts WHERE active AND database = currentDatabase() GROUP BY table"
    )
    found["clickhouse_merge_cpu_s"] = (merged["clickhouse"] - after["clickhouse"]) / samples
    found["clickhouse_bytes"] = sum(row["bytes"] for row in rows if row["table"] in TABLES) / samples
    return {name: round(value, 2) for name, value in found.items()}
