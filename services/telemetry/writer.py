"""Moves batches from the event log into the column store, each once in effect.

Per partition, once it is ours: a fence is taken in SQL, then the log is asked whether the partition is ours still; from then on nobody
who had it before can plan. Per range: it is planned in SQL → decoded → inserted under the range's token → its rejects go to the dead
letters → the log's offset is committed → the plan is done. Whoever goes on after a crash finds the plan, cuts exactly that range again
and inserts it under the same token, which adds nothing twice. Should a token be forgotten, or a device send a batch again, the tables
replace rows of the same identity (schema/). It decides nothing about the contents: `decode.py` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import numpy as np

from kit.clock import Clock
from kit.db import Database
from kit.eventlog import Consumer, ConsumerStoodStill, EventLog, Message, PartitionLost, Record
from kit.logs import debugging, get_logger
from kit.metrics import Metric, Metrics
from kit.tracing import handling
from kit.workers import UNHEALTHY_AFTER, Backoff, Stop, Worker, told
from services.telemetry import events, store, store_rollups
from services.telemetry.columnstore import TABLES, Tables
from services.telemetry.decode import Chunk, Reject, decode
from services.telemetry.domain import Patience, Plan, TooManyRejects, cut
from services.telemetry.service import GROUP

METRICS = (
    Metric("latebind_telemetry_rows_total", "counter", "Rows inserted into the column store.", ("table",)),
    Metric("latebind_telemetry_batches_total", "counter", "Batches of devices, by what became of them.", ("outcome",)),
    Metric("latebind_telemetry_lag_seconds", "gauge", "Age of the oldest batch of the last insert when it was written.", ()),
)
_IDLE_S = 5.0
#: So many rejected batches of one insert are named in the log; all are among the dead letters.
_NAMED = 20
#: So soon after its stores are back the writer goes on.
_LONGEST_PAUSE_S = 5.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """Limits of one insert and of patience; see `settings.py`."""

    linger_s: float = 1.0
    max_records: int = 8000
    max_bytes: int = 16 << 20
    max_rejects_in_row: int = 1000


@dataclass(frozen=True, slots=True)
class Held:
    """A partition of ours: under which epoch it was taken, and its last plan. Nobody else can have changed that plan meanwhile."""

    epoch: int
    plan: Plan | None


class Writer(Worker):
    """The worker. Several may run, in one process or many: each has its own partitions."""

    name = "telemetry-writer"
    reads = ((GROUP, events.RECEIVED),)

    def __init__(
        self, *, eventlog: EventLog, database: Database, tables: Tables, clock: Clock, metrics: Metrics, options: WriterOptions
    ) -> None:
        metrics.register(*METRICS)
        self._log, self._database, self._tables = eventlog, database, tables
        self._clock, self._metrics, self._options = clock, metrics, options
        self._patience = Patience(options.max_rejects_in_row)
        self._held: dict[int, Held] = {}
        self._failures = 0
        self._without_consumer = False
        self._stuck = ""

    def problem(self) -> str | None:
        """Say that nothing is written any more, and why."""
        return self._stuck or (f"failed {self._failures} times in a row" if self._failures >= UNHEALTHY_AFTER else None)

    async def run(self, stop: Stop) -> None:
        """Join the group, gather → write, until the stop; the range in hand is finished. A consumer that breaks is replaced."""
        backoff = Backoff(longest_s=_LONGEST_PAUSE_S)
        while not stop.requested:
            try:
                async with self._log.consumer(GROUP, [events.RECEIVED]) as consumer:
                    await self._consume(consumer, stop, backoff)
            except Exception as error:
                self._without_consumer = True
                await self._after_failure(error, stop, backoff)

    async def _consume(self, consumer: Consumer, stop: Stop, backoff: Backoff) -> None:
        """Gather → write with one consumer, until the stop. Raises what makes the consumer useless."""
        while not stop.requested:
            try:
                records = await stop.unless(self._gather(consumer))
                if self._without_consumer:  # it reads again, also when there is nothing to write
                    self._without_consumer, self._failures, self._stuck = False, 0, ""
                if not records:
                    continue
                await self.write(consumer, records)
                self._failures, self._stuck = 0, ""
                backoff.reset()
            except PartitionLost:
                log.info("a partition moved to another writer, which goes on with its plan")
                await consumer.rewind()
            except ConsumerStoodStill as error:
                self._stuck = str(error)
                self._metrics.count("latebind_log_stalls_total", group=GROUP)
                raise
            except Exception as error:
                await self._after_failure(error, stop, backoff)
                await consumer.rewind()

    async def _after_failure(self, error: Exception, stop: Stop, backoff: Backoff) -> None:
        """Note it for readiness, and pause."""
        self._failures += 1
        self._stuck = str(error) if isinstance(error, TooManyRejects | ConsumerStoodStill) else ""
        self._metrics.count("latebind_log_failures_total", group=GROUP)
        pause = backoff.next_pause()
        log.error("telemetry could not be written; it is read again", failures=self._failures, pause_s=round(pause, 2), **told(error))
        await stop.sleep(self._clock, pause)

    async def _gather(self, consumer: Consumer) -> list[Record]:
        """Return what arrives within `linger_s` of the first record, up to the limits; nothing after a while without any."""
        options = self._options
        first = await consumer.batch(max_records=options.max_records, max_bytes=options.max_bytes, max_wait_s=_IDLE_S)
        records = list(first.records)
        if not records:
            return records
        until = self._clock.monotonic() + options.linger_s
        size = sum(len(record.value) for record in records)
        while (left := until - self._clock.monotonic()) > 0 and len(records) < options.max_records and size < options.max_bytes:
            more = await consumer.batch(max_records=options.max_records - len(records), max_bytes=options.max_bytes - size, max_wait_s=left)
            records += more.records
            size += sum(len(record.value) for record in more.records)
        return records

    async def write(self, consumer: Consumer, records: Sequence[Record]) -> None:
        """Write records that `consumer` handed out, in order within each partition, and commit them.

        Raises `PartitionLost` when they belong to another writer now, `TooManyRejects`, or what the stores raise; then nothing of the
        failing range is committed and it has to be read again.
        """
        try:
            await self._write(consumer, records)
        except BaseException:
            self._held.clear()  # what is known of the plans may be wrong now
            raise

    async def _write(self, consumer: Consumer, records: Sequence[Record]) -> None:
        left = _by_partition(records)
        while left:
            await self._hold(consumer, left)
            now: dict[int, Sequence[Record]] = {}
            later: dict[int, list[Record]] = {}
            for partition, waiting in left.items():
                piece = await self._planned_piece(consumer, partition, waiting, self._held[partition].plan, later)
                now[partition] = piece
            headers = [record.headers for piece in now.values() for record in piece]
            with handling("telemetry", "write batches", headers, attributes={"messaging.batch.message_count": len(headers)}):
                await self._write_ranges(consumer, now)
            left = later

    async def _hold(self, consumer: Consumer, parts: Mapping[int, Sequence[Record]]) -> None:
        """Take the fences of partitions that are new to us. Raises `PartitionLost` when the log has given one to another writer."""
        new = {partition: records for partition, records in parts.items() if partition not in self._held}
        if not new:
            return
        async with self._database.begin() as tx:
            epochs = await store.take_partitions(tx, events.RECEIVED, new)
            plans = await store.plans_of(tx, events.RECEIVED)
        # A writer that was paused may take the fence from its successor here. This commit, which says nothing new, then fails,
        # and the successor takes the fence again: only after it is the fence good for anything.
        await consumer.commit({(events.RECEIVED, partition): records[0].offset for partition, records in new.items()})
        self._held |= {partition: Held(epoch, plans.get(partition)) for partition, epoch in epochs.items()}

    async def _planned_piece(
        self, consumer: Consumer, partition: int, waiting: Sequence[Record], plan: Plan | None, later: dict[int, list[Record]]
    ) -> Sequence[Record]:
        """Return what goes in now, reading on until a plan that was begun is whole; the rest goes to `later`.

        Raises `PartitionLost` when the partition moves meanwhile, or is handed out anew.
        """
        all_read = [*waiting, *later.pop(partition, ())]
        found = cut(all_read, plan)
        while found.missing:
            more = await consumer.batch(max_records=self._options.max_records, max_bytes=self._options.max_bytes, max_wait_s=_IDLE_S)
            if not more.records:
                log.warning("the log no longer holds all of a planned range; what is there is written", partition=partition)
                break
            parts = _by_partition(more.records)
            if partition not in parts:  # other partitions may bring more and more, and this one belong to somebody else
                await consumer.commit({(events.RECEIVED, partition): all_read[0].offset})
            elif parts[partition][0].offset <= all_read[-1].offset:
                raise PartitionLost(f"{events.RECEIVED}/{partition} is handed out anew")
            for number, others in parts.items():
                (all_read if number == partition else later.setdefault(number, [])).extend(others)
            found = cut(all_read, plan)
        if found.later:
            later[partition] = list(found.later)
        return found.now

    async def _write_ranges(self, consumer: Consumer, ranges: dict[int, Sequence[Record]]) -> None:
        plans = [_plan_of(records) for records in ranges.values()]
        async with self._database.begin() as tx:
            if taken := await store.overtaken(tx, events.RECEIVED, {plan.partition: self._held[plan.partition].epoch for plan in plans}):
                raise PartitionLost(f"partitions {taken} of {events.RECEIVED} were taken by another writer")
            await store.put_plans(tx, plans, self._clock.now())
        letters: list[Message] = []
        patience, days = self._patience, set[date]()
        for plan, records in zip(plans, ranges.values(), strict=True):
            rejects = await self._insert(plan, records, days)
            patience = _patience_after(patience, records, rejects)
            letters += [events.rejected(records[reject.position], reject.reason, reject.detail) for reject in rejects]
        if letters:
            await self._log.append(events.REJECTED, letters)
        await self._reopen(days)
        await consumer.commit({(plan.topic, plan.partition): plan.last + 1 for plan in plans})
        async with self._database.begin() as tx:
            await store.finish_plans(tx, plans)
        self._held |= {plan.partition: Held(self._held[plan.partition].epoch, replace(plan, done=True)) for plan in plans}
        self._patience = patience
        self._count(ranges, len(letters))
        _tell(ranges, letters)

    async def _reopen(self, days: Collection[date]) -> None:
        """Say that days have got samples, so that what was rolled up without them answers no more.

        It comes after the insert: a roll-up that begins later sees the samples, one that began before is noticed here. It comes before
        the commit: who is killed in between leaves the range to be written again, and then it is said.
        """
        async with self._database.read() as reader:
            known = await store_rollups.begun_of(reader, days)
        if changed := {day for day in days if known.get(day, True)}:
            async with self._database.begin() as tx:
                await store_rollups.note_changes(tx, changed, self._clock.now())

    async def _insert(self, plan: Plan, records: Sequence[Record], days: set[date]) -> list[Reject]:
        """Insert a range chunk by chunk, and add the days of its samples to `days`. Returns the rejects."""
        rejects: list[Reject] = []
        number = 0
        async with aclosing(decoded([record.value for record in records], rejects)) as chunks:
            async for chunk in chunks:
                days.update(np.unique(chunk.samples["day"]).tolist())
                for table in TABLES:
                    columns = getattr(chunk, table)
                    rows = len(columns["day"])
                    if rows:
                        # The same range always makes the same chunks, so the number belongs to the token.
                        await self._tables.insert(table, columns, token=f"{plan.token}/{number}")
                        self._metrics.count("latebind_telemetry_rows_total", rows, table=table)
                number += 1
        return rejects

    def _count(self, ranges: dict[int, Sequence[Record]], rejected: int) -> None:
        records = [record for part in ranges.values() for record in part]
        self._metrics.count("latebind_log_records_total", len(records), group=GROUP)
        self._metrics.count("latebind_telemetry_batches_total", len(records) - rejected, outcome="written")
        if rejected:
            self._metrics.count("latebind_telemetry_batches_total", rejected, outcome="rejected")
        oldest = min(record.timestamp_ms for record in records) / 1000
        self._metrics.gauge("latebind_telemetry_lag_seconds", max(0.0, self._clock.now().timestamp() - oldest))


async def decoded(values: Sequence[bytes], rejects: list[Reject]) -> AsyncGenerator[Chunk, None]:
    """Decode in a thread, one chunk ahead of the caller, so that it goes on while the caller inserts; see `decode.decode`."""
    chunks = decode(values, rejects)

    def following() -> Chunk | None:
        return next(chunks, None)

    upcoming = asyncio.create_task(asyncio.to_thread(following))
    try:
        while (chunk := await upcoming) is not None:
            upcoming = asyncio.create_task(asyncio.to_thread(following))
            yield chunk
    finally:
        # The thread cannot be stopped; two of them must not use the iterator.
        await asyncio.wait([upcoming])


def _tell(ranges: Mapping[int, Sequence[Record]], letters: Sequence[Message]) -> None:
    """Log what became of batches, each under the request that brought it."""
    if letters:
        log.warning("telemetry batches were rejected", batches=len(letters), topic=events.REJECTED)
    for letter in letters[:_NAMED]:
        told = {name: letter.headers[name] for name in ("reason", "source-partition", "source-offset")}
        log.warning("a telemetry batch was rejected", request_id=letter.headers.get("request-id", ""), **told)
    if debugging():
        for records in ranges.values():
            for record in records:
                where = {"partition": record.partition, "offset": record.offset}
                log.debug("telemetry batch written", request_id=record.headers.get("request-id", ""), **where)


def _patience_after(patience: Patience, records: Sequence[Record], rejects: Sequence[Reject]) -> Patience:
    """Letters that are tried again say nothing about the batches that come in now. Raises `TooManyRejects`."""
    places = [place for place, record in enumerate(records) if events.REPLAY not in record.headers]
    reasons = {reject.position: reject.reason for reject in rejects}
    found = {number: reasons[place] for number, place in enumerate(places) if place in reasons}
    return patience.after([records[place].key for place in places], found)


def _by_partition(records: Sequence[Record]) -> dict[int, list[Record]]:
    parts: dict[int, list[Record]] = {}
    for record in records:
        parts.setdefault(record.partition, []).append(record)
    return parts


def _plan_of(records: Sequence[Record]) -> Plan:
    newest = datetime.fromtimestamp(records[-1].timestamp_ms / 1000, UTC)
    return Plan(records[0].topic, records[0].partition, records[0].offset, records[-1].offset, newest)
