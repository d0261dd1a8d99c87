"""The read side of the column store: what runs where, how often and how fast.

Every statement is fixed text with bound parameters and names the account. Rows count once: FINAL leaves out repeated batches, and
distinct installs are counted, never rows. Days that are rolled up (`rollup.py`) are read from there: counts and installs stay exact,
percentiles stay within the bucket of the sketch. Statements keep to what ClickHouse 18.16 and chDB 26 both understand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any

from kit.clock import Clock
from kit.db import Database
from services.telemetry import store_rollups
from services.telemetry.columnstore import Tables
from services.telemetry.selection import (
    DAY_INTERVALS,
    FAILURE_PHASES,
    INTERVALS,
    PHASES,
    Selection,
    codes,
    interval_of,
)

Key = dict[str, str | int | None]

_PHASE_NAMES = {number: name for name, number in PHASES.items()}
_FAILURE_NAMES = {number: name for name, number in FAILURE_PHASES.items()}
_COUNTS = "sum(times) AS runs, uniqExactIf(install, is_install = 1) AS installs"
#: What `latency` gives for each group. Exact, so that small fleets see their own numbers; weights are the counts of sketch buckets.
_LATENCY = (
    f"{_COUNTS}, sum(total) / sum(times) AS mean_us, max(most) AS max_us,"
    " quantilesExactWeightedIf(0.5, 0.9, 0.95, 0.99)(value, times, times > 0) AS quantiles_us"
)
#: So often a question is put again because a roll-up was replaced under it; then the samples answer.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of an answer, as `items` of the API. `truncated`: there were more than the limit."""

    items: Sequence[Mapping[str, Any]]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Inferences(Rows):
    """`dropped_samples`: measurements that devices had to give up; the true number is at most that much higher."""

    dropped_samples: int


@dataclass(frozen=True, slots=True)
class Comparison(Rows):
    """Two versions side by side; `sides` holds what belongs to a version as a whole."""

    sides: Sequence[Mapping[str, Any]]


