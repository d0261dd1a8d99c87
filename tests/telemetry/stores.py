"""The stores of a test or of a child process, and telemetry built on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.clock import Clock
from kit.db import Database, open_database
from kit.db.migrate import migrate
from kit.eventlog import EventLog, Message, open_eventlog
from kit.identity import PrincipalSeal
from kit.metrics import PrometheusMetrics
from kit.olap import ColumnStore, open_olap
from kit.ports import Ports, PortSettings, Secrets
from services.telemetry import events
from services.telemetry.columnstore import Tables
from services.telemetry.queries import Analytics
from services.telemetry.service import GROUP
from services.telemetry.writer import Writer, WriterOptions


@dataclass
class Stores:
    """Open stores of one folder."""

    eventlog: EventLog
    database: Database
    olap: ColumnStore
    clock: Clock
    seal: PrincipalSeal
    metrics: PrometheusMetrics
    folder: Path

    def __post_init__(self) -> None:
        self.tables = Tables(self.olap)
        self.analytics = Analytics(self.tables, self.database, self.clock)

    def writer(self, **options: Any) -> Writer:
        return Writer(
            eventlog=self.eventlog,
            database=self.database,
            tables=self.tables,
            clock=self.clock,
            metrics=self.metrics,
            options=WriterOptions(**{"linger_s": 0.0, **options}),
        )

    def ports(self) -> Ports:
        """What the composition root would hand over."""
        return Ports(
            self.database, None, self.eventlog, self.olap, self.clock, self.metrics, self.seal, Secrets(self.folder / "secrets"), "test"
        )  # type: ignore[arg-type]

    async def send(self, values: Sequence[bytes], key: str | None = None) -> None:
        """Put envelopes into the log, as `device.py` does; the key is the install's."""
        for number, value in enumerate(values):
            await self.eventlog.append(events.RECEIVED, [Message(key or f"acme/install-{number}", value, {"event-id": f"e{number}"})])

    async def write_all(self, writer: Writer | None = None) -> None:
        """Write what is in the log, until nothing is left."""
        writer = writer or self.writer()
        async with self.eventlog.consumer(GROUP, [events.RECEIVED]) as consumer:
            while await self.eventlog.lag(GROUP, events.RECEIVED):
                batch = await consumer.batch(max_records=500, max_bytes=4 << 20, max_wait_s=1)
                await writer.write(consumer, batch.records)

    async def dead_letters(self) -> list[Any]:
        """Return every dead letter."""
        async with self.eventlog.consumer("test-letters", [events.REJECTED]) as consumer:
            found: list[Any] = []
            while records := (await consumer.batch(max_records=1000, max_bytes=16 << 20, max_wait_s=0.7)).records:
                found += records
            return found


@asynccontextmanager
async def open_stores(at: PortSettings | Path, clock: Clock, seal: PrincipalSeal) -> AsyncIterator[Stores]:
    at = at if isinstance(at, PortSettings) else PortSettings(data_dir=at)
    folder = at.data_dir
    async with (
        open_eventlog(at.eventlog) as eventlog,
        open_database(at.database_of("telemetry"), clock) as database,
        open_olap(at.olap) as olap,
    ):
        await migrate(database, "services.telemetry")
        yield Stores(eventlog, database, olap, clock, seal, PrometheusMetrics(), folder)
