"""What is known of a server that gave no answer in time: for a moment nobody else waits for it, then one caller tries for all.

Without it every request of an outage waits its whole time, and so many wait at once that those behind them cannot be served either.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: After a silence everybody is refused for so long.
_REFUSE_S = 1.0
T = TypeVar("T")


class Silent(Exception):
    """The server does not answer, or did not a moment ago."""


class Silence:
    """One server's. `trial_s`: how long a call may take that tries for all. Safe to use from several threads."""

    def __init__(self, *, trial_s: float) -> None:
        self._trial_s = trial_s
        self._lock = threading.Lock()
        #: Until when callers are refused; 0 while all is well.
        self._until = 0.0

    def refuse(self) -> None:
        """Raise `Silent` while nobody is to wait."""
        if time.monotonic() < self._until:
            raise Silent

    def enter(self) -> None:
        """Raise `Silent` while nobody is to wait; the first one after that tries for all, and the others are refused until it is done."""
        with self._lock:
            self.refuse()
            if self._until:
                self._until = time.monotonic() + self._trial_s

    def began(self) -> None:
        """Note that an answer did not come in time."""
        self._until = time.monotonic() + _REFUSE_S

    def ended(self) -> None:
        """Note an answer, of whatever kind."""
        self._until = 0.0


class Threads:
    """Runs calls of a blocking driver, at most `count` at a time; who finds no free thread within `wait_s` is refused.

    `is_silent` tells from an exception that the server gave no answer in time.
    """

    def __init__(self, name: str, count: int, *, wait_s: float, trial_s: float, is_silent: Callable[[Exception], bool]) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = asyncio.Semaphore(count)
        self._wait_s = wait_s
        self._is_silent = is_silent
        self._silence = Silence(trial_s=trial_s)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns. Raises `Silent` when it was not even tried, or what `work` raises."""
        self._silence.refuse()
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise Silent from None
        try:
            self._silence.enter()  # others may have found out meanwhile
            call = asyncio.get_running_loop().run_in_executor(self._threads, self._watched, work)
        except BaseException:
            self._free.release()
            raise
        # Not when the caller gives up: the thread goes on.
        call.add_done_callback(lambda _call: self._free.release())
        return await asyncio.shield(call)

    def submit(self, work: Callable[[], object]) -> None:
        """Run something that nobody waits for."""
        self._threads.submit(work)

    def close(self) -> None:
        """End the threads after what they do now."""
        self._threads.shutdown(wait=True)

    def _watched(self, work: Callable[[], T]) -> T:
        try:
            answer = work()
        except Exception as error:
            if self._is_silent(error):
                self._silence.began()
            else:
                self._silence.ended()
            raise
        self._silence.ended()
        return answer
