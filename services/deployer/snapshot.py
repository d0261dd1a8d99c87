"""What resolve reads: the published collections, compiled and bound, each swapped as a whole.

In memory only, and nothing here waits. Who loads and when is the business of `loader.py` and `freshness.py`. All processes switch to
a new state at the moment that is written in it (`starts`), and none goes on with a state that it knows to be over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import inf

from services.deployer.binding import Bound

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
#: A state that starts later than this from now was written by a machine whose clock is far ahead, or the clock here was set back:
#: it counts as started. `domain.LEAD` is far below.
FARTHEST_START = timedelta(seconds=2)


class Live:
    """One published collection as devices see it. `mark` says which state of the tables it was made from, `starts` since when it holds."""

    __slots__ = ("_before", "_since", "_successor_at", "_until", "bound", "digest", "mark", "record", "starts")

    def __init__(self, bound: Bound, mark: int, digest: str, starts: datetime = _EARLIEST, record: bytes = b"") -> None:
        self.bound = bound
        self.record = record  # what the file on disk gets
        self.mark = mark
        self.digest = digest
        self.starts = starts
        self._before: Live | None = None
        self._successor_at = _LATEST
        self._since, self._until = _LATEST, _EARLIEST

    def at(self, now: datetime) -> Bound | None:
        """Return the rules that are open at `now` (aware). Time windows open and close here, without any event.

        None: this state has not started yet and nothing is known of the one before, or a newer one that is not loaded yet has started.
        """
        if not self._since <= now < self._until:
            return self._turn(now)
        return self.bound

    def _turn(self, now: datetime) -> Bound | None:
        if now < self.starts < now + FARTHEST_START:
            return None if self._before is None else self._before.at(now)
        self._before = None
        if now >= self._successor_at:
            return None
        self.bound = bound = self.bound.at(now.timestamp())
        self._since = _EARLIEST if bound.since == -inf else datetime.fromtimestamp(bound.since, UTC)
        self._until = min(self._successor_at, _LATEST if bound.until == inf else datetime.fromtimestamp(bound.until, UTC))
        return bound

    def next_turn(self, now: datetime) -> datetime | None:
        """Return when the answer of `at` changes by itself, or None when nothing is known to be ahead."""
        if now < self.starts:
            return self.starts
        until = self._until
        return until if now < until < _LATEST else None

    def follow(self, before: Live) -> None:
        """Take the place of `before`, which goes on serving until this one starts."""
        self._before = before if before.mark < self.mark else before._before

    def succeeded(self, at: datetime) -> None:
        """Note that a newer state will hold from `at` on."""
        self._successor_at = min(self._successor_at, at)
        self._since, self._until = _LATEST, _EARLIEST


class Snapshot:
    """All published collections by (account, collection). `complete` once everything was loaded for the first time.

    `fresh_until` is the moment up to which no state can have started that this process has not heard of (`freshness.py`).
    """

    def __init__(self) -> None:
        self.complete = False
        self.fresh_until = _EARLIEST
        #: How often something changed: the file on disk compares.
        self.changes = 0
        self._live: dict[tuple[str, str], Live] = {}
        self._coming: dict[tuple[str, str], int] = {}

    def find(self, account: str, collection: str) -> Live | None:
        """Return a collection, or None."""
        return self._live.get((account, collection))

    def swap(self, account: str, collection: str, live: Live) -> None:
        """Put a newer state in; an older one (loaded before, finished later) is dropped."""
        key = (account, collection)
        before = self._live.get(key)
        if before is None or live.mark >= before.mark:
            if before is not None:
                live.follow(before)
            self._live[key] = live
            self.changes += 1
        coming = self._coming.get(key)
        if coming is not None and coming <= live.mark:
            del self._coming[key]

    def announce(self, account: str, collection: str, mark: int, starts: datetime) -> bool:
        """Note that a state exists which may not be loaded yet; returns whether it is not."""
        key = (account, collection)
        live = self._live.get(key)
        if live is not None and live.mark >= mark:
            return False
        if live is not None:
            live.succeeded(starts)
        self._coming[key] = max(mark, self._coming.get(key, -1))
        return True

    def keep_only(self, marks: Mapping[tuple[str, str], int]) -> None:
        """Drop what the tables do not have, or have in an older state: they were restored from a backup since it was loaded."""
        for key, live in list(self._live.items()):
            if marks.get(key, -1) < live.mark:
                del self._live[key]
                self.changes += 1

    def records(self) -> list[bytes]:
        """Return the records of everything that is held."""
        return [live.record for live in self._live.values()]

    def awaits(self, account: str, collection: str) -> bool:
        """Whether a newer state of the collection is known than the one that is held."""
        return (account, collection) in self._coming

    def degrade(self) -> None:
        """Go on without proof of being the newest, until the next proof: there is nobody to ask."""
        self.fresh_until = _LATEST

    def mark_of(self, account: str, collection: str) -> int:
        """Return the mark that is held, or -1."""
        live = self._live.get((account, collection))
        return -1 if live is None else live.mark

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._live)
