"""Which address of a service is asked next, and how often a request may be repeated. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: An address that failed is asked again after this time, by one request at first.
REST_S = 2.0
#: Repeats per request in the long run, and how many may come at once when something breaks.
_SHARE, _AT_ONCE = 0.1, 50.0


@dataclass(slots=True)
class Address:
    """One address of a service."""

    url: str
    rests_until: float = 0.0
    failed: bool = False

    def worked(self) -> None:
        """It answered."""
        self.failed = False
        self.rests_until = 0.0

    def broke(self, now: float) -> None:
        """It did not answer: others are asked first for a while."""
        self.failed = True
        self.rests_until = now + REST_S


class Addresses:
    """The addresses of one service, asked in turn."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.all = [Address(url) for url in urls]
        self._turn = 0

    def in_order(self, now: float) -> list[Address]:
        """Return the addresses to try, best first, at least two: a single address may stand for several processes.

        One that failed comes last while it rests. Afterwards one request tries it, and it rests on meanwhile for all others.
        """
        self._turn += 1
        at = self._turn % len(self.all)
        turned = self.all[at:] + self.all[:at]
        awake = [one for one in turned if one.rests_until <= now]
        resting = [one for one in turned if one.rests_until > now]
        for one in awake[:1]:
            if one.failed:
                one.rests_until = now + REST_S
        found = awake + resting
        return found if len(found) > 1 else found * 2


class RepeatBudget:
    """Keeps repeats from adding to an overload: a tenth of the requests in the long run."""

    def __init__(self) -> None:
        self._left = _AT_ONCE

    def earn(self) -> None:
        """Count a request."""
        self._left = min(_AT_ONCE, self._left + _SHARE)

    def spend(self) -> bool:
        """Take one repeat, if there is one left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
