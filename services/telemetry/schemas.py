"""Queries and answers of the analytics API. Times in UTC, durations in milliseconds."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AwareDatetime, Field

from kit.web import Model
from services.telemetry.rows import CONTEXT
from services.telemetry.selection import Selection, Values

_DEFAULT_DAYS = 7
_DEFAULT_ACTIVE_DAYS = 30
#: Clocks of devices may be ahead by a day, and what they send counts from the start.
_AHEAD = timedelta(days=1)

Since = Annotated[AwareDatetime | None, Field(description="Included, RFC 3339 with zone. Default: 7 days ago; 30 for installs.")]
Until = Annotated[AwareDatetime | None, Field(description="Excluded. Default: everything that is there.")]
Texts = Annotated[list[str], Field(default_factory=list)]
Numbers = Annotated[list[int], Field(default_factory=list)]
GroupBy = Annotated[list[str], Field(default_factory=list, description=f"Any of {', '.join(CONTEXT)}; repeated, or separated by commas.")]
Limit = Annotated[int, Field(description="Rows of the answer at most, 1 to 10,000.")]
Phases = Annotated[list[str], Field(default_factory=list, description="load, first, steady; default all.")]
FailurePhases = Annotated[list[str], Field(default_factory=list, description="resolve, download, verify, load, run; default all.")]


class DeviceFilters(Model):
    """Filters on the device. A parameter may be repeated: any of its values will do. An empty value (or 0) means: not known."""

    since: Since = None
    until: Until = None
    group_by: GroupBy
    limit: Limit = 1000
    device_model: Texts
    soc: Texts
    abi: Texts
    os: Texts
    os_version: Texts
    api_level: Numbers
    country: Texts
    app_id: Texts
    app_version: Texts
    sdk_version: Texts
    collection: Texts
    variant: Texts
    engine: Texts

    def selection(self, account: str, now: datetime, *, days: int = _DEFAULT_DAYS) -> Selection:
        """Return what is asked for. Raises `QueryInvalid`."""
        given = {name: getattr(self, name) for name in CONTEXT if hasattr(self, name)}
        where: dict[str, Values] = {name: tuple(values) for name, values in given.items() if isinstance(values, list) and values}
        group_by = tuple(name.strip() for text in self.group_by for name in text.split(",") if name.strip())
        until = self.until or now + _AHEAD
        return Selection(account, self.since or min(now, until) - timedelta(days=days), until, where, group_by, self.limit)


class Filters(DeviceFilters):
    """Filters on device and package."""

    model: Texts
    version: Numbers


class ActiveInstallsQuery(Filters):
    """Query of active installs."""

    interval: str = "day"

    def selection(self, account: str, now: datetime, *, days: int = _DEFAULT_ACTIVE_DAYS) -> Selection:
        """Return what is asked for; the default looks back further."""
        return super().selection(account, now, days=days)


class InferencesQuery(Filters):
    """Query of inferences."""

    interval: str | None = None


class LatencyQuery(Filters):
    """Query of latency."""

    phase: Phases


class AdoptionQuery(ActiveInstallsQuery):
    """Query of adoption."""


class FailuresQuery(Filters):
    """Query of failures."""

    phase: FailurePhases
    code: Texts


class CompareQuery(DeviceFilters):
    """Query of a comparison: `version` is the baseline, `to` the candidate."""

    model: str
    version: int
    to: int


class Dimensions(Model):
    """The group of a row: exactly the dimensions asked for, null where nobody knows."""

    collection: str | None = None
    model: str | None = None
    version: int | None = None
    variant: str | None = None
    engine: str | None = None
    device_model: str | None = None
    soc: str | None = None
    abi: str | None = None
    os: str | None = None
    os_version: str | None = None
    api_level: int | None = None
    country: str | None = None
    app_id: str | None = None
    app_version: str | None = None
    sdk_version: str | None = None


class ActiveInstallsRow(Dimensions):
    """Distinct installs of one day or month, which begins at `start`."""

    start: datetime
    active_installs: int


class InferencesRow(Dimensions):
    """Runs, first and steady."""

    start: datetime | None = None
    inferences: int
    installs: int


class Figures(Model):
    """Count and times of one group in one phase."""

    count: int
    installs: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyRow(Dimensions, Figures):
    """How fast one group ran in one phase."""

    phase: str


class AdoptionRow(Dimensions):
    """Installs that ran a version in an interval; `share` of all that ran the model then."""

    start: datetime
    installs: int
    share: float | None


class FailuresRow(Dimensions):
    """Failures of one kind."""

    phase: str
    code: str
    count: int
    installs: int
    last_at: datetime
    last_detail: str


class Ratio(Model):
    """Candidate ÷ baseline; below 1 the candidate is faster. Null where the baseline is 0."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class CompareRow(Dimensions):
    """One group and phase of both versions; null for a version that did not run there."""

    phase: str
    baseline: Figures | None
    candidate: Figures | None
    ratio: Ratio | None


class Side(Model):
    """One version as a whole. `failure_rate`: failures ÷ (failures + inferences)."""

    version: int
    inferences: int
    installs: int
    failures: int
    failure_rate: float | None


class Answer(Model):
    """What every answer says: the time it is about, and how fresh it is.

    `pending_batches` were accepted and are not counted yet; `as_of` is now when there are none, else when the newest counted one came.
    """

    since: datetime
    until: datetime
    as_of: datetime
    pending_batches: int
    truncated: bool


class ActiveInstallsAnswer(Answer):
    """Active installs, in order of time."""

    items: list[ActiveInstallsRow]


class InferencesAnswer(Answer):
    """Inferences. `dropped_samples`: measurements that devices gave up because their buffer was full."""

    items: list[InferencesRow]
    dropped_samples: int


class LatencyAnswer(Answer):
    """Latency, largest group first."""

    items: list[LatencyRow]


class AdoptionAnswer(Answer):
    """Adoption, in order of time."""

    items: list[AdoptionRow]


class FailuresAnswer(Answer):
    """Failures, most frequent first."""

    items: list[FailuresRow]


class CompareAnswer(Answer):
    """Two versions side by side."""

    model: str
    baseline: Side
    candidate: Side
    items: list[CompareRow]
