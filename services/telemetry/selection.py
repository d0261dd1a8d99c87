"""What an analytics query is about: account, time, filters, grouping. Turned into fixed SQL pieces with bound parameters.

Pure. Names of columns come from a closed list, values only as parameters; every piece names the account.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from services.telemetry.errors import QueryInvalid
from services.telemetry.rows import CONTEXT

#: Dimensions that say what ran; a row without a model (a device that only came by) has none of them.
PACKAGE_DIMENSIONS = frozenset({"collection", "model", "version", "variant", "engine"})
PHASES: Mapping[str, int] = {"load": 1, "first": 2, "steady": 3}
FAILURE_PHASES: Mapping[str, int] = {"resolve": 1, "download": 2, "verify": 3, "load": 4, "run": 5}
INTERVALS: Mapping[str, str] = {"hour": "toStartOfHour(at)", "day": "toStartOfDay(at)", "month": "toDateTime(toStartOfMonth(at), 'UTC')"}
#: The same over whole days.
DAY_INTERVALS: Mapping[str, str] = {"day": "toDateTime(day, 'UTC')", "month": "toDateTime(toStartOfMonth(day), 'UTC')"}
MAX_DAYS = 800
MAX_ROWS = 10_000
MAX_FILTER_VALUES = 100
#: Two copies of one batch can lie this far apart when the device's clock was not believed (decode.py: 30 days, or one in the future).
#: Both are read, so that one of them is left out.
COPIES = timedelta(days=31)
_EARLIEST = datetime(1970, 2, 2, tzinfo=UTC)
_LATEST = datetime(2105, 1, 1, tzinfo=UTC)

Values = tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """What to look at. `since` is included, `until` is not; `where` holds, per dimension, values of which any will do."""

    account: str
    since: datetime
    until: datetime
    where: Mapping[str, Values] = field(default_factory=dict)
    group_by: tuple[str, ...] = ()
    limit: int = 1000

    def __post_init__(self) -> None:
        for name in (*self.where, *self.group_by):
            if name not in CONTEXT:
                raise _invalid("group_by", f"unknown dimension {name!r}; there are {', '.join(CONTEXT)}")
        for name, values in self.where.items():
            if not 1 <= len(values) <= MAX_FILTER_VALUES:
                raise _invalid(name, f"1 to {MAX_FILTER_VALUES} values")
            if CONTEXT[name] is int and not all(isinstance(value, int) and 0 <= value < 1 << 32 for value in values):
                raise _invalid(name, "a number from 0 to 4294967295")
        if len(set(self.group_by)) != len(self.group_by):
            raise _invalid("group_by", "a dimension is named twice")
        if not 1 <= self.limit <= MAX_ROWS:
            raise _invalid("limit", f"between 1 and {MAX_ROWS}")
        if not _EARLIEST <= self.since < self.until <= _LATEST:
            raise _invalid("since", "since must lie before until, both between 1970 and 2105")
        if self.until - self.since > timedelta(days=MAX_DAYS):
            raise _invalid("since", f"at most {MAX_DAYS} days")

    @property
    def dimensions(self) -> str:
        """The grouping as the start of a column list: `soc, version, ` or nothing."""
        return "".join(f"{name}, " for name in self.group_by)

    def rows(self) -> tuple[str, dict[str, Any]]:
        """Return the condition on tables with single moments (`at`), and its parameters.

        `day` bounds what is read and lets the copies of one row meet, `at` decides what counts; the engine applies it after FINAL.
        """
        sql, params = self._filters()
        params |= {
            "first_day": (self.since - COPIES).date(),
            "last_day": (self.until + COPIES).date(),
            "since": self.since.replace(microsecond=0),
            "until": _second(self.until),
        }
        return (
            "account = {account:String} AND day >= {first_day:Date} AND day <= {last_day:Date}"
            f" AND at >= {{since:DateTime('UTC')}} AND at < {{until:DateTime('UTC')}}{sql}"
        ), params

    def whole_days(self) -> tuple[date, date]:
        """Return the first and the last day (UTC) that lie in the time asked for from beginning to end; first > last: there is none."""
        first, last = self.since.astimezone(UTC), self.until.astimezone(UTC)
        begins_within = first.time() != time.min
        return first.date() + timedelta(days=begins_within), last.date() - timedelta(days=1)

    def samples(self, builds: Mapping[date, int], condition: str) -> tuple[str, dict[str, Any]]:
        """Return a table expression of the samples, and its parameters: days of `builds` (whole days of ours) from their roll-ups.

        Its columns: the grouping, `at`, `phase`, `value` (µs), how often (`times`), `total` and `most` (µs), and `install` where
        `is_install` is 1. `condition` narrows both; an exact time within a rolled-up day is not known, only the day.
        """
        sql, params = self._filters()
        last = self.until - timedelta(microseconds=1)
        open_days = [day for day in _days(self.since.date(), last.date()) if day not in builds] if builds else []
        parts = []
        if open_days or not builds:
            where, params = self.rows()
            if builds:
                params |= {
                    "rolled_days": list(builds),
                    "first_day": max(params["first_day"], open_days[0] - COPIES),
                    "last_day": min(params["last_day"], open_days[-1] + COPIES),
                }
                where += " AND NOT has({rolled_days:Array(Date)}, toDate(at))"
            parts.append(
                f"SELECT {self.dimensions}at, phase, install, value_us AS value, toUInt64(weight) AS times,"  # noqa: S608 - fixed pieces
                f" toFloat64(value_us) * weight AS total, value_us AS most, toUInt8(1) AS is_install FROM samples FINAL"
                f" WHERE {where}{condition}"
            )
        if builds:
            params |= {"builds": list(builds.values()), "lowest": min(builds.values()), "highest": max(builds.values())}
            where = (
                "account = {account:String} AND build >= {lowest:UInt32} AND build <= {highest:UInt32}"
                f" AND has({{builds:Array(UInt32)}}, build){sql}{condition}"
            )
            head = f"SELECT {self.dimensions}toDateTime(day, 'UTC') AS at, phase"
            parts += [
                f"{head}, toUInt64(0) AS install, value_us AS value, weight AS times, sum_us AS total, max_us AS most,"
                f" toUInt8(0) AS is_install FROM rolled_samples WHERE {where}",
                f"{head}, install, toFloat32(0) AS value, toUInt64(0) AS times, toFloat64(0) AS total, toFloat32(0) AS most,"
                f" toUInt8(1) AS is_install FROM rolled_installs WHERE {where}",
            ]
        return f"({' UNION ALL '.join(parts)})", params

    def days(self) -> tuple[str, dict[str, Any]]:
        """Return the condition on the table of days, and its parameters. Days count when they overlap the time asked for."""
        sql, params = self._filters()
        params |= {"first_day": self.since.date(), "last_day": (self.until - timedelta(microseconds=1)).date()}
        if PACKAGE_DIMENSIONS.intersection(self.group_by):
            sql += " AND model != ''"
        return f"account = {{account:String}} AND day >= {{first_day:Date}} AND day <= {{last_day:Date}}{sql}", params

    def _filters(self) -> tuple[str, dict[str, Any]]:
        sql, params = "", dict[str, Any](account=self.account)
        for name, values in self.where.items():
            kind = "UInt32" if CONTEXT[name] is int else "String"
            sql += f" AND has({{only_{name}:Array({kind})}}, {name})"
            params[f"only_{name}"] = list(values)
        return sql, params

    def without_package(self) -> Selection:
        """Return the selection without filters on what ran."""
        where = {name: values for name, values in self.where.items() if name not in PACKAGE_DIMENSIONS}
        return Selection(self.account, self.since, self.until, where, self.group_by, self.limit)

    def key(self, row: Mapping[str, Any]) -> dict[str, str | int | None]:
        """Return the dimensions of a row; what nobody knows (empty, 0) is None."""
        return {name: row[name] or None for name in self.group_by}


def _days(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += timedelta(days=1)


def codes(names: Sequence[str], known: Mapping[str, int], parameter: str) -> list[int]:
    """Return the numbers of phases by their names; all of them without names. Raises `QueryInvalid`."""
    for name in names:
        if name not in known:
            raise _invalid(parameter, f"one of {', '.join(known)}")
    return [known[name] for name in names] or list(known.values())


def interval_of(name: str, known: Mapping[str, str]) -> str:
    """Return the SQL of an interval. Raises `QueryInvalid`."""
    if name not in known:
        raise _invalid("interval", f"one of {', '.join(known)}")
    return known[name]


def _invalid(where: str, detail: str) -> QueryInvalid:
    return QueryInvalid(f"{where}: {detail}", errors=[{"field": where, "code": "INVALID", "detail": detail}])


def _second(moment: datetime) -> datetime:
    """Return the next whole second: times are stored in seconds, so `at < until` keeps what happened within the last one."""
    return moment if not moment.microsecond else moment.replace(microsecond=0) + timedelta(seconds=1)
