"""What every database adapter promises (kit.db)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, LargeBinary, String, Table, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from kit.clock import FakeClock
from kit.context import IdempotencyClaim, idempotency_claim
from kit.db import SCHEMES, Database, IdempotencyInFlight, open_database
from kit.db.idempotency import IdempotencyAnswerGone, IdempotencyKeyReused, StoredAnswer, find_answer, forget_answers, store_answer
from kit.db.lease import Lease, LeaseLost
from kit.db.outbox import forget_seen, relay_once
from kit.db.system import OUTBOX, new_metadata
from kit.db.types import Json, Timestamp
from kit.eventlog import Consumer, LogFull, open_eventlog
from tests import real_servers

METADATA = new_metadata()
COUNTERS = Table("counters", METADATA, Column("name", String(20), primary_key=True), Column("value", Integer, nullable=False))
VALUES = Table(
    "all_types",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", Timestamp),
    Column("value", Json),
    Column("bytes", LargeBinary),
    Column("text", String(200)),
)
URLS = {
    "sqlite": lambda folder: f"sqlite:{folder}/test.db",
    "postgresql": lambda _folder: f"{real_servers.postgres()}#test",
    "postgresql-15": lambda _folder: f"{real_servers.postgres('POSTGRES15')}#test",
}
CASES = [name if name == "sqlite" else pytest.param(name, marks=pytest.mark.cluster) for name in URLS]


def test_every_adapter_has_cases() -> None:
    assert {name.partition("-")[0] for name in URLS} == set(SCHEMES)


@pytest.fixture(params=CASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return URLS[request.param](tmp_path)


@pytest.fixture
async def database(url: str, clock: FakeClock) -> AsyncIterator[Database]:
    async with open_database(url, clock) as opened:
        await opened.dialect.prepare()
        async with opened.write_engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
        yield opened


async def count(database: Database, table: Table) -> int:
    async with database.read() as reader:
        return int(await reader.scalar(select(func.count()).select_from(table)))


async def test_the_same_types_come_back(database: Database) -> None:
    row = {
        "id": 1,
        "at": datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC),
        "value": {"b": [1, 2.5, True, None, "ä"], "a": {"z": {}}},
        "bytes": bytes(range(256)),
        "text": "ünïcode ' \" ; -- \\",
    }
    async with database.begin() as tx:
        await tx.execute(insert(VALUES).values(**row))
    async with database.read() as reader:
        read = await reader.first(select(VALUES))
    assert read is not None
    assert dict(read._mapping) == row
    assert list(read.value) == ["b", "a"]


async def test_times_before_1970_and_without_a_fraction_come_back_and_order(database: Database) -> None:
    times = [datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)]
    async with database.begin() as tx:
        await tx.execute(insert(VALUES), [{"id": number, "at": at} for number, at in enumerate(times)])
    async with database.read() as reader:
        assert [row.at for row in await reader.all(select(VALUES.c.at).order_by(VALUES.c.at))] == times


async def test_a_time_without_zone_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match="without zone"):
        async with database.begin() as tx:
            await tx.execute(insert(VALUES).values(id=1, at=datetime(2026, 1, 1)))
    assert await count(database, VALUES) == 0


async def test_an_error_takes_everything_back(database: Database) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        async with database.begin() as tx:
            await tx.execute(insert(COUNTERS).values(name="a", value=1))
            await tx.emit("thing.happened", key="k", account="acme", value=b"1")
            raise RuntimeError("stop")
    assert await count(database, COUNTERS) == 0
    assert await count(database, OUTBOX) == 0


async def test_a_rule_checked_inside_begin_still_holds_at_commit(database: Database) -> None:
    """Fifty tasks read, then write what they read plus one: without the write lock most of them would be lost."""
    async with database.begin() as tx:
        await tx.execute(insert(COUNTERS).values(name="n", value=0))

    async def add() -> None:
        async with database.begin() as tx:
            value = await tx.scalar(select(COUNTERS.c.value).where(COUNTERS.c.name == "n").with_for_update())
            await asyncio.sleep(0)
            await tx.execute(update(COUNTERS).where(COUNTERS.c.name == "n").values(value=value + 1))

    await asyncio.gather(*(add() for _ in range(50)))
    async with database.read() as reader:
        assert await reader.scalar(select(COUNTERS.c.value)) == 50


async def test_readers_see_a_snapshot_and_cannot_write(database: Database) -> None:
    async with database.read() as reader:
        before = await reader.scalar(select(func.count()).select_from(COUNTERS))
        async with database.begin() as tx:
            await tx.execute(insert(COUNTERS).values(name="later", value=1))
        assert await reader.scalar(select(func.count()).select_from(COUNTERS)) == before
    with pytest.raises(Exception, match=r"read-?only"):
        async with database.read() as reader:
            await reader.first(insert(COUNTERS).values(name="x", value=1))


async def test_a_broken_constraint_is_an_integrity_error(database: Database) -> None:
    async with database.begin() as tx:
        await tx.execute(insert(COUNTERS).values(name="a", value=1))
    with pytest.raises(IntegrityError):
        async with database.begin() as tx:
            await tx.execute(insert(COUNTERS).values(name="a", value=2))


async def test_a_cancelled_transaction_leaves_nothing_and_the_next_one_works(database: Database) -> None:
    async def never_ends() -> None:
        async with database.begin() as tx:
            await tx.execute(insert(COUNTERS).values(name="a", value=1))
            await asyncio.sleep(60)

    for _ in range(20):
        task = asyncio.create_task(never_ends())
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with database.begin() as tx:
        await tx.execute(insert(COUNTERS).values(name="b", value=1))
    assert await count(database, COUNTERS) == 1


async def test_an_event_leaves_in_order_and_once(database: Database, tmp_path: Path) -> None:
    async with open_eventlog(f"local:{tmp_path}/log.db") as log:
        for number in range(30):
            async with database.begin() as tx:
                await tx.emit(f"thing.{'happened' if number % 7 else 'ended'}", key="k", account="acme", value=b"%d" % number)
        assert await relay_once(database, log) == 30
        assert await relay_once(database, log) == 0
        async with log.consumer("g", ["thing.happened", "thing.ended"]) as consumer:
            values = await _read(consumer, 30)
    assert sorted(values) == list(range(30))
    assert [value for value in values if value % 7] == [value for value in range(30) if value % 7]


async def _read(consumer: Consumer, expected: int) -> list[int]:
    values: list[int] = []
    while len(values) < expected:
        batch = await consumer.batch(max_records=100, max_bytes=1 << 20, max_wait_s=5)
        assert batch.records
        assert all(record.headers["event-id"].startswith("e_") and record.headers["account"] == "acme" for record in batch.records)
        values += [int(record.value) for record in batch.records]
    return values


async def test_a_full_log_keeps_the_event_in_the_outbox(database: Database, tmp_path: Path) -> None:
    async with database.begin() as tx:
        await tx.emit("thing.happened", key="k", account="acme", value=b"x" * 200_000)
    async with open_eventlog(f"local:{tmp_path}/log.db?max_bytes=100000&full_wait_s=0.05") as log:
        with pytest.raises(LogFull):
            await relay_once(database, log)
    assert await count(database, OUTBOX) == 1


async def test_an_event_is_handled_once(database: Database, clock: FakeClock) -> None:
    async with database.begin() as tx:
        assert await tx.first_time("registry", "e_1")
    async with database.begin() as tx:
        assert not await tx.first_time("registry", "e_1")
        assert await tx.first_time("packager", "e_1")
    clock.advance(timedelta(days=15).total_seconds())
    assert await forget_seen(database, clock) == 2


async def pass_time(database: Database, clock: FakeClock, seconds: float) -> None:
    """Let time pass for everybody: here, and for a server with a clock of its own as if it had passed there."""
    clock.advance(seconds)
    if database.dialect.clock() is not None:
        async with database.begin() as tx:
            await tx.execute(text("UPDATE leases SET expires_at = expires_at - :us").bindparams(us=round(seconds * 1_000_000)))


async def test_a_lease_has_one_holder_and_is_free_after_its_end(database: Database, clock: FakeClock) -> None:
    first = Lease(database, clock, name="relay", holder="a", ttl=timedelta(seconds=15))
    second = Lease(database, clock, name="relay", holder="b", ttl=timedelta(seconds=15))
    assert await first.hold()
    assert not await second.hold()
    await pass_time(database, clock, 14)
    assert await first.hold()
    await pass_time(database, clock, 14)
    assert not await second.hold()
    assert first.holding
    await pass_time(database, clock, 2)
    assert not first.holding
    assert await second.hold()
    assert not await first.hold()
    await second.release()
    assert await first.hold()


async def test_a_lease_does_not_believe_a_wrong_clock(database: Database, clock: FakeClock) -> None:
    if database.dialect.clock() is None:
        return  # one machine, one clock
    ahead = FakeClock(clock.now() + timedelta(days=400))
    first = Lease(database, clock, name="relay", holder="a")
    second = Lease(database, ahead, name="relay", holder="b")
    assert await first.hold()
    assert not await second.hold()


async def test_a_holder_that_was_paused_writes_nothing_after_its_successor(database: Database, clock: FakeClock) -> None:
    first = Lease(database, clock, name="relay", holder="a")
    second = Lease(database, clock, name="relay", holder="b")
    assert await first.hold()
    with first.fenced():
        async with database.begin() as tx:
            await tx.execute(insert(COUNTERS).values(name="before", value=1))
        await pass_time(database, clock, 16)  # paused for longer than the lease
        assert await second.hold()
        with second.fenced():
            async with database.begin() as tx:
                await tx.execute(insert(COUNTERS).values(name="successor", value=1))
        with pytest.raises(LeaseLost):
            async with database.begin() as tx:
                await tx.execute(insert(COUNTERS).values(name="paused", value=1))
    assert not first.holding
    async with database.read() as reader:
        assert {row.name for row in await reader.all(select(COUNTERS))} == {"before", "successor"}


async def test_an_idempotency_key_has_one_effect(database: Database, clock: FakeClock) -> None:
    claim = IdempotencyClaim("acme/key1", "abc", "hash")

    async def effect(name: str) -> None:
        idempotency_claim.set(claim)
        async with database.begin() as tx:
            await tx.execute(insert(COUNTERS).values(name=name, value=1))

    results = await asyncio.gather(*(effect(f"c{number}") for number in range(20)), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, IdempotencyInFlight) for result in results) == 19
    assert await count(database, COUNTERS) == 1
    with pytest.raises(IdempotencyAnswerGone):
        await find_answer(database, claim)
    await store_answer(database, claim, StoredAnswer(201, "application/json", b"{}"))
    assert await find_answer(database, claim) == StoredAnswer(201, "application/json", b"{}")
    with pytest.raises(IdempotencyKeyReused):
        await find_answer(database, IdempotencyClaim("acme/key1", "abc", "other"))
    assert await find_answer(database, IdempotencyClaim("other/key1", "abc", "hash")) is None
    clock.advance(25 * 3600)
    assert await forget_answers(database, clock) == 1


async def test_a_failed_effect_frees_the_key(database: Database) -> None:
    claim = IdempotencyClaim("acme/key1", "abc", "hash")
    idempotency_claim.set(claim)
    with pytest.raises(RuntimeError):
        async with database.begin() as tx:
            await tx.execute(insert(COUNTERS).values(name="a", value=1))
            raise RuntimeError
    assert await find_answer(database, claim) is None


async def test_statements_can_be_counted(database: Database) -> None:
    seen: list[str] = []
    stop = database.on_statement(seen.append)
    await count(database, COUNTERS)
    stop()
    await count(database, COUNTERS)
    assert sum("counters" in statement for statement in seen) == 1
