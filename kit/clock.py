"""Time as an argument: the system's clock, and one that tests move by hand.

Decisions take a moment as a value; whoever needs to wait or to stamp something takes a `Clock`. It knows no time zones but UTC.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Return the moment as an aware datetime in UTC. It may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some start; never goes back. For measuring how long something took."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long; at most zero only lets other tasks run."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the moment in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds of the machine's monotonic clock."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        await asyncio.sleep(max(0.0, seconds))


class FakeClock:
    """A clock that stands still until `advance` moves it. For one event loop; not for use from other threads."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = (start or datetime(2026, 11, 22, 10, 0, tzinfo=UTC)).astimezone(UTC)
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._ticket = itertools.count()

    def now(self) -> datetime:
        """Return the moment it stands at."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds it was advanced since it was made."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the clock that far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wakened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._ticket), wakened))
        await wakened

    def advance(self, seconds: float) -> None:
        """Move forward and wake, earliest first, everyone whose time has come. They run when the caller next awaits."""
        if seconds < 0:
            raise ValueError("a clock does not run backwards; use set_now for a clock that was set wrong")
        self._elapsed += seconds
        self._now += timedelta(seconds=seconds)
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            _, _, wakened = heapq.heappop(self._sleepers)
            if not wakened.done():
                wakened.set_result(None)

    def set_now(self, moment: datetime) -> None:
        """Set the calendar time, as someone who corrects a wrong clock does. Sleepers do not notice."""
        self._now = moment.astimezone(UTC)

    @property
    def sleepers(self) -> int:
        """How many tasks wait."""
        return sum(not wakened.done() for _, _, wakened in self._sleepers)


def timestamp_ms(moment: datetime) -> int:
    """Return Unix milliseconds of an aware datetime."""
    return int(moment.timestamp() * 1000)


def rfc3339(moment: datetime) -> str:
    """Return an aware datetime as RFC 3339 in UTC with `Z`, milliseconds only when there are any."""
    moment = moment.astimezone(UTC)
    milliseconds = moment.microsecond // 1000
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{milliseconds:03d}Z" if milliseconds else f"{text}Z"
