"""Topics of telemetry, and the message that carries a batch from the edge to the writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from kit.clock import rfc3339
from kit.eventlog import Message, Record
from latebind_proto.events_pb2 import TelemetryReceived

RECEIVED = "telemetry.received"
REJECTED = "telemetry.rejected"
#: Header of a record that was a dead letter and is tried again: the run of `latebindd telemetry replay` that did it.
REPLAY = "replay"
#: Header with the earlier rejections of a record, a JSON list, oldest first; at most so many are kept.
HISTORY = "history"
_HISTORY = 10
_LETTER = ("reason", "detail", "source-event-id", "source-topic", "source-partition", "source-offset")


def received(*, account: str, install_id: str, country: str, at_ms: int, encoding: str, body: bytes, headers: Mapping[str, str]) -> Message:
    """Return the message for one batch: the body as it came, with what only the edge knows. Batches of one install keep their order."""
    envelope = TelemetryReceived(
        account=account, install_id=install_id, country=country, received_at_ms=at_ms, encoding=encoding, body=body
    )
    return Message(f"{account}/{install_id}", envelope.SerializeToString(), headers)


def rejected(record: Record, reason: str, detail: str) -> Message:
    """Return the dead letter of a record: the same bytes, and where they came from.

    Its event id follows from that place, so that a dead letter written twice is one to a reader that skips repeats.
    """
    headers = {
        **record.headers,
        "event-id": f"rejected_{record.partition}_{record.offset}",
        "reason": reason,
        "detail": detail,
        "source-event-id": record.headers.get("event-id", ""),
        "source-topic": record.topic,
        "source-partition": str(record.partition),
        "source-offset": str(record.offset),
    }
    return Message(record.key, record.value, headers)


def replayed(letter: Record, run: str) -> Message:
    """Return a dead letter as the batch that it was, to be tried again; it carries why and where it was rejected before."""
    headers = {name: value for name, value in letter.headers.items() if name not in _LETTER}
    rejection = {name: letter.headers.get(name, "") for name in ("reason", "detail", "source-partition", "source-offset")}
    history = [
        *json.loads(headers.get(HISTORY, "[]")),
        {**rejection, "at": rfc3339(datetime.fromtimestamp(letter.timestamp_ms / 1000, UTC))},
    ]
    headers |= {
        "event-id": letter.headers.get("source-event-id") or letter.headers["event-id"],
        REPLAY: run,
        HISTORY: json.dumps(history[-_HISTORY:]),
    }
    return Message(letter.key, letter.value, headers)
