"""What resolve reads: the published collections, compiled and bound, each swapped as a whole.

In memory only. Who loads and when is the business of `service.py`; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from math import inf

from services.deployer.binding import Bound

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)


class Live:
    """One published collection as devices see it. `mark` says which state of the tables it was made from."""

    __slots__ = ("_since", "_until", "bound", "digest", "mark")

    def __init__(self, bound: Bound, mark: int, digest: str) -> None:
        self.bound = bound
        self.mark = mark
        self.digest = digest
        self._since, self._until = _LATEST, _EARLIEST

    def at(self, now: datetime) -> Bound:
        """Return the rules that are open at `now` (aware). Time windows open and close here, without any event."""
        if not self._since <= now < self._until:
            self.bound = bound = self.bound.at(now.timestamp())
            self._since = _EARLIEST if bound.since == -inf else datetime.fromtimestamp(bound.since, UTC)
            self._until = _LATEST if bound.until == inf else datetime.fromtimestamp(bound.until, UTC)
        return self.bound


class Snapshot:
    """All published collections by (account, collection). `complete` once everything was loaded for the first time."""

    def __init__(self) -> None:
        self.complete = False
        self._live: dict[tuple[str, str], Live] = {}

    def find(self, account: str, collection: str) -> Live | None:
        """Return a collection, or None."""
        return self._live.get((account, collection))

    def swap(self, account: str, collection: str, live: Live) -> None:
        """Put a newer state in; an older one (loaded before, finished later) is dropped."""
        before = self._live.get((account, collection))
        if before is None or live.mark >= before.mark:
            self._live[account, collection] = live

    def mark_of(self, account: str, collection: str) -> int:
        """Return the mark that is held, or -1."""
        live = self._live.get((account, collection))
        return -1 if live is None else live.mark

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._live)
