"""A lease: one holder of a name at a time, across processes, and free again soon after the holder was killed.

Times are the database's own (docs/adr/0136), so machines may disagree about the hour. A holder that was paused beyond its lease does
no harm: what it writes inside `fenced()` is refused once somebody else has taken over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update

from kit.context import write_fence
from kit.db.system import LEASES
from kit.logs import get_logger
from kit.workers import Periodic, Worker

if TYPE_CHECKING:
    from kit.clock import Clock
    from kit.db import Database, Reader, Transaction

#: A killed holder is replaced within this time and one look of the others.
TTL = timedelta(seconds=15)

log = get_logger(__name__)


class LeaseLost(Exception):
    """Another process took the lease over; nothing of what was under way was written."""


class Lease:
    """`hold()` takes or renews; it answers whether the caller is the holder until `ttl` from now. For one event loop."""

    def __init__(self, database: Database, clock: Clock, *, name: str, holder: str, ttl: timedelta = TTL) -> None:
        self._database = database
        self._clock = clock
        self._name = name
        self._holder = holder
        self._ttl = ttl
        #: Who waits for the lease looks this often, and its holder renews it this often (seconds).
        self.look_s = ttl.total_seconds() / 3
        self._renewing = asyncio.Lock()
        self._renew_at = self._until = float("-inf")

    @property
    def holding(self) -> bool:
        """Whether the lease is surely ours still: counted from before it was asked for, on this process's monotonic clock."""
        return self._clock.monotonic() < self._until

    async def hold(self) -> bool:
        """Take the lease when it is free, expired or ours. Renewing costs a write only every third of the time; losing, a read."""
        async with self._renewing:
            if self._clock.monotonic() < self._renew_at:
                return True
            if await self._is_another_s():
                self._renew_at = self._until = float("-inf")
                return False
            asked_at = self._clock.monotonic()
            async with self._database.begin() as tx:
                row = await tx.first(select(LEASES).where(LEASES.c.name == self._name).with_for_update())
                now = await tx.database_now()
                values = {"holder": self._holder, "expires_at": now + self._ttl}
                if row is None:
                    await tx.execute(LEASES.insert().values(name=self._name, **values))
                elif row.holder == self._holder or row.expires_at <= now:
                    await tx.execute(update(LEASES).where(LEASES.c.name == self._name).values(**values))
                else:
                    self._renew_at = self._until = float("-inf")
                    return False
            self._renew_at = asked_at + self.look_s
            self._until = asked_at + self._ttl.total_seconds()
            return True

    async def _is_another_s(self) -> bool:
        """Look without taking the writers' turn: those who only wait for the lease must not slow down those who write."""
        async with self._database.read() as reader:
            row = await reader.first(select(LEASES).where(LEASES.c.name == self._name))
            return row is not None and row.holder != self._holder and row.expires_at > await reader.database_now()

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Let every write transaction in the block check first that the lease was not taken over; else it raises `LeaseLost`."""
        token = write_fence.set(self._check)
        try:
            yield
        finally:
            write_fence.reset(token)

    async def _check(self, tx: Transaction) -> None:
        holder = await tx.scalar(select(LEASES.c.holder).where(LEASES.c.name == self._name).with_for_update())
        if holder != self._holder:
            self._renew_at = self._until = float("-inf")
            raise LeaseLost(f"{self._name} belongs to {holder} by now")

    async def release(self) -> None:
        """Give the lease back, if it is ours, so that the next holder need not wait for its end."""
        self._renew_at = self._until = float("-inf")
        async with self._database.begin() as tx:
            await tx.execute(delete(LEASES).where(LEASES.c.name == self._name, LEASES.c.holder == self._holder))


async def holders(reader: Reader, prefix: str) -> set[str]:
    """Return who holds a lease whose name begins with `prefix`, now."""
    rows = await reader.all(select(LEASES).where(LEASES.c.name.startswith(prefix, autoescape=True)))
    now = await reader.database_now() if rows else None
    return {row.holder for row in rows if row.expires_at > now}


async def forget_leases(database: Database) -> int:
    """Delete leases that ended more than a day ago: names of processes that are gone; returns how many. Run it now and then."""
    async with database.begin() as tx:
        result = await tx.execute(delete(LEASES).where(LEASES.c.expires_at < await tx.database_now() - timedelta(days=1)))
    return result.rowcount


def leased(lease: Lease, name: str, every_s: float, action: Callable[[], Awaitable[object]], *, clock: Clock) -> Worker:
    """Return a worker that does `action` every `every_s` seconds in the one process that holds the lease, fenced."""
    due = float("-inf")

    async def turn() -> None:
        nonlocal due
        now = clock.monotonic()
        if now < due or not await lease.hold():
            return
        try:
            with lease.fenced():
                await action()
        except LeaseLost as lost:
            log.info("periodic work was taken over by another process", work=name, detail=str(lost))
            return
        due = now + every_s

    return Periodic(name, min(every_s, lease.look_s), turn, clock=clock)