class Analytics:
    """Answers about one account; a `Selection` says which, and when."""

    def __init__(self, tables: Tables, database: Database, clock: Clock) -> None:
        self._tables = tables
        self._database = database
        self._clock = clock
        #: Builds of roll-ups that were seen to have all their rows.
        self._whole: set[int] = set()

    async def active_installs(self, selection: Selection, *, interval: str = "day") -> Rows:
        """Return distinct installs that were active, per day or calendar month. Without grouping every day has a row, also with 0."""
        start = interval_of(interval, DAY_INTERVALS)
        where, params = selection.days()
        rows = await self._select(
            f"{start} AS start, {selection.dimensions}uniqExact(install) AS installs FROM activity WHERE {where}"
            f" GROUP BY {selection.dimensions}start ORDER BY start, installs DESC",
            params,
            selection,
        )
        items: Sequence[Mapping[str, Any]] = [
            {"start": row["start"], **selection.key(row), "active_installs": row["installs"]} for row in rows.items
        ]
        if not selection.group_by and interval == "day":
            items = _every_day(items, selection, self._clock.now())
        return Rows(items[: selection.limit], rows.truncated or len(items) > selection.limit)

    async def inferences(self, selection: Selection, *, interval: str | None = None) -> Inferences:
        """Return the number of runs (first and steady), largest group first, or over time with an interval."""
        start = f"{interval_of(interval, INTERVALS)} AS start, " if interval else ""
        by = selection.dimensions + ("start" if interval else "")
        rows = await self._over_samples(
            f"{start}{selection.dimensions}{_COUNTS}",
            f"{_group(by)} ORDER BY {'start, ' if interval else ''}runs DESC",
            selection,
            condition=" AND phase IN (2, 3)",
            hourly=interval == "hour",
        )
        items = [
            {**({"start": row["start"]} if interval else {}), **selection.key(row), "inferences": row["runs"], "installs": row["installs"]}
            for row in rows.items
            if row["runs"] or not by
        ]
        return Inferences(items, rows.truncated, await self._dropped(selection))

    async def latency(self, selection: Selection, *, phases: Sequence[str] = ()) -> Rows:
        """Return count, mean and percentiles in milliseconds, per group and phase, largest first."""
        rows = await self._over_samples(
            f"{selection.dimensions}phase, {_LATENCY}",
            f" GROUP BY {selection.dimensions}phase ORDER BY runs DESC",
            selection,
            condition=" AND has({phases:Array(UInt8)}, phase)",
            params={"phases": codes(phases, PHASES, "phase")},
        )
        items = [{**selection.key(row), "phase": _PHASE_NAMES[row["phase"]], **_figures(row)} for row in rows.items]
        return Rows(items, rows.truncated)

    async def adoption(self, selection: Selection, *, interval: str = "day") -> Rows:
        """Return the installs that ran each version over time, and their share of all that ran the model then.

        An install that changes its version within the interval counts for both.
        """
        start = interval_of(interval, DAY_INTERVALS)
        where, params = selection.days()
        more = "".join(f"{name}, " for name in selection.group_by if name not in {"model", "version"})
        source = f"uniqExact(install) AS installs FROM activity WHERE {where} AND model != ''"
        rows = await self._select(
            f"{start} AS start, model, version, {more}{source} GROUP BY start, {more}model, version"
            " ORDER BY start, model, version, installs DESC",
            params,
            selection,
        )
        # The whole is asked for separately: one install may have run two versions that day. A filter on versions does not shrink it.
        whole = Selection(
            selection.account,
            selection.since,
            selection.until,
            {name: values for name, values in selection.where.items() if name != "version"},
            selection.group_by,
            selection.limit,
        )
        where, params = whole.days()
        totals = await self._select(
            f"{start} AS start, model, {more}uniqExact(install) AS installs FROM activity WHERE {where} AND model != ''"
            f" GROUP BY start, {more}model ORDER BY start",
            params,
            selection,
        )
        names = [name for name in selection.group_by if name not in {"model", "version"}]
        total = {(row["start"], row["model"], *(row[name] for name in names)): row["installs"] for row in totals.items}
        items = []
        for row in rows.items:
            all_installs = total.get((row["start"], row["model"], *(row[name] for name in names)))
            share = round(row["installs"] / all_installs, 6) if all_installs else None
            key = {"model": row["model"], "version": row["version"], **{name: row[name] or None for name in names}}
            items.append({"start": row["start"], **key, "installs": row["installs"], "share": share})
        return Rows(items, rows.truncated)

    async def failures(self, selection: Selection, *, phases: Sequence[str] = (), code: Sequence[str] = ()) -> Rows:
        """Return failures by phase and code, most frequent first, with the last one's words."""
        where, params = selection.rows()
        params["phases"] = codes(phases, FAILURE_PHASES, "phase")
        if code:
            where += " AND has({codes:Array(String)}, code)"
            params["codes"] = list(code)
        rows = await self._select(
            f"{selection.dimensions}phase, code, sum(count) AS failures, uniqExact(install) AS installs, max(at) AS last_at,"
            f" argMax(detail, at) AS last_detail FROM failures FINAL WHERE {where} AND has({{phases:Array(UInt8)}}, phase)"
            f" GROUP BY {selection.dimensions}phase, code ORDER BY failures DESC",
            params,
            selection,
        )
        items = [
            {
                **selection.key(row),
                "phase": _FAILURE_NAMES[row["phase"]],
                "code": row["code"],
                "count": row["failures"],
                "installs": row["installs"],
                "last_at": row["last_at"],
                "last_detail": row["last_detail"],
            }
            for row in rows.items
        ]
        return Rows(items, rows.truncated)

    async def compare(self, selection: Selection, *, model: str, baseline: int, candidate: int) -> Comparison:
        """Return two versions of a model side by side, per group and phase. A ratio is candidate ÷ baseline: below 1 is faster."""
        versions = (baseline, candidate)
        both = Selection(
            selection.account,
            selection.since,
            selection.until,
            {**selection.where, "model": (model,), "version": versions},
            tuple(name for name in selection.group_by if name not in {"model", "version"}),
            selection.limit,
        )
        by_version = Selection(both.account, both.since, both.until, both.where, (*both.group_by, "version"), min(2 * both.limit, 10_000))
        rows = await self._over_samples(
            f"{by_version.dimensions}phase, {_LATENCY}", f" GROUP BY {by_version.dimensions}phase ORDER BY runs DESC", by_version
        )
        pairs: dict[tuple[Any, ...], dict[int, Mapping[str, Any]]] = {}
        for row in rows.items:
            key = (*(row[name] for name in both.group_by), row["phase"])
            pairs.setdefault(key, {})[row["version"]] = _figures(row)
        items = []
        for (*values, phase), found in pairs.items():
            left, right = found.get(baseline), found.get(candidate)
            group: Key = {name: value or None for name, value in zip(both.group_by, values, strict=True)}
            ratio = _ratio(left, right)
            items.append({**group, "phase": _PHASE_NAMES[phase], "baseline": left, "candidate": right, "ratio": ratio})
        sides = [await self._side(both, version) for version in versions]
        return Comparison(items[: both.limit], rows.truncated or len(items) > both.limit, sides)

    async def _side(self, both: Selection, version: int) -> Mapping[str, Any]:
        one = Selection(both.account, both.since, both.until, {**both.where, "version": (version,)})
        runs = (await self.inferences(one)).items[0]
        failures = sum(row["count"] for row in (await self.failures(one)).items)
        attempts = runs["inferences"] + failures
        return {
            "version": version,
            "inferences": runs["inferences"],
            "installs": runs["installs"],
            "failures": failures,
            "failure_rate": round(failures / attempts, 6) if attempts else None,
        }

    async def _dropped(self, selection: Selection) -> int:
        where, params = selection.without_package().rows()
        sql = f"SELECT sum(count) AS dropped FROM failures FINAL WHERE {where} AND phase = 0"  # noqa: S608 - fixed pieces, bound values
        rows = await self._tables.query(sql, params)
        return int(rows[0]["dropped"] or 0)

    async def _over_samples(
        self,
        columns: str,
        tail: str,
        selection: Selection,
        *,
        condition: str = "",
        params: Mapping[str, Any] = MappingProxyType({}),
        hourly: bool = False,
    ) -> Rows:
        """Run a question about samples, over roll-ups where there are some and the hour of a sample does not matter."""
        for left in reversed(range(_TRIES)):
            builds = await self._builds(selection) if left and not hourly else {}
            source, own = selection.samples(builds, condition)
            rows = await self._select(f"{columns} FROM {source}{tail}", {**own, **params}, selection)
            # A roll-up that was replaced meanwhile may have been deleted under the question.
            if not builds or store_rollups.same(builds, await self._builds(selection)):
                break
        return rows

    async def _builds(self, selection: Selection) -> dict[date, int]:
        first, last = selection.whole_days()
        if first > last:
            return {}
        async with self._database.read() as reader:
            builds = await store_rollups.builds_of(reader, first, last)
            expected = {} if self._whole.issuperset(builds.values()) else await store_rollups.built_rows(reader)
        if expected:
            # Once per process: a store that lost power, or came from a backup of another moment, may lack what SQL knows of.
            there = await self._tables.build_rows()
            self._whole |= {build for build, rows in expected.items() if there[build] == rows}
        return {day: build for day, build in builds.items() if build in self._whole}

    async def _select(self, text: str, params: dict[str, Any], selection: Selection) -> Rows:
        """Run `SELECT …` with one row more than the limit, which tells whether there are more. Ties come in the order of the groups."""
        order = "".join(f", {name}" for name in selection.group_by)
        params["rows"] = selection.limit + 1
        rows = await self._tables.query(f"SELECT {text}{order} LIMIT {{rows:UInt32}}", params)
        return Rows(rows[: selection.limit], len(rows) > selection.limit)


