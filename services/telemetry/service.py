"""Use cases of telemetry: taking a batch in, and answering analytics with how fresh the figures are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from kit.clock import Clock, rfc3339, timestamp_ms
from kit.context import request_id
from kit.db import Database
from kit.eventlog import EventLog
from kit.identity import Principal
from kit.ids import new_id
from kit.tracing import record_headers
from services.telemetry import events, store
from services.telemetry.queries import Analytics

#: The consumer group that writes batches into the column store.
GROUP = "telemetry-writer"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Fresh(Generic[Answer]):
    """An answer, and how much of what was accepted it contains.

    `pending_batches` were accepted and are not written yet. `as_of` is now when there are none, else when the newest written one came.
    """

    answer: Answer
    as_of: datetime
    pending_batches: int


class Telemetry:
    """What `device.py` and `routes.py` call."""

    def __init__(self, *, eventlog: EventLog, database: Database, analytics: Analytics, clock: Clock) -> None:
        self._log = eventlog
        self._database = database
        self._analytics = analytics
        self._clock = clock

    def now(self) -> datetime:
        """Return the moment that a question is asked at."""
        return self._clock.now()

    async def accept(self, device: Principal, *, country: str, encoding: str, body: bytes) -> None:
        """Put a batch into the event log; when this returns it will be counted. Raises `LogFull`, `Unavailable`."""
        now = self._clock.now()
        headers = {
            "event-id": new_id("e"),
            "account": device.tenant,
            "request-id": request_id.get(),
            "occurred-at": rfc3339(now),
            **record_headers(),
        }
        message = events.received(
            account=device.tenant,
            install_id=device.id,
            country=country,
            at_ms=timestamp_ms(now),
            encoding=encoding,
            body=body,
            headers=headers,
        )
        await self._log.append(events.RECEIVED, [message])

    async def ask(self, question: Callable[[Analytics], Awaitable[Answer]]) -> Fresh[Answer]:
        """Answer a question about what was measured."""
        # Read before the answer: what is written meanwhile makes the answer fresher than it says, never staler.
        pending = await self._log.lag(GROUP, events.RECEIVED)
        as_of = self._clock.now()
        if pending:
            async with self._database.read() as reader:
                as_of = await store.newest_done(reader, events.RECEIVED) or datetime.fromtimestamp(0, as_of.tzinfo)
        return Fresh(await question(self._analytics), as_of, pending)
