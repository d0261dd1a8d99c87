"""Lends a pool's connections, each after it has answered a moment ago, so that nobody waits long for a server that is silent.

A pooled connection may be dead without anybody having said so: the server failed over, or a firewall forgot it. The first statement of
each transaction is the test. One that gives no answer in time is cut off, and the pool's others of its age with it; then a new one is
made. When that is silent too, nobody else waits (`kit.silence`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from sqlalchemy import Executable, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kit.silence import Silence, Silent

#: The first answer on a connection takes at most so long, counted in slices of the loop's time: see `_Watch`.
_ANSWER_S = 1.0
_SLICE_S = 0.1
_LATE_S = 0.05
_SLICES = round(_ANSWER_S / _SLICE_S)


class Lender:
    """Lends connections of one engine: at most `places` at a time, for which a caller waits up to `wait_s`."""

    def __init__(self, engine: AsyncEngine, *, places: int, wait_s: float, connect_s: float) -> None:
        self._engine = engine
        self._places = asyncio.Semaphore(places)
        self._wait_s = wait_s
        self._silence = Silence(trial_s=connect_s + 2 * _ANSWER_S)
        event.listen(engine.sync_engine.pool, "close", _cut)

    async def lend(self, stack: AsyncExitStack, greeting: Executable) -> AsyncConnection:
        """Return a connection that has just executed `greeting`, in a transaction; `stack` gives it back.

        Raises `Silent`, `TimeoutError` when no place becomes free, or what driver and system raise.
        """
        self._silence.refuse()
        async with asyncio.timeout(self._wait_s):
            await stack.enter_async_context(self._places)
        self._silence.enter()  # others may have found out meanwhile
        try:
            connection = await self._answering(stack, greeting)
        except (Silent, TimeoutError) as error:
            self._silence.began()
            raise Silent from error
        self._silence.ended()
        return connection

    async def _answering(self, stack: AsyncExitStack, greeting: Executable) -> AsyncConnection:
        for last in (False, True):
            connection = await self._engine.connect()
            try:
                await _greeted(connection, greeting)
            except BaseException as error:
                await connection.close()
                if not isinstance(error, Silent | DBAPIError) or last:
                    raise
                if isinstance(error, DBAPIError) and not error.connection_invalidated:
                    raise
            else:
                stack.push_async_callback(connection.close)
                return connection
        raise AssertionError("the last attempt returns or raises")


async def _greeted(connection: AsyncConnection, greeting: Executable) -> None:
    """Execute the statement. Raises `Silent` when no answer came in time; the connection is cut off then."""
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    # Not a cancellation, which would say good-bye first and wait for an answer to that.
    watch = _Watch(driver.terminate)
    try:
        await connection.execute(greeting)
    except DBAPIError as error:
        if watch.fired:
            raise Silent from error
        raise
    finally:
        watch.cancel()


class _Watch:
    """Calls `cut_off` when `_ANSWER_S` have passed in which the loop could have seen an answer.

    A loop that was busy sees its timers first, and an answer that has long arrived only then. So time is counted in slices: one that the
    loop was late for counts once, however long it was, and none that ends late is the last one, until twice as many have passed. A server
    that is silent is cut off after 1 s; on a loop that is always late after twenty of its slices.
    """

    def __init__(self, cut_off: Callable[[], object]) -> None:
        self.fired = False
        self._cut_off = cut_off
        self._loop = asyncio.get_running_loop()
        self._slices = 0
        self._wait()

    def cancel(self) -> None:
        """Watch no more."""
        self._timer.cancel()

    def _wait(self) -> None:
        self._due = self._loop.time() + _SLICE_S
        self._timer = self._loop.call_at(self._due, self._turn)

    def _turn(self) -> None:
        self._slices += 1
        late = self._loop.time() > self._due + _LATE_S
        if self._slices < _SLICES or (late and self._slices < 2 * _SLICES):
            self._wait()
            return
        self.fired = True
        self._cut_off()


def _cut(dbapi_connection: Any, _record: Any) -> None:
    """Close without a good-bye: to one that is dead it would take seconds."""
    dbapi_connection.driver_connection.terminate()