def _group(by: str) -> str:
    return f" GROUP BY {by.removesuffix(', ')}" if by else ""


def _figures(row: Mapping[str, Any]) -> dict[str, int | float]:
    p50, p90, p95, p99 = (_ms(value) for value in row["quantiles_us"])
    return {
        "count": row["runs"],
        "installs": row["installs"],
        "mean_ms": _ms(row["mean_us"]),
        "p50_ms": p50,
        "p90_ms": p90,
        "p95_ms": p95,
        "p99_ms": p99,
        "max_ms": _ms(row["max_us"]),
    }


def _ms(microseconds: float) -> float:
    return round(microseconds / 1000, 6)


def _ratio(left: Mapping[str, Any] | None, right: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    if left is None or right is None:
        return None
    names = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")
    return {name.removesuffix("_ms"): round(right[name] / left[name], 4) if left[name] else None for name in names}


def _every_day(items: Sequence[Mapping[str, Any]], selection: Selection, now: datetime) -> list[Mapping[str, Any]]:
    """Fill the days on which nobody came, up to today or the last day with somebody."""
    found = {item["start"]: item for item in items}
    first = selection.since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    last = max([min(selection.until - timedelta(microseconds=1), now), *found])
    filled: list[Mapping[str, Any]] = []
    day: datetime = first
    while day <= last:
        filled.append(found.get(day, {"start": day, "active_installs": 0}))
        day += timedelta(days=1)
    return filled
