"""Rolls closed days up, so that answers about long times need not read every sample.

A day is due when it is over and no rows have come for a while. It is begun in SQL under a new build number → added up in the column
store from rows without repeats → finished in SQL, which from then on sends readers to that build. Rows that come later reopen the day
(`note_changes`, before the writer commits); readers take the samples themselves until it is rolled up again. Killed anywhere, a
build that was begun and not finished is a left-over that the next turn deletes. One process does it at a time, under the lease.
"""

from __future__ import annotations

from datetime import date, timedelta

from kit.clock import Clock
from kit.db import Database
from kit.db.lease import Lease, leased
from kit.errors import Unavailable
from kit.logs import get_logger
from kit.olap import StatementFailed
from kit.workers import Worker
from services.telemetry import store_rollups
from services.telemetry.columnstore import Tables
from services.telemetry.rows import CONTEXT, GAMMA
from services.telemetry.selection import COPIES

_EVERY_S = 300.0
#: After its end a day stays open this long, and after the last rows that came for it.
_QUIET = timedelta(minutes=15)
_DIMENSIONS = ", ".join(CONTEXT)
_NOBODY = -100_000
_BUCKET = f"if(value_us > 0, toInt32(ceil(log(value_us) / log({GAMMA}))), {_NOBODY})"
#: A bucket that holds one value keeps it; any other gets the middle that is at most 1 % from all its values.
_VALUE = f"if(min(value_us) = max(value_us), max(value_us), toFloat32({2 / (GAMMA + 1)} * pow({GAMMA}, bucket)))"

log = get_logger(__name__)


class Rollup:
    """The work of the worker; each method may be repeated, and stopped anywhere."""

    def __init__(self, *, database: Database, tables: Tables, clock: Clock) -> None:
        self._database, self._tables, self._clock = database, tables, clock

    async def turn(self) -> None:
        """Roll up what is due, then delete what no answer needs."""
        now = self._clock.now()
        async with self._database.read() as reader:
            days = await store_rollups.due(reader, before=(now - _QUIET).date(), quiet_since=now - _QUIET)
        for day in days:
            try:
                await self.build(day)
            except (StatementFailed, Unavailable) as failed:
                # Answers stay right without it. One day that is too much for the store does not keep the others from their turn.
                log.warning("a day could not be rolled up; its samples answer", day=str(day), error=str(failed)[:300])
        if self._tables.in_use:  # a start should not pay for an engine that nobody needs yet
            await self.clean()

    async def build(self, day: date) -> None:
        """Roll up one day."""
        async with self._database.begin() as tx:
            begun = await store_rollups.begin(tx, day, self._clock.now())
        for statement in _statements(begun.day, begun.build):
            await self._tables.execute(statement)
        rows = (await self._tables.build_rows())[begun.build]
        async with self._database.begin() as tx:
            await store_rollups.finish(tx, begun, rows)
        log.info("a day was rolled up", day=str(day), build=begun.build, rows=rows)

    async def clean(self) -> None:
        """Delete builds that answer for no day; a build that lost rows (a server that lost power) answers no more."""
        # First what is there, then what is needed: a build that another process begins meanwhile is not in the first list.
        there = await self._tables.build_rows()
        async with self._database.read() as reader:
            answering, begun = await store_rollups.known_builds(reader)
        if damaged := [build for build, rows in answering.items() if there[build] != rows]:
            log.error("roll-ups have lost rows and are made anew", builds=damaged)
            async with self._database.begin() as tx:
                await store_rollups.forget_builds(tx, damaged)
        for build in sorted(there.keys() - answering.keys() - begun):
            await self._tables.drop_build(build)


def rollup(lease: Lease, database: Database, tables: Tables, clock: Clock) -> Worker:
    """Return the worker."""
    return leased(lease, "telemetry-rollup", _EVERY_S, Rollup(database=database, tables=tables, clock=clock).turn, clock=clock)


def _statements(day: date, build: int) -> tuple[str, str]:
    """Return what adds a day up. Everything in them is a date or a number of ours."""
    first, last, next_day = day - COPIES, day + COPIES, day + timedelta(days=1)
    rows = (
        f"FROM samples FINAL WHERE day >= '{first}' AND day <= '{last}'"
        f" AND at >= toDateTime('{day} 00:00:00', 'UTC') AND at < toDateTime('{next_day} 00:00:00', 'UTC')"
    )
    dimensions = f"account, phase, {_DIMENSIONS}"
    head = f"toUInt32({build}) AS build, toDate('{day}') AS the_day"
    return (
        f"INSERT INTO rolled_samples (build, day, {dimensions}, value_us, weight, sum_us, max_us)"  # noqa: S608 - see above
        f" SELECT build, the_day, {dimensions}, value, weights, sums, biggest FROM (SELECT {head}, {dimensions}, {_BUCKET} AS bucket,"
        f" {_VALUE} AS value, sum(toUInt64(weight)) AS weights, sum(toFloat64(value_us) * weight) AS sums, max(value_us) AS biggest"
        f" {rows} GROUP BY {dimensions}, bucket)",
        f"INSERT INTO rolled_installs (build, day, {dimensions}, install)"
        f" SELECT {head}, {dimensions}, install {rows} GROUP BY {dimensions}, install",
    )
