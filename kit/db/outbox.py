"""The outbox: events are rows of the transaction that made them true; a relay appends them to the log afterwards.

The relay may append an event twice (it died between append and delete); it never forgets one. Readers skip repeats by `event-id`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

from sqlalchemy import delete, func, select

from kit.clock import Clock
from kit.db import Database, DatabaseUnavailable
from kit.db.lease import Lease, LeaseLost
from kit.db.system import OUTBOX, SEEN
from kit.eventlog import EventLog, Message
from kit.logs import get_logger
from kit.workers import Periodic, Stop, Worker

_BATCH = 500
#: A slow look for rows whose wake-up was lost with another process.
_POLL_S = 1.0
#: Seen events are kept this long, so that a late repeat is still recognised.
SEEN_FOR = timedelta(days=14)

log = get_logger(__name__)


def outbox_relay(service: str, database: Database, eventlog: EventLog, lease: Lease, clock: Clock) -> Worker:
    """Return the worker that moves the outbox to the log, in order. Of several processes the one that holds the lease is active."""

    async def drain() -> None:
        try:
            while await lease.hold():
                with lease.fenced():
                    if not await relay_once(database, eventlog, still_ours=lambda: lease.holding):
                        return
        except LeaseLost as lost:
            log.info("the outbox is relayed by another process now", service=service, detail=str(lost))

    worker = _Relay(f"{service}-outbox-relay", _POLL_S, drain, clock=clock, lease=lease)
    database.on_outbox(worker.wake)
    return worker


class _Relay(Periodic):
    """Gives the lease back when it stops, so that the next relay starts at once."""

    def __init__(self, name: str, every_s: float, action: Callable[[], Awaitable[object]], *, clock: Clock, lease: Lease) -> None:
        super().__init__(name, every_s, action, clock=clock)
        self._lease = lease

    async def run(self, stop: Stop) -> None:
        await super().run(stop)
        try:
            await self._lease.release()
        except DatabaseUnavailable:
            log.info("the lease could not be given back; it runs out by itself", work=self.name)


async def relay_once(database: Database, eventlog: EventLog, *, still_ours: Callable[[], bool] = lambda: True) -> int:
    """Append one batch and forget it; returns how many events it held. Raises `LeaseLost` before an append that `still_ours` denies.

    A relay that is paused inside an append may still append after its successor: readers skip what they have seen, by `event-id`.
    """
    async with database.read() as reader:
        rows = await reader.all(select(OUTBOX).order_by(OUTBOX.c.position).limit(_BATCH))
    if not rows:
        return 0
    # Neighbours of one topic go in one append; the order of the outbox stays.
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end].topic != rows[start].topic:
            messages = [Message(key=row.key, value=row.value, headers=json.loads(row.headers)) for row in rows[start:end]]
            if not still_ours():
                raise LeaseLost("the relay was paused for longer than its lease")
            await eventlog.append(rows[start].topic, messages)
            start = end
    async with database.begin() as tx:
        await tx.execute(delete(OUTBOX).where(OUTBOX.c.position.in_([row.position for row in rows])))
    return len(rows)


async def waiting(database: Database, clock: Clock) -> tuple[int, float]:
    """Return how many events wait for the relay, and the age of the oldest in seconds (0 when none waits)."""
    async with database.read() as reader:
        row = await reader.first(select(func.count().label("events"), func.min(OUTBOX.c.created_at).label("oldest")))
    assert row is not None  # a count always has a row
    oldest = row.oldest
    return int(row.events), max(0.0, (clock.now() - oldest).total_seconds()) if oldest else 0.0


async def forget_seen(database: Database, clock: Clock) -> int:
    """Delete seen events older than `SEEN_FOR`; returns how many. Run it now and then."""
    async with database.begin() as tx:
        result = await tx.execute(delete(SEEN).where(SEEN.c.seen_at < clock.now() - SEEN_FOR))
    return result.rowcount
