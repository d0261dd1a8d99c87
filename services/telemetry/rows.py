"""Opened batches -> columns of the three tables. Every sample and every sketch bucket becomes one weighted row.

Pure. Values are checked here, whole columns at a time; a batch with a wrong one is named in `BadBatches`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kit.olap import Coded
from services.telemetry.errors import Rejected
from services.telemetry.packed import Ints, NotPacked, any_in_segment, positions, running_sums, unpack, zigzag

#: Growth of the sketch's buckets (proto/latebind/v1/telemetry.proto).
GAMMA = 1.02
#: Buckets from below a nanosecond to above an hour; outside of it nobody measured anything.
BUCKETS = (-700, 1400)
MAX_LATENCY_US = (1 << 32) - 1
_DAY_MS = 86_400_000

#: What a row is grouped and filtered by, in the order of `Context`: name of the column -> type of its values.
CONTEXT: Mapping[str, type] = {
    "collection": str,
    "model": str,
    "version": int,
    "variant": str,
    "engine": str,
    "device_model": str,
    "soc": str,
    "abi": str,
    "os": str,
    "os_version": str,
    "api_level": int,
    "country": str,
    "app_id": str,
    "app_version": str,
    "sdk_version": str,
}
Context = tuple[str | int, ...]


Table = dict[str, Any]


class Run(NamedTuple):
    """One series as it came: `at` and `latency` are packed columns (a sketch: buckets and counts). Times in Unix ms."""

    context: int
    number: int
    phase: int
    base_ms: int
    is_sketch: bool
    at: bytes
    latency: bytes


class Fault(NamedTuple):
    """One failure. `phase` 0 is no failure but samples that the device had to drop, `times` of them."""

    context: int
    number: int
    phase: int
    code: str
    detail: str
    at_ms: int
    times: int


class Opened(NamedTuple):
    """A batch whose message was read. Its times are right already (`earliest_ms` … `latest_ms` is where a sample may lie)."""

    position: int
    account: str
    install: int
    batch_hi: int
    batch_lo: int
    supersede: int
    created_ms: int
    earliest_ms: int
    latest_ms: int
    context: int
    runs: Sequence[Run]
    faults: Sequence[Fault]


class BadBatches(Exception):
    """Some batches hold values that cannot be: place in the sequence -> why. The others are good as far as is known."""

    def __init__(self, reasons: Mapping[int, Rejected]) -> None:
        super().__init__(f"{len(reasons)} bad batches")
        self.reasons = reasons


@dataclass(slots=True)
class Contexts:
    """Distinct contexts, numbered in the order of their first use."""

    numbers: dict[Context, int] = field(default_factory=dict)

    def number(self, context: Context) -> int:
        """Return the number of a context."""
        return self.numbers.setdefault(context, len(self.numbers))

    def columns(self, codes: NDArray[np.int32]) -> Table:
        """Return the columns of `CONTEXT` for rows whose contexts are `codes`."""
        table: Table = {}
        columns = list(zip(*self.numbers, strict=True)) or [()] * len(CONTEXT)
        for (name, kind), values in zip(CONTEXT.items(), columns, strict=True):
            if kind is int:
                table[name] = np.asarray(values, dtype=np.uint32)[codes]
            else:
                table[name] = Coded(values, codes)
        return table


@dataclass(slots=True)
class _Rows:
    """Rows of some series: `of` is the series each row belongs to."""

    of: Ints
    index: Ints
    at_ms: Ints
    value_us: NDArray[np.float32]
    weight: Ints


def _bad(series: Iterable[int], batch_of: Ints, reason: str, detail: str) -> BadBatches:
    return BadBatches({int(batch_of[one]): Rejected(reason, detail) for one in series})


def _unpack_pairs(runs: Sequence[Run], numbers: Ints, batch_of: Ints) -> tuple[Ints, Ints, Ints]:
    """Return both columns of the series `numbers`, and the length of each. Raises `BadBatches`."""
    first = [runs[number].at for number in numbers]
    second = [runs[number].latency for number in numbers]
    try:
        left, right = unpack(first), unpack(second)
    except NotPacked as error:
        raise _bad(numbers[error.columns], batch_of, "MALFORMED", "a column is not packed 32-bit varints") from error
    unequal = np.flatnonzero(left.counts != right.counts)
    if len(unequal):
        raise _bad(numbers[unequal], batch_of, "COLUMNS", "the two columns of a series differ in length")
    return left.values, right.values, left.counts


def _sample_rows(runs: Sequence[Run], numbers: Ints, batch_of: Ints, base_ms: Ints) -> _Rows:
    at, latency, counts = _unpack_pairs(runs, numbers, batch_of)
    value = running_sums(zigzag(latency), counts)
    wrong = any_in_segment((value < 0) | (value > MAX_LATENCY_US), counts)
    if wrong.any():
        raise _bad(numbers[wrong], batch_of, "LATENCY", "a latency is below 0 or above 71 minutes")
    of = np.repeat(numbers, counts)
    at_ms = base_ms[of] + running_sums(zigzag(at), counts)
    return _Rows(of, positions(counts), at_ms, value.astype(np.float32), np.ones(len(of), np.int64))


def _sketch_rows(runs: Sequence[Run], numbers: Ints, batch_of: Ints, base_ms: Ints) -> _Rows:
    deltas, weight, counts = _unpack_pairs(runs, numbers, batch_of)
    steps = zigzag(deltas)
    bucket = running_sums(steps, counts)
    index = positions(counts)
    wrong = any_in_segment(((steps <= 0) & (index > 0)) | (bucket < BUCKETS[0]) | (bucket > BUCKETS[1]), counts)
    if wrong.any():
        raise _bad(numbers[wrong], batch_of, "SKETCH", "buckets do not ascend, or lie where no latency can be")
    of = np.repeat(numbers, counts)
    # The value whose relative error is smallest over the bucket (DDSketch, section 2.1).
    value = (2.0 / (GAMMA + 1.0) * GAMMA ** bucket.astype(np.float64)).astype(np.float32)
    some = weight > 0
    return _Rows(of[some], index[some], base_ms[of[some]], value[some], weight[some])


def build(batches: Sequence[Opened], contexts: Contexts) -> tuple[Table, Table, Table]:
    """Return the tables samples, failures and activity. Raises `BadBatches` when some must be left out first."""
    common = _Common(batches)
    runs = [run for batch in batches for run in batch.runs]
    batch_of = np.repeat(np.arange(len(batches), dtype=np.int64), [len(batch.runs) for batch in batches])
    base_ms = np.fromiter((run.base_ms for run in runs), np.int64, len(runs))
    is_sketch = np.fromiter((run.is_sketch for run in runs), np.bool_, len(runs))
    samples = _sample_rows(runs, np.flatnonzero(~is_sketch), batch_of, base_ms)
    if is_sketch.any():
        sketched = _sketch_rows(runs, np.flatnonzero(is_sketch), batch_of, base_ms)
        pairs = ((getattr(samples, name), getattr(sketched, name)) for name in _Rows.__slots__)
        samples = _Rows(*(np.concatenate(pair) for pair in pairs))
    codes = np.fromiter((run.context for run in runs), np.int32, len(runs))
    batch = batch_of[samples.of]
    at_ms = common.within(samples.at_ms, batch)
    table = common.keys(batch) | {
        "series": np.fromiter((run.number for run in runs), np.uint16, len(runs))[samples.of],
        "idx": samples.index.astype(np.uint32),
        **_moment(at_ms),
        "phase": np.fromiter((run.phase for run in runs), np.uint8, len(runs))[samples.of],
        "value_us": samples.value_us,
        "weight": samples.weight.astype(np.uint32),
        **contexts.columns(codes[samples.of]),
    }
    failures = _failures(batches, common, contexts)
    active = _activity(common, [(batch, codes[samples.of], at_ms), failures[1]], contexts)
    return table, failures[0], active


class _Common:
    """Per batch what all its rows share, as arrays."""

    def __init__(self, batches: Sequence[Opened]) -> None:
        def column(name: str, dtype: Any) -> NDArray[Any]:
            return np.fromiter((getattr(batch, name) for batch in batches), dtype, len(batches))

        accounts = {account: code for code, account in enumerate(dict.fromkeys(batch.account for batch in batches))}
        self._accounts = tuple(accounts)
        self._account = np.fromiter((accounts[batch.account] for batch in batches), np.int32, len(batches))
        self._numbers = {
            "install": column("install", np.uint64),
            "batch_hi": column("batch_hi", np.uint64),
            "batch_lo": column("batch_lo", np.uint64),
            "supersede": column("supersede", np.uint32),
        }
        self.created_ms = column("created_ms", np.int64)
        self._earliest_ms = column("earliest_ms", np.int64)
        self._latest_ms = column("latest_ms", np.int64)
        self.context = column("context", np.int32)

    def keys(self, batch: Ints) -> Table:
        """Return account, install, batch id and precedence of rows that belong to `batch`."""
        return {"account": Coded(self._accounts, self._account[batch])} | {name: values[batch] for name, values in self._numbers.items()}

    def within(self, at_ms: Ints, batch: Ints) -> Ints:
        """Return the times; one that cannot be right is taken to be the time its batch was made."""
        right = (at_ms >= self._earliest_ms[batch]) & (at_ms <= self._latest_ms[batch])
        return at_ms if right.all() else np.where(right, at_ms, self.created_ms[batch])


def _moment(at_ms: Ints) -> Table:
    at = (at_ms // 1000).astype("datetime64[s]")
    return {"day": (at_ms // _DAY_MS).astype("datetime64[D]"), "at": at}


def _failures(batches: Sequence[Opened], common: _Common, contexts: Contexts) -> tuple[Table, tuple[Ints, NDArray[np.int32], Ints]]:
    """Return the table, and batch, context and time of its rows."""
    faults = [fault for batch in batches for fault in batch.faults]
    batch = np.repeat(np.arange(len(batches), dtype=np.int64), [len(one.faults) for one in batches])
    at_ms = common.within(np.fromiter((fault.at_ms for fault in faults), np.int64, len(faults)), batch)
    codes = np.fromiter((fault.context for fault in faults), np.int32, len(faults))
    table = common.keys(batch) | {
        "idx": np.fromiter((fault.number for fault in faults), np.uint32, len(faults)),
        **_moment(at_ms),
        "phase": np.fromiter((fault.phase for fault in faults), np.uint8, len(faults)),
        "code": [fault.code for fault in faults],
        "detail": [fault.detail for fault in faults],
        "count": np.fromiter((fault.times for fault in faults), np.uint64, len(faults)),
        **contexts.columns(codes),
    }
    return table, (batch, codes, at_ms)


def _activity(common: _Common, sources: Sequence[tuple[Ints, NDArray[np.int32], Ints]], contexts: Contexts) -> Table:
    """Return (install, day, context) of all rows and of the batches themselves. Repeats are harmless: readers count distinct installs."""
    every = (np.arange(len(common.created_ms), dtype=np.int64), common.context, common.created_ms)
    batch, codes, at_ms = (np.concatenate(parts) for parts in zip(every, *sources, strict=True))
    day = at_ms // _DAY_MS
    changed = np.ones(len(batch), np.bool_)
    changed[1:] = (np.diff(batch) != 0) | (np.diff(codes) != 0) | (np.diff(day) != 0)
    batch, codes, day = batch[changed], codes[changed], day[changed]
    keys = common.keys(batch)
    return {"account": keys["account"], "day": day.astype("datetime64[D]"), "install": keys["install"], **contexts.columns(codes)}
