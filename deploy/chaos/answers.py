"""What analytics must answer, worked out from the senders' own batches, against what they do answer, by every dimension there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deploy.chaos.batches import DIMENSIONS, FIRST, LOAD, PACKAGE_FIELDS, STEADY, Batch, Values

#: Asks the public API: path and parameters -> the answer's JSON.
Ask = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
_PHASES = {LOAD: "load", FIRST: "first", STEADY: "steady"}
_FAILURE_PHASES = {1: "resolve", 2: "download", 3: "verify", 4: "load", 5: "run"}
_LIMIT = 10_000
Key = tuple[Any, ...]


@dataclass(slots=True)
class _Sum:
    """What one row of an answer adds up."""

    count: int = 0
    installs: set[int] = field(default_factory=set)
    largest: float = 0.0

    def add(self, count: int, install: int, largest: float = 0.0) -> None:
        self.count += count
        self.installs.add(install)
        self.largest = max(self.largest, largest)


def differences(batches: Sequence[Batch], ask: Ask) -> tuple[int, list[str]]:
    """Ask every question, by nothing and by each dimension. Returns how many questions that were, and what differs."""
    questions, wrong = 0, list[str]()
    for dimension in (None, *DIMENSIONS):
        by = {"group_by": dimension} if dimension else {}
        for name, question in (("inferences", _inferences), ("latency", _latency), ("failures", _failures), ("active-installs", _active)):
            questions += 1
            expected, found = question(batches, ask, by, dimension)
            wrong += _compared(f"{name} by {dimension or 'nothing'}", expected, found)
    questions += 1
    wrong += _compared("adoption", *_adoption(batches, ask))
    return questions, wrong


def _compared(name: str, expected: Mapping[Key, Any], found: Mapping[Key, Any]) -> list[str]:
    return [
        f"{name}, {key}: {found.get(key, 'no row')} instead of {expected.get(key, 'no row')}"
        for key in sorted({*expected, *found}, key=repr)
        if expected.get(key) != found.get(key)
    ]


def _items(ask: Ask, question: str, params: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    answer = ask(f"/v1/analytics/{question}", {"limit": _LIMIT, **params})
    if answer["truncated"] or answer["pending_batches"]:
        raise ValueError(f"{question}: the answer is not the whole one: {answer['pending_batches']} batches are not written yet")
    return list(answer["items"])


def _group(row: Mapping[str, Any], dimension: str | None) -> Any:
    return row[dimension] if dimension else None


def _value(package: Values | None, facts: Values, dimension: str | None) -> Any:
    """The value of a dimension as answers show it: null where nobody knows."""
    if dimension is None:
        return None
    source = package if dimension in PACKAGE_FIELDS else facts
    return (source or {}).get(dimension) or None


def _series(batches: Sequence[Batch], dimension: str | None) -> Iterator[tuple[Any, int, int, float, int]]:
    """Yield value of the dimension, phase, runs, largest value and install of every series."""
    for batch in batches:
        for one in batch.series:
            yield _value(one.package, batch.facts, dimension), one.phase, int(one.weights.sum()), float(one.values.max()), batch.device


def _inferences(batches: Sequence[Batch], ask: Ask, by: Mapping[str, str], dimension: str | None) -> tuple[Mapping[Key, Any], ...]:
    sums: dict[Key, _Sum] = defaultdict(_Sum)
    for value, phase, runs, _largest, install in _series(batches, dimension):
        if phase in {FIRST, STEADY}:
            sums[(value,)].add(runs, install)
    expected = {key: (one.count, len(one.installs)) for key, one in sums.items()}
    rows = _items(ask, "inferences", by)
    return expected, {(_group(row, dimension),): (row["inferences"], row["installs"]) for row in rows}


def _latency(batches: Sequence[Batch], ask: Ask, by: Mapping[str, str], dimension: str | None) -> tuple[Mapping[Key, Any], ...]:
    sums: dict[Key, _Sum] = defaultdict(_Sum)
    for value, phase, runs, largest, install in _series(batches, dimension):
        sums[value, _PHASES[phase]].add(runs, install, largest)
    expected = {key: (one.count, len(one.installs), round(one.largest / 1000, 3)) for key, one in sums.items()}
    rows = _items(ask, "latency", by)
    return expected, {(_group(row, dimension), row["phase"]): (row["count"], row["installs"], round(row["max_ms"], 3)) for row in rows}


def _failures(batches: Sequence[Batch], ask: Ask, by: Mapping[str, str], dimension: str | None) -> tuple[Mapping[Key, Any], ...]:
    sums: dict[Key, _Sum] = defaultdict(_Sum)
    for batch in batches:
        for one in batch.failures:
            sums[_value(one.package, batch.facts, dimension), _FAILURE_PHASES[one.phase], one.code].add(1, batch.device)
    expected = {key: (one.count, len(one.installs)) for key, one in sums.items()}
    rows = _items(ask, "failures", by)
    return expected, {(_group(row, dimension), row["phase"], row["code"]): (row["count"], row["installs"]) for row in rows}


def _active(batches: Sequence[Batch], ask: Ask, by: Mapping[str, str], dimension: str | None) -> tuple[Mapping[Key, Any], ...]:
    active: dict[Key, set[int]] = defaultdict(set)
    for batch in batches:
        # A batch is a sign of life by itself; what ran is known from its series and failures.
        packages = [one.package for one in batch.series] + [one.package for one in batch.failures if one.package is not None]
        for package in packages if dimension in PACKAGE_FIELDS else [None]:
            active[_day(batch), _value(package, batch.facts, dimension)].add(batch.device)
    expected = {key: len(installs) for key, installs in active.items()}
    rows = _items(ask, "active-installs", by)
    return expected, {(row["start"], _group(row, dimension)): row["active_installs"] for row in rows if row["active_installs"]}


def _adoption(batches: Sequence[Batch], ask: Ask) -> tuple[Mapping[Key, Any], Mapping[Key, Any]]:
    installs: dict[Key, set[int]] = defaultdict(set)
    for batch in batches:
        packages = [one.package for one in batch.series] + [one.package for one in batch.failures if one.package is not None]
        for package in packages:
            installs[_day(batch), package["model"], package["version"]].add(batch.device)
    expected = {key: len(some) for key, some in installs.items()}
    rows = _items(ask, "adoption", {})
    return expected, {(row["start"], row["model"], row["version"]): row["installs"] for row in rows}


def _day(batch: Batch) -> str:
    day = datetime.fromtimestamp(batch.created_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day.isoformat().replace("+00:00", "Z")
