"""A lease: one holder of a name at a time, across processes, and free again soon after the holder was killed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update

from kit.db.system import LEASES

if TYPE_CHECKING:
    from kit.clock import Clock
    from kit.db import Database


class Lease:
    """`hold()` takes or renews; it answers whether the caller is the holder until `ttl` from now."""

    def __init__(self, database: Database, clock: Clock, *, name: str, holder: str, ttl: timedelta) -> None:
        self._database = database
        self._clock = clock
        self._name = name
        self._holder = holder
        self._ttl = ttl
        self._renew_at: datetime | None = None

    async def hold(self) -> bool:
        """Take the lease when it is free, expired or ours; renewing costs a write only every third of the time."""
        now = self._clock.now()
        if self._renew_at is not None and now < self._renew_at:
            return True
        async with self._database.begin() as tx:
            row = await tx.first(select(LEASES).where(LEASES.c.name == self._name).with_for_update())
            values = {"holder": self._holder, "expires_at": now + self._ttl}
            if row is None:
                await tx.execute(LEASES.insert().values(name=self._name, **values))
            elif row.holder == self._holder or row.expires_at <= now:
                await tx.execute(update(LEASES).where(LEASES.c.name == self._name).values(**values))
            else:
                self._renew_at = None
                return False
        self._renew_at = now + self._ttl / 3
        return True

    async def release(self) -> None:
        """Give the lease back, if it is ours, so that the next holder need not wait for its end."""
        self._renew_at = None
        async with self._database.begin() as tx:
            await tx.execute(delete(LEASES).where(LEASES.c.name == self._name, LEASES.c.holder == self._holder))
