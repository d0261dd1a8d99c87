"""A writer that was paused, or whose partitions have moved, changes no plan of its successor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kit.clock import FakeClock
from kit.db import Database, Transaction
from kit.eventlog import Batch, Consumer, PartitionLost, Record
from kit.identity import PrincipalSeal
from kit.olap import Columns
from kit.olap.chdb import ChdbStore
from services.telemetry.columnstore import Tables
from services.telemetry.domain import Plan
from tests.telemetry.stores import Stores, open_stores
from tests.telemetry.test_writer import fill, inferences, member, plans, raw_count

#: The transactions of a writer that is new to its partitions: taking the fence, planning, then noting that it is done.
TAKE, PLAN = 1, 2


class Pausing:
    """A database before whose n-th transaction its user is paused, as a whole process can be."""

    def __init__(self, real: Database, at: int) -> None:
        self._real, self._left = real, at
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Transaction]:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            await self.go_on.wait()
        async with self._real.begin() as transaction:
            yield transaction


class Dying(Tables):
    """Tables whose writer dies when the rows are in."""

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        await super().insert(table, columns, token=token)
        raise ConnectionAbortedError("died")


def shares(records: list[Record], size: int) -> tuple[list[Record], list[Record]]:
    """The first `size` records of every partition, and the others."""
    first = [record for record in records if record.offset < size]
    return first, [record for record in records if record.offset >= size]


@pytest.mark.parametrize("at", [TAKE, PLAN])
async def test_a_paused_writer_does_not_overwrite_the_plan_of_its_successor(stores: Stores, at: int) -> None:
    await fill(stores, 24)
    database = Pausing(stores.database, at)
    paused = stores.writer()
    paused._database = database  # type: ignore[assignment]
    async with member(stores) as consumer:
        sleeper = asyncio.create_task(paused.write(consumer, await handed_out(consumer, 24)))
        await database.reached.wait()
    # The successor finishes a piece of every partition, and dies within the next one.
    tables, stores.tables = stores.tables, Dying(stores.olap)
    dying = stores.writer()
    stores.tables = tables
    async with member(stores) as consumer:
        first, second = shares(await handed_out(consumer, 24), 2)
        await stores.writer().write(consumer, first)
        with pytest.raises(ConnectionAbortedError):
            await dying.write(consumer, second)
        planned = await plans(stores)
    assert {(record.partition, 2) for record in second} <= {(plan.partition, plan.first) for plan in planned.values()}
    database.go_on.set()
    with pytest.raises(PartitionLost):
        await sleeper
    assert await plans(stores) == planned
    await finish(stores, 24)


async def test_who_takes_a_fence_without_owning_the_partition_plans_nothing(stores: Stores) -> None:
    """It only disturbs the owner, who takes the fence again."""
    await fill(stores, 8)
    async with member(stores) as consumer:
        owner = stores.writer()
        records = await handed_out(consumer, 8)
        await owner.write(consumer, records)
        before = await plans(stores)
        with pytest.raises(PartitionLost):
            await stores.writer().write(Gone(), records)  # type: ignore[arg-type]
        assert await plans(stores) == before
        await fill(stores, 8)
        records = await handed_out(consumer, 8)
        with pytest.raises(PartitionLost, match="another writer"):
            await owner.write(consumer, records)
        assert await plans(stores) == before
        await owner.write(consumer, records)
    await finish(stores, 16)


class Gone:
    """A consumer whose partitions have moved: the log refuses its commits."""

    async def commit(self, offsets: object) -> None:
        raise PartitionLost("moved")


class Shared:
    """A consumer that another member joins before its first read; from then on something new is in the log before each read."""

    def __init__(self, real: Consumer, stores: Stores, joined: AsyncExitStack) -> None:
        self._real, self._stores, self._joined = real, stores, joined
        self._reads = 0

    async def batch(self, *, max_records: int, max_bytes: int, max_wait_s: float) -> Batch:
        self._reads += 1
        if self._reads == 1:
            await self._joined.enter_async_context(member(self._stores))
        await fill(self._stores, 8, start=24 + 8 * self._reads)
        return await self._real.batch(max_records=max_records, max_bytes=max_bytes, max_wait_s=max_wait_s)

    async def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        await self._real.commit(offsets)


async def test_who_reads_on_for_a_planned_range_notices_that_it_has_moved(tmp_path: Path, clock: FakeClock, seal: PrincipalSeal) -> None:
    """While other partitions bring more and more, the rest of the range comes to its new owner only."""
    async with open_stores(tmp_path, clock, seal) as stores:
        await fill(stores, 24)
        tables, stores.tables = stores.tables, Dying(stores.olap)
        dying = stores.writer()
        stores.tables = tables
        async with member(stores) as consumer:
            with pytest.raises(ConnectionAbortedError):
                await dying.write(consumer, await handed_out(consumer, 24))
        async with member(stores), member(stores) as second:  # it takes over what the second of two gets
            moving = (await second.batch(max_records=1, max_bytes=1 << 24, max_wait_s=5)).records[0]
            assert (await plans(stores))[moving.partition].last > moving.offset
        async with AsyncExitStack() as joined, member(stores) as consumer:
            records = await handed_out(consumer, 24)
            begun = [record for record in records if (record.partition, record.offset) == (moving.partition, moving.offset)]
            async with asyncio.timeout(30):
                with pytest.raises(PartitionLost):
                    await stores.writer().write(Shared(consumer, stores, joined), begun)  # type: ignore[arg-type]
        await stores.write_all()
        assert all(plan.done for plan in (await plans(stores)).values())


async def handed_out(consumer: Consumer, count: int) -> list[Record]:
    found: list[Record] = []
    while len(found) < count:
        found += (await consumer.batch(max_records=100, max_bytes=1 << 24, max_wait_s=1)).records
    return found


async def finish(stores: Stores, batches: int) -> None:
    await stores.write_all()
    if isinstance(stores.olap, ChdbStore):
        assert await raw_count(stores) == 2 * batches  # the tokens were the same: no range was cut differently
    assert await inferences(stores) == 2 * batches
    found: dict[int, Plan] = await plans(stores)
    assert all(plan.done for plan in found.values())
