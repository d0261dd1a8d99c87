"""Rolled-up days answer as their samples do, whatever comes late and whoever dies meanwhile."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date, timedelta
from typing import Any

import pytest

from kit.clock import FakeClock
from kit.db import Database, Transaction
from services.telemetry import store_rollups
from services.telemetry.columnstore import ROLLED, Tables
from services.telemetry.queries import Analytics
from services.telemetry.rollup import Rollup
from services.telemetry.selection import Selection
from tests.telemetry.factories import NOW, NOW_MS, History, batch, envelope, random_batch, samples
from tests.telemetry.stores import Stores

DAY_MS = 86_400_000
YESTERDAY = NOW.date() - timedelta(days=1)
PERCENTILES = ("p50_ms", "p90_ms", "p95_ms", "p99_ms")


def select(**more: Any) -> Selection:
    return Selection(**{"account": "acme", "since": NOW - timedelta(days=20), "until": NOW + timedelta(days=1)} | more)


def rollup_of(stores: Stores, tables: Tables | None = None, database: Any = None) -> Rollup:
    return Rollup(database=database or stores.database, tables=tables or stores.tables, clock=stores.clock)


async def roll_up(stores: Stores, **parts: Any) -> None:
    """One turn, when it has been quiet for a while."""
    stores.clock.advance(1000)  # type: ignore[attr-defined]
    await rollup_of(stores, **parts).turn()


async def builds(stores: Stores) -> dict[date, int]:
    async with stores.database.read() as reader:
        return await store_rollups.builds_of(reader, NOW.date() - timedelta(days=30), NOW.date() + timedelta(days=30))


async def rolled_rows(stores: Stores) -> int:
    return sum([int((await stores.tables.query(f"SELECT count() AS n FROM {table}", {}))[0]["n"]) for table in ROLLED])


async def send_days(stores: Stores, days: Sequence[int], *, each: int = 6, seed: int = 1, history: History | None = None) -> History:
    """Random batches whose samples lie within so many days before now."""
    rng, history = random.Random(seed), history or History()
    for days_ago in days:
        at = NOW_MS - days_ago * DAY_MS
        for number in range(each):
            install = f"install-{number % 4}"
            sent = random_batch(rng, days=1)
            moved = at - NOW_MS
            sent.created_at_ms += moved
            for series in sent.series:
                series.base_ms += moved
            for one in sent.failures:
                one.at_ms += moved
            history.add(install, sent)
            await stores.send([envelope(sent, install=install, received_ms=NOW_MS)], f"acme/{install}")
    await stores.write_all()
    return history


async def everything(stores: Stores) -> list[Any]:
    """All answers about samples: by dimensions, over days, of two versions, at odd hours."""
    analytics = stores.analytics
    by, odd = ("soc", "version"), {"since": NOW - timedelta(days=6, hours=5), "until": NOW - timedelta(days=1, minutes=3)}
    answers = [
        await analytics.latency(select(group_by=by)),
        await analytics.latency(select(**odd), phases=["steady"]),
        await analytics.latency(select(where={"version": (7,)})),
        await analytics.inferences(select(group_by=by), interval="day"),
        await analytics.inferences(select(), interval="month"),
        await analytics.inferences(select(), interval="hour"),
        await analytics.inferences(select(**odd, group_by=("model",))),
        await analytics.active_installs(select()),
        await analytics.adoption(select()),
        await analytics.compare(select(), model="yolo", baseline=7, candidate=8),
    ]
    return [[dict(row) for row in answer.items] for answer in answers]


async def some(stores: Stores) -> list[Any]:
    """The answers that a wrong roll-up would change first."""
    latency = await stores.analytics.latency(select(group_by=("version",)))
    daily = await stores.analytics.inferences(select(), interval="day")
    return [[dict(row) for row in answer.items] for answer in (latency, daily)]


def assert_equal(found: Any, exact: Any, path: str = "") -> None:
    """Counts, installs, means and maxima equal; percentiles within 1 %."""
    if isinstance(exact, dict):
        assert found.keys() == exact.keys(), path
        for name in exact:
            if exact[name] is not None and (name == "ratio" or name in PERCENTILES):
                close = 0.021 if name == "ratio" else 0.0101
                assert found[name] == pytest.approx(exact[name], rel=close), f"{path}.{name}"
            else:
                assert_equal(found[name], exact[name], f"{path}.{name}")
    elif isinstance(exact, list):
        assert len(found) == len(exact), path
        for place, (left, right) in enumerate(zip(found, exact, strict=True)):
            assert_equal(left, right, f"{path}[{place}]")
    elif isinstance(exact, float):
        assert found == pytest.approx(exact, rel=1e-6), path
    else:
        assert found == exact, path


async def test_answers_over_roll_ups_are_those_of_the_samples(stores: Stores) -> None:
    await send_days(stores, [0, 1, 2, 3, 5, 9])
    exact = await everything(stores)
    assert await builds(stores) == {}
    await roll_up(stores)
    made = await builds(stores)
    assert {YESTERDAY, YESTERDAY - timedelta(days=1)} <= made.keys()
    assert NOW.date() not in made
    assert_equal(await everything(stores), exact)
    # Roll-ups are really what was read: with the samples of a rolled-up day gone, it still answers.
    before = (await stores.analytics.inferences(select())).items[0]["inferences"]
    await stores.olap.execute("TRUNCATE TABLE samples")
    assert 0 < (await stores.analytics.inferences(select())).items[0]["inferences"] < before


async def test_late_samples_reopen_their_day_and_are_seen_at_once(stores: Stores) -> None:
    history = await send_days(stores, [1, 2])
    await roll_up(stores)
    first = await builds(stores)
    await send_days(stores, [1], each=3, seed=2, history=history)
    reopened = await builds(stores)
    assert YESTERDAY not in reopened
    late = await everything(stores)
    assert sum(row["inferences"] for row in late[4]) == sum(history.inferences().values())
    await rollup_of(stores).turn()  # it was not quiet for long enough
    assert YESTERDAY not in await builds(stores)
    await roll_up(stores)
    again = await builds(stores)
    assert again[YESTERDAY] > first[YESTERDAY]
    assert_equal(await everything(stores), late)


async def test_a_batch_that_comes_again_changes_no_rolled_up_day(stores: Stores) -> None:
    one = batch(samples([1000] * 5, base_ms=NOW_MS - DAY_MS), created_ms=NOW_MS - DAY_MS)
    for delay in (0, 1000, 2000):
        await stores.send([envelope(one, received_ms=NOW_MS + delay)], "acme/install-1")
        await stores.write_all()
        await roll_up(stores)
        assert await builds(stores)
        (row,) = (await stores.analytics.latency(select())).items
        assert (row["count"], row["installs"], row["p50_ms"]) == (5, 1, 1.0)


class Dying(Exception):
    """The process is gone."""


class Mortal(Tables):
    """Tables whose process dies before or after their n-th statement that changes something."""

    def __init__(self, stores: Stores, left: int, *, after: bool) -> None:
        super().__init__(stores.olap)
        self.left, self._after = left, after

    async def execute(self, sql: str) -> None:
        await self._reach(not self._after)
        await super().execute(sql)
        await self._reach(self._after, count=False)

    async def drop_build(self, build: int) -> None:
        await self._reach(not self._after)
        await super().drop_build(build)
        await self._reach(self._after, count=False)

    async def _reach(self, here: bool, *, count: bool = True) -> None:
        self.left -= count
        if here and self.left == 0:
            raise Dying


class MortalDatabase:
    """A database whose process dies after its n-th transaction."""

    def __init__(self, real: Database, left: int) -> None:
        self._real, self._left = real, left
        self.read = real.read

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Transaction]:
        async with self._real.begin() as transaction:
            yield transaction
        self._left -= 1
        if self._left == 0:
            raise Dying


async def test_killed_at_any_step_the_next_turn_goes_on_and_no_answer_is_wrong(stores: Stores) -> None:
    await send_days(stores, [1, 2])
    exact = await some(stores)
    for at in range(1, 5):
        for make in (
            lambda at=at: {"tables": Mortal(stores, at, after=False)},
            lambda at=at: {"tables": Mortal(stores, at, after=True)},
            lambda at=at: {"database": MortalDatabase(stores.database, at)},
        ):
            with pytest.raises(Dying):
                await roll_up(stores, **make())
            assert_equal(await some(stores), exact)
            async with stores.database.begin() as tx:  # as if late samples had come for both days
                await store_rollups.note_changes(tx, [YESTERDAY, YESTERDAY - timedelta(days=1)], stores.clock.now() - timedelta(hours=1))
    await roll_up(stores)
    left = await rolled_rows(stores)
    assert len(await builds(stores)) >= 2
    await roll_up(stores)
    assert await rolled_rows(stores) == left, "nothing is left over"
    assert_equal(await some(stores), exact)


async def test_samples_that_come_while_a_day_is_rolled_up_are_not_lost(stores: Stores) -> None:
    history = await send_days(stores, [1])

    class Meanwhile(Tables):
        """More samples arrive between the two statements of a roll-up."""

        sent = False

        async def execute(self, sql: str) -> None:
            await super().execute(sql)
            if not self.sent:
                self.sent = True
                await send_days(stores, [1], each=2, seed=3, history=history)

    await roll_up(stores, tables=Meanwhile(stores.olap))
    assert YESTERDAY not in await builds(stores)
    found = (await stores.analytics.inferences(select())).items[0]["inferences"]
    assert found == sum(history.inferences().values())


async def test_a_roll_up_that_lost_rows_answers_no_more(stores: Stores) -> None:
    await send_days(stores, [1, 2])
    exact = await some(stores)
    await roll_up(stores)
    made = await builds(stores)
    await stores.olap.execute(f"ALTER TABLE rolled_installs DROP PARTITION {made[YESTERDAY]}")
    stores.analytics = Analytics(stores.tables, stores.database, stores.clock)  # as after a restart: it looks before it believes
    assert_equal(await some(stores), exact)
    await roll_up(stores)
    assert (await builds(stores)).keys() == made.keys() - {YESTERDAY}
    assert_equal(await some(stores), exact)
    await roll_up(stores)
    assert (await builds(stores)).keys() == made.keys()
    assert_equal(await some(stores), exact)


async def test_a_question_under_which_a_roll_up_is_replaced_is_put_again(stores: Stores) -> None:
    await send_days(stores, [1, 2])
    await roll_up(stores)
    expected = (await stores.analytics.inferences(select())).items

    class Replacing(Tables):
        """Before the first answers every day is rolled up anew and the old builds are deleted."""

        left = 2

        async def query(self, sql: str, params: Any) -> list[dict[str, Any]]:
            if self.left and "rolled_samples" in sql:
                self.left -= 1
                async with stores.database.begin() as tx:
                    await store_rollups.note_changes(tx, await _days(stores), stores.clock.now() - timedelta(hours=1))
                await roll_up(stores)
            return await super().query(sql, params)

    analytics = Analytics(Replacing(stores.olap), stores.database, stores.clock)
    assert (await analytics.inferences(select())).items == expected


async def _days(stores: Stores) -> list[date]:
    return list(await builds(stores))


async def test_old_days_are_forgotten_with_their_samples(stores: Stores, clock: FakeClock) -> None:
    await send_days(stores, [1, 2])
    await roll_up(stores)
    async with stores.database.begin() as tx:
        assert await store_rollups.forget_days(tx, YESTERDAY) >= 1
    await roll_up(stores)
    assert list(await builds(stores)) == [YESTERDAY]
    found = await stores.tables.query("SELECT DISTINCT day FROM rolled_samples", {})
    assert [row["day"] for row in found] == [YESTERDAY]
