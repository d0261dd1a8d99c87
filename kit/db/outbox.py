"""The outbox: events are rows of the transaction that made them true; a relay appends them to the log afterwards.

The relay may append an event twice (it died between append and delete); it never forgets one. Readers skip repeats by `event-id`.
"""

from __future__ import annotations

import json
from datetime import timedelta

from sqlalchemy import delete, func, select

from kit.clock import Clock
from kit.db import Database
from kit.db.lease import Lease
from kit.db.system import OUTBOX, SEEN
from kit.eventlog import EventLog, Message
from kit.workers import Periodic, Worker

_BATCH = 500
_LEASE = timedelta(seconds=15)
#: A slow look for rows whose wake-up was lost with another process.
_POLL_S = 1.0
#: Seen events are kept this long, so that a late repeat is still recognised.
SEEN_FOR = timedelta(days=14)


def outbox_relay(service: str, database: Database, eventlog: EventLog, clock: Clock, *, holder: str) -> Worker:
    """Return the worker that moves the outbox to the log, in order. Of several processes the one that holds the lease is active."""
    lease = Lease(database, clock, name="outbox-relay", holder=holder, ttl=_LEASE)

    async def drain() -> None:
        while await lease.hold():
            if not await relay_once(database, eventlog):
                return

    worker = Periodic(f"{service}-outbox-relay", _POLL_S, drain, clock=clock)
    database.on_outbox(worker.wake)
    return worker


async def relay_once(database: Database, eventlog: EventLog) -> int:
    """Append one batch and forget it; returns how many events it held."""
    async with database.read() as reader:
        rows = await reader.all(select(OUTBOX).order_by(OUTBOX.c.position).limit(_BATCH))
    if not rows:
        return 0
    # Neighbours of one topic go in one append; the order of the outbox stays.
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end].topic != rows[start].topic:
            messages = [Message(key=row.key, value=row.value, headers=json.loads(row.headers)) for row in rows[start:end]]
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
