"""Periodic work: deleting what is older than it may become."""

from __future__ import annotations

from datetime import date, timedelta

from kit.clock import Clock
from kit.db import Database
from kit.db.lease import Lease, leased
from kit.logs import get_logger
from kit.workers import Worker
from services.telemetry import store_rollups
from services.telemetry.columnstore import TABLES, Tables

_EVERY_S = 6 * 3600.0

log = get_logger(__name__)


async def drop_old_months(tables: Tables, today: date, days: int) -> int:
    """Delete the months whose last day is more than `days` ago; returns how many partitions that were."""
    oldest = today - timedelta(days=days)
    dropped = 0
    for table in TABLES:
        for month in await tables.months(table):
            if month < oldest.year * 100 + oldest.month:
                await tables.drop_month(table, month)
                log.info("telemetry deleted", table=table, month=month)
                dropped += 1
    return dropped


def retention(lease: Lease, database: Database, tables: Tables, clock: Clock, *, days: int) -> Worker:
    """Return the worker that deletes old months, in one process at a time."""
    first = True

    async def delete() -> None:
        nonlocal first
        skip, first = first and not tables.in_use, False
        if skip:
            return  # a start should not pay for an engine that nobody needs yet
        today = clock.now().date()
        # Roll-ups first: what answers for a day is never more than what is there of it.
        async with database.begin() as tx:
            await store_rollups.forget_days(tx, (today - timedelta(days=days)).replace(day=1))
        await drop_old_months(tables, today, days)

    return leased(lease, "telemetry-retention", _EVERY_S, delete, clock=clock)
