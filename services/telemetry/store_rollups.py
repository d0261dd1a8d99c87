"""Statements about rolled-up days: which there are, which build answers for each, which are due."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import delete, func, or_, select, update

from kit.db import Reader, Transaction
from services.telemetry.tables import ROLLUP_DAYS

_T = ROLLUP_DAYS
#: Build numbers are 32 bits in the column store.
_MAX_BUILD = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Begun:
    """A roll-up under way: the day as it was after `changes` changes becomes `build`."""

    day: date
    build: int
    changes: int


async def begun_of(reader: Reader, days: Collection[date]) -> dict[date, bool]:
    """Return those of the days that are known, and whether a roll-up of them was ever begun."""
    rows = await reader.all(select(_T.c.day, _T.c.begun).where(_T.c.day.in_(days)))
    return {row.day: row.begun is not None for row in rows}


async def note_changes(tx: Transaction, days: Collection[date], now: datetime) -> None:
    """Note that rows of these days were added: what was rolled up before answers no more."""
    for day in sorted(days):
        changed = await tx.execute(update(_T).where(_T.c.day == day).values(changes=_T.c.changes + 1, changed_at=now))
        if not changed.rowcount:
            await tx.execute(_T.insert().values(day=day, changes=1, changed_at=now))


async def builds_of(reader: Reader, first: date, last: date) -> dict[date, int]:
    """Return the days from `first` to `last` (both included) for which a roll-up answers, with its build."""
    rows = await reader.all(
        select(_T.c.day, _T.c.build).where(_T.c.day >= first, _T.c.day <= last, _T.c.build.is_not(None), _T.c.built_changes == _T.c.changes)
    )
    return {row.day: row.build for row in rows}


async def due(reader: Reader, *, before: date, quiet_since: datetime) -> list[date]:
    """Return the days before `before` whose rows have not changed since `quiet_since` and that no roll-up answers for, newest first."""
    stale = or_(_T.c.build.is_(None), _T.c.built_changes != _T.c.changes)
    rows = await reader.all(select(_T.c.day).where(_T.c.day < before, _T.c.changed_at <= quiet_since, stale).order_by(_T.c.day.desc()))
    return [row.day for row in rows]


async def begin(tx: Transaction, day: date, now: datetime) -> Begun:
    """Note that a roll-up of the day begins, under a number that no other has had."""
    newest = await tx.scalar(select(func.max(_T.c.begun)))
    build = min(max(int(now.timestamp()), (newest or 0) + 1), _MAX_BUILD)
    await tx.execute(update(_T).where(_T.c.day == day).values(begun=build))
    return Begun(day, build, int(await tx.scalar(select(_T.c.changes).where(_T.c.day == day))))


async def finish(tx: Transaction, begun: Begun, rows: int) -> None:
    """Let the build answer for its day, unless rows were added meanwhile or another one was begun."""
    await tx.execute(
        update(_T)
        .where(_T.c.day == begun.day, _T.c.begun == begun.build)
        .values(build=begun.build, built_changes=begun.changes, built_rows=rows)
    )


async def built_rows(reader: Reader) -> dict[int, int]:
    """Return how many rows each build had when it was finished."""
    rows = await reader.all(select(_T.c.build, _T.c.built_rows).where(_T.c.build.is_not(None)))
    return {row.build: row.built_rows for row in rows}


async def known_builds(reader: Reader) -> tuple[dict[int, int], set[int]]:
    """Return the builds that may answer with the number of their rows, and those that were begun last."""
    begun = await reader.all(select(_T.c.begun).where(_T.c.begun.is_not(None)))
    return await built_rows(reader), {row.begun for row in begun}


async def forget_builds(tx: Transaction, builds: Collection[int]) -> None:
    """Let these builds answer no more."""
    await tx.execute(update(_T).where(_T.c.build.in_(builds)).values(build=None, built_changes=None, built_rows=None))


async def forget_days(tx: Transaction, before: date) -> int:
    """Forget days whose rows are deleted; returns how many."""
    return (await tx.execute(delete(_T).where(_T.c.day < before))).rowcount


def same(builds: Mapping[date, int], later: Mapping[date, int]) -> bool:
    """Whether each of the builds still answers for its day."""
    return all(later.get(day) == build for day, build in builds.items())
