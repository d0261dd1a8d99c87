"""One look-up at a time per key: those who ask for the same while it runs wait for its answer (SEC-D7).

It remembers nothing once the answer is there; a cache is its caller's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class SingleFlight(Generic[Key, Found]):
    """Look-ups under way, by key."""

    def __init__(self) -> None:
        self._running: dict[Key, asyncio.Task[Found]] = {}

    async def get(self, key: Key, look_up: Callable[[], Coroutine[Any, Any, Found]]) -> Found:
        """Return what `look_up` finds, or what the one that runs for this key already finds. Raises what it raises.

        A caller that is cancelled leaves the look-up to the others: it is a task of its own, in the context of who came first.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(look_up(), name="look-up")
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: Key, task: asyncio.Task[Found]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits any more
