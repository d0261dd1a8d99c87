"""Topics of telemetry, and the message that carries a batch from the edge to the writer."""

from __future__ import annotations

from collections.abc import Mapping

from kit.eventlog import Message, Record
from latebind_proto.events_pb2 import TelemetryReceived

RECEIVED = "telemetry.received"
REJECTED = "telemetry.rejected"


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
