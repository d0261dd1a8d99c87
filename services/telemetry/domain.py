"""Planned ranges: which records of a partition go into the column store together, so that a crash cannot cut them differently.

Pure. A range that was planned is written again exactly as it was, under the same token; only then does the next one begin.
`Patience` says when so much cannot be decoded that the writer has to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Plan:
    """A range of one partition, both ends included. `newest_at` is when its last record came."""

    topic: str
    partition: int
    first: int
    last: int
    newest_at: datetime
    done: bool = False

    @property
    def token(self) -> str:
        """The name under which the column store inserts the range once."""
        return f"{self.topic}:{self.partition}:{self.first}-{self.last}"


class Placed(Protocol):
    """What has a place in a partition."""

    @property
    def offset(self) -> int:
        """Its place."""
        ...


Item = TypeVar("Item", bound=Placed)


@dataclass(frozen=True, slots=True)
class Cut(Generic[Item]):
    """What the next insert takes, and what waits for the one after. `missing`: the planned range goes on behind what has been read."""

    now: Sequence[Item]
    later: Sequence[Item]
    missing: bool = False


def cut(items: Sequence[Item], plan: Plan | None) -> Cut[Item]:
    """Cut the records of one partition (in order, at least one) at the end of an unfinished plan.

    A plan that does not begin with the first record says nothing about these records: it was committed, or its records are gone.
    """
    if plan is None or plan.done or plan.first != items[0].offset:
        return Cut(items, ())
    now = [item for item in items if item.offset <= plan.last]
    later = items[len(now) :]
    return Cut(now, later, missing=not later and now[-1].offset < plan.last)


#: So many installs must take part before rejects in a row stop the writer: one broken device never can.
MIN_INSTALLS = 20


class TooManyRejects(Exception):
    """So much is undecodable that the fault is probably ours: nothing more is committed until someone has looked."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How many batches in a row were rejected, and from which installs; at most `most` (0: any number)."""

    most: int
    row: int = 0
    keys: frozenset[str] = frozenset()

    def after(self, keys: Sequence[str], rejects: Mapping[int, str]) -> Patience:
        """Return the state after some batches; `keys` says whose they are, `rejects` why some failed. Raises `TooManyRejects`."""
        row, seen = self.row, set(self.keys)
        for position, key in enumerate(keys):
            if position not in rejects:
                row = 0
                seen.clear()
                continue
            row += 1
            if len(seen) < MIN_INSTALLS:
                seen.add(key)
            if self.most and row >= self.most and len(seen) >= min(MIN_INSTALLS, self.most):
                raise TooManyRejects(f"{row} batches in a row could not be decoded; the last because of {rejects[position]}")
        return replace(self, row=row, keys=frozenset(seen))
