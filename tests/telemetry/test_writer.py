"""The writer on real stores: planned ranges, tokens, repeats, dead letters, patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kit.errors import Unavailable
from kit.eventlog import Consumer, Message, PartitionLost
from kit.olap import Columns
from kit.olap.chdb import ChdbStore
from kit.workers import running
from services.telemetry import events, store
from services.telemetry.columnstore import Tables
from services.telemetry.decode import CHUNK_BYTES
from services.telemetry.domain import Plan, TooManyRejects
from services.telemetry.selection import Selection
from services.telemetry.service import GROUP
from tests.telemetry.factories import NOW, NOW_MS, batch, envelope, failure, samples
from tests.telemetry.stores import Stores

DAY_MS = 86_400_000


async def raw_count(stores: Stores, table: str = "samples") -> int:
    """Rows as they lie there, repeats included."""
    return int((await stores.tables.query(f"SELECT count() AS n FROM {table}", {}))[0]["n"])


async def inferences(stores: Stores, since: datetime = NOW - timedelta(days=60), until: datetime = NOW + timedelta(days=2)) -> int:
    rows = (await stores.analytics.inferences(Selection("acme", since, until))).items
    return int(rows[0]["inferences"])


async def plans(stores: Stores) -> dict[int, Plan]:
    async with stores.database.read() as reader:
        return await store.plans_of(reader, events.RECEIVED)


@asynccontextmanager
async def member(stores: Stores) -> AsyncIterator[Consumer]:
    async with stores.eventlog.consumer(GROUP, [events.RECEIVED]) as consumer:
        yield consumer


async def fill(stores: Stores, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        value = envelope(batch(samples([1000, 2000]), failures=[failure()]), install=f"i{number}")
        await stores.eventlog.append(events.RECEIVED, [Message(f"acme/i{number}", value, {"event-id": f"e{number}"})])


async def test_ranges_are_planned_written_committed_and_done(stores: Stores) -> None:
    await fill(stores, 12)
    await stores.write_all()
    assert await inferences(stores) == 24
    assert await stores.eventlog.lag(GROUP, events.RECEIVED) == 0
    found = await plans(stores)
    assert all(plan.done and plan.first == 0 for plan in found.values())
    assert sum(plan.last + 1 for plan in found.values()) == 12
    assert b'latebind_telemetry_batches_total{outcome="written"} 12.0' in stores.metrics.render()


class Meanwhile(Tables):
    """Tables at whose first insert something else happens first."""

    happening: Callable[[], Awaitable[object]] | None = None

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        if self.happening is not None:
            happening, self.happening = self.happening, None
            await happening()
        await super().insert(table, columns, token=token)


async def test_the_next_owner_cuts_the_same_range_and_inserts_it_under_the_same_token(stores: Stores) -> None:
    await fill(stores, 16)
    stores.tables = tables = Meanwhile(stores.olap)
    async with member(stores) as first, AsyncExitStack() as stack:
        before = await first.batch(max_records=100, max_bytes=1 << 24, max_wait_s=1)
        # The second one takes half of the partitions while the first one works.
        tables.happening = lambda: stack.enter_async_context(member(stores))
        with pytest.raises(PartitionLost):
            await stores.writer().write(first, before.records)
        planned = await plans(stores)
        assert planned
        assert not any(plan.done for plan in planned.values())
        assert await raw_count(stores) == 2 * len(before.records)
        await fill(stores, 8, start=16)
        await stack.aclose()
        async with member(stores) as second:
            await first.rewind()
            # Two records at a time: cut by arrival the ranges would be others.
            writer = stores.writer(max_records=2)
            while await stores.eventlog.lag(GROUP, events.RECEIVED):
                for consumer in (first, second):
                    some = await consumer.batch(max_records=2, max_bytes=1 << 24, max_wait_s=0.05)
                    if some.records:
                        await writer.write(consumer, some.records)
    if isinstance(stores.olap, ChdbStore):
        # Not even before rows of the same identity are replaced is there one too many: the tokens were the same.
        assert await raw_count(stores) == 48
        assert await raw_count(stores, "failures") == 24
    assert await inferences(stores) == 48
    assert all(plan.done for plan in (await plans(stores)).values())


async def test_a_batch_that_comes_again_later_counts_once(stores: Stores) -> None:
    again = batch(samples([1000] * 5), failures=[failure()])
    for delay in (0, 7000, DAY_MS, 12 * DAY_MS):
        await stores.send([envelope(again, received_ms=NOW_MS + delay)], "acme/install-1")
        await stores.write_all()
    assert await raw_count(stores) == 20
    assert await inferences(stores) == 5
    rows = (await stores.analytics.failures(Selection("acme", NOW - timedelta(days=1), NOW + timedelta(days=1)))).items
    assert [row["count"] for row in rows] == [1]


async def test_copies_of_a_wrong_clock_that_fall_into_two_months_count_once_in_every_month(stores: Stores) -> None:
    """Their time is the moment of arrival, so the copies lie in two partitions; the first one stands wherever one looks."""
    again = batch(samples([1000] * 5), created_ms=0)
    received = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
    later = received + timedelta(minutes=5)
    for moment in (received, later):
        await stores.send([envelope(again, received_ms=int(moment.timestamp() * 1000))], "acme/install-1")
        await stores.write_all()
    december = datetime(2026, 12, 1, tzinfo=UTC)
    assert sorted(await stores.tables.months("samples")) == [202611, 202612]
    assert await raw_count(stores) == 10
    assert await inferences(stores, NOW, december) == 5
    assert await inferences(stores, december, december + timedelta(days=1)) == 0
    assert await inferences(stores, NOW, december + timedelta(days=1)) == 5
    daily = await stores.analytics.inferences(Selection("acme", NOW, december + timedelta(days=5)), interval="day")
    assert [(row["start"], row["inferences"]) for row in daily.items] == [(datetime(2026, 11, 30, tzinfo=UTC), 5)]


async def test_what_cannot_be_counted_is_kept_with_its_place_and_reason(stores: Stores) -> None:
    good = envelope(batch(samples([1])))
    bad = envelope(b"\xff\xff", install="install-1")
    for value in (good, bad, good, envelope(batch(samples([1], phase=9)))):
        await stores.send([value], "acme/install-1")
    await stores.write_all()
    letters = await stores.dead_letters()
    assert [(letter.headers["reason"], letter.headers["source-offset"]) for letter in letters] == [("MALFORMED", "1"), ("PHASE", "3")]
    assert letters[0].value == bad
    assert letters[0].key == "acme/install-1"
    assert letters[0].headers["source-topic"] == events.RECEIVED
    assert letters[0].headers["source-event-id"] == "e0"
    assert await inferences(stores) == 1
    assert b'latebind_telemetry_batches_total{outcome="rejected"} 2.0' in stores.metrics.render()


async def test_a_range_of_many_rows_goes_in_by_several_inserts_and_once(stores: Stores) -> None:
    count = CHUNK_BYTES // 20_000 + 2
    values = [envelope(batch(samples([100 + place % 50 for place in range(20_000)]))) for _ in range(count)]
    await stores.send(values, "acme/install-1")
    writer = stores.writer()
    async with member(stores) as consumer:
        records = (await consumer.batch(max_records=500, max_bytes=1 << 24, max_wait_s=1)).records
        await writer.write(consumer, records)
        assert await raw_count(stores) == count * 20_000
    assert await inferences(stores) == count * 20_000


async def test_when_nothing_can_be_decoded_the_writer_stops_and_says_so(stores: Stores) -> None:
    await fill(stores, 4)
    await stores.write_all()
    for number in range(40):
        await stores.eventlog.append(events.RECEIVED, [Message(f"acme/bad{number}", b"\xff", {"event-id": f"b{number}"})])
    writer = stores.writer(max_rejects_in_row=25)
    async with running([writer], clock=stores.clock) as workers:
        async with asyncio.timeout(20):
            while not writer.problem():
                await asyncio.sleep(0.01)
        assert "could not be decoded" in (workers.health()["telemetry-writer"] or "")
        assert await stores.dead_letters() == []
        assert await stores.eventlog.lag(GROUP, events.RECEIVED) > 0
    with pytest.raises(TooManyRejects):
        await stores.write_all(stores.writer(max_rejects_in_row=25))
    # Someone has looked: these are garbage, go on.
    await stores.write_all(stores.writer(max_rejects_in_row=0))
    assert len(await stores.dead_letters()) == 40
    assert await inferences(stores) == 8


class Stumbling(Tables):
    """A column store that cannot be used for a while."""

    failures = 2

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("not now")
        await super().insert(table, columns, token=token)


async def test_the_worker_goes_on_after_a_store_was_away(stores: Stores) -> None:
    stores.tables = Stumbling(stores.olap)
    await fill(stores, 6)
    writer = stores.writer(linger_s=0.01)
    sleeping = asyncio.create_task(wake(stores.clock))
    async with running([writer], clock=stores.clock), asyncio.timeout(20):
        while await stores.eventlog.lag(GROUP, events.RECEIVED):
            await asyncio.sleep(0.01)
        await fill(stores, 3, start=6)
        while await stores.eventlog.lag(GROUP, events.RECEIVED):
            await asyncio.sleep(0.01)
    sleeping.cancel()
    assert writer.problem() is None
    assert await raw_count(stores) == 18
    assert await stores.dead_letters() == []


async def wake(clock: Any) -> None:
    """Let a clock that stands still go on, so that pauses end."""
    while True:
        await asyncio.sleep(0.01)
        clock.advance(1.0)


async def test_a_planned_range_whose_beginning_is_gone_is_written_as_what_is_left(stores: Stores) -> None:
    await fill(stores, 8)
    async with stores.database.begin() as tx:
        await store.put_plans(tx, [Plan(events.RECEIVED, partition, -5, 100, NOW) for partition in range(4)], NOW)
    await stores.write_all()
    assert await inferences(stores) == 16


async def test_a_planned_range_whose_end_is_gone_is_written_as_what_is_left(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.telemetry.writer._IDLE_S", 0.05)
    await fill(stores, 8)
    async with stores.database.begin() as tx:
        await store.put_plans(tx, [Plan(events.RECEIVED, partition, 0, 100, NOW) for partition in range(4)], NOW)
    await stores.write_all()
    assert await inferences(stores) == 16
    assert await stores.eventlog.lag(GROUP, events.RECEIVED) == 0
