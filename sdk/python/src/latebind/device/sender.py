"""From the buffers on disk to the server: telemetry batches and update states, oldest first, each kept until the server has it.

It sends when told to and does not wait or repeat by itself; its answer says when the next try makes sense.
"""

from __future__ import annotations

import json
import threading
import uuid
from dataclasses import dataclass

from latebind.device.api import DeviceApi
from latebind.device.clock import Clock, format_time
from latebind.device.spool import Record, Spool
from latebind.errors import LatebindError, ServerError

# What the server can never accept; everything else is kept and tried again.
_HOPELESS = frozenset({400, 413, 415, 422})
EVENTS_PER_REQUEST = 50
MAX_DETAIL = 512


@dataclass(slots=True)
class SendOutcome:
    """What became of one round. `error` is what ended it early, and `retry_after_s` what the server asked for then."""

    sent: int = 0
    refused: int = 0
    error: LatebindError | None = None

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the server asks to wait."""
        return self.error.retry_after_s if isinstance(self.error, ServerError) else None


class Reports:
    """Update states (docs/wire.md), kept on disk until they are sent."""

    def __init__(self, spool: Spool, clock: Clock) -> None:
        self._spool = spool
        self._clock = clock

    def add(
        self,
        collection: str,
        state: str,
        *,
        package: str | None,
        code: str | None = None,
        detail: str = "",
        decision_id: str | None = None,
    ) -> None:
        """Note a state. Raises DiskFull."""
        event = {
            "event_id": str(uuid.uuid4()),
            "collection": collection,
            "package": package,
            "state": state,
            "code": code,
            "detail": detail[:MAX_DETAIL],
            "at": format_time(self._clock.now()),
            "decision_id": decision_id,
        }
        self._spool.append(json.dumps(event).encode())


class Sender:
    """Empties the two buffers. Rounds exclude each other."""

    def __init__(self, *, api: DeviceApi, batches: Spool, reports: Spool) -> None:
        self._api = api
        self._batches = batches
        self._reports = reports
        self._lock = threading.Lock()

    def send(self, *, timeout_s: float | None = None) -> SendOutcome:
        """Send until nothing is left or the server cannot be reached. Never raises LatebindError: it is in the outcome."""
        outcome = SendOutcome()
        with self._lock:
            try:
                self._send_reports(outcome, timeout_s)
                self._send_batches(outcome, timeout_s)
            except LatebindError as error:
                outcome.error = error
        return outcome

    def _send_batches(self, outcome: SendOutcome, timeout_s: float | None) -> None:
        while records := self._batches.peek(16):
            for record in records:
                try:
                    self._api.send_telemetry(record.payload, timeout_s=timeout_s)
                except ServerError as error:
                    self._give_up(self._batches, record, error, outcome)
                else:
                    self._batches.acknowledge(record)
                    outcome.sent += 1

    def _send_reports(self, outcome: SendOutcome, timeout_s: float | None) -> None:
        size = EVENTS_PER_REQUEST
        while records := self._reports.peek(size):
            try:
                self._api.send_events([json.loads(record.payload) for record in records], timeout_s=timeout_s)
            except ServerError as error:
                if len(records) > 1 and error.status in _HOPELESS:
                    # One of them is to blame: find it by sending each alone.
                    size = 1
                    continue
                self._give_up(self._reports, records[-1], error, outcome)
            else:
                self._reports.acknowledge(records[-1])
                outcome.sent += len(records)

    @staticmethod
    def _give_up(spool: Spool, record: Record, error: ServerError, outcome: SendOutcome) -> None:
        if error.status not in _HOPELESS:
            raise error
        spool.give_up(record)
        outcome.refused += 1
