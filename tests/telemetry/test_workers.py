"""Old months go away; a start alone does not wake the column store."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta

import pytest

from kit.clock import FakeClock
from kit.workers import running
from services.telemetry.columnstore import TABLES
from services.telemetry.workers import drop_old_months, retention
from tests.telemetry.factories import NOW, NOW_MS, batch, envelope, failure, samples
from tests.telemetry.stores import Stores

DAY_MS = 86_400_000


async def fill(stores: Stores, *days_ago: int) -> None:
    for days in days_ago:
        at = NOW_MS - days * DAY_MS
        one = batch(samples([10], base_ms=at), failures=[failure(at_ms=at)], created_ms=at)
        await stores.send([envelope(one, received_ms=at)], f"acme/i{days}")
    await stores.write_all()


async def test_months_go_when_their_last_day_is_too_old(stores: Stores) -> None:
    await fill(stores, 0, 30, 60, 400)
    for table in TABLES:
        assert await stores.tables.months(table) == [202510, 202609, 202610, 202611]
    assert await drop_old_months(stores.tables, date(2026, 11, 22), 60) == 3  # back to 23 September: that month is not over
    assert await drop_old_months(stores.tables, date(2026, 11, 29), 60) == 0  # its last day is 60 days ago
    assert await drop_old_months(stores.tables, date(2026, 11, 30), 60) == 3
    for table in TABLES:
        assert await stores.tables.months(table) == [202610, 202611]


async def test_the_worker_deletes_at_its_second_turn_when_nothing_was_used_before(stores: Stores, clock: FakeClock) -> None:
    await fill(stores, 0, 500)
    stores.__post_init__()  # as after a restart: this process has not used the store yet
    worker = retention(stores.ports().lease, stores.database, stores.tables, clock, days=400)
    async with running([worker], clock=clock):
        await asyncio.sleep(0.05)
        assert not stores.tables.in_use
        async with asyncio.timeout(10):
            while not stores.tables.in_use:
                clock.advance(timedelta(hours=1).total_seconds())
                await asyncio.sleep(0.01)
    assert await stores.tables.months("samples") == [202611]
    assert NOW.month == 11


@pytest.mark.parametrize(("table", "month"), [("schema_migrations", 202611), ("samples", 0), ("samples; --", 202611)])
async def test_only_months_of_our_tables_can_be_deleted(stores: Stores, table: str, month: int) -> None:
    with pytest.raises(ValueError, match="no month of ours"):
        await stores.tables.drop_month(table, month)
