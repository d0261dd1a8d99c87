"""Between the deployer's values and the messages of the event log. Topics are explained in docs/topics.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from kit.clock import rfc3339
from kit.context import request_id
from kit.eventlog import Message, Record
from kit.ids import new_id
from kit.tracing import record_headers
from latebind_proto import events_pb2
from services.deployer.domain import Decision, DeviceEvent, Report

ACCOUNT_CREATED = "account.created"
SIGNING_KEY_ANNOUNCED = "signing-key.announced"
VERSION_READIED = "version.readied"
VERSION_ARCHIVED = "version.archived"
ALIAS_MOVED = "alias.moved"
COLLECTION_PUBLISHED = "collection.published"
DECISION_MADE = "decision.made"
DEVICE_REPORTED = "device.reported"

CATALOGUE_TOPICS = (ACCOUNT_CREATED, VERSION_READIED, VERSION_ARCHIVED, ALIAS_MOVED)
DEVICE_TOPICS = (DECISION_MADE, DEVICE_REPORTED)

ROLE = "assignment"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def key_announced(account: str, key_id: str, public_key: bytes) -> bytes:
    """Return the value of `signing-key.announced`."""
    return events_pb2.SigningKeyAnnounced(account=account, role=ROLE, key_id=key_id, public_key=public_key).SerializeToString()


def account_created(value: bytes) -> str:
    """Return the account of `account.created`."""
    return events_pb2.AccountCreated.FromString(value).account


def version_readied(value: bytes) -> tuple[str, str, int, list[tuple[str, str, int, str]]]:
    """Return account, model, version and the packages as (variant, digest, size, manifest text)."""
    message = events_pb2.VersionReadied.FromString(value)
    packages = [(one.variant, one.digest, one.size, one.manifest_json.decode()) for one in message.packages]
    return message.account, message.model_id, message.version, packages


def version_archived(value: bytes) -> tuple[str, str, int]:
    """Return account, model and version."""
    message = events_pb2.VersionArchived.FromString(value)
    return message.account, message.model_id, message.version


def alias_moved(value: bytes) -> tuple[str, str, str, int]:
    """Return account, model, alias and version (0: removed)."""
    message = events_pb2.AliasMoved.FromString(value)
    return message.account, message.model_id, message.alias, message.version


def collection_published(account: str, collection: str, revision: int, name: str, model_ids: Iterable[str]) -> bytes:
    """Return the value of `collection.published`."""
    return events_pb2.CollectionPublished(
        account=account, collection=collection, revision=revision, name=name, model_ids=sorted(model_ids)
    ).SerializeToString()


def decision_made(
    *, decision_id: str, account: str, collection: str, revision: int, install_id: str, decided_at: datetime, context: bytes, answer: bytes
) -> Message:
    """Return the record of a decision; `context` and `answer` are JSON."""
    value = events_pb2.DecisionMade(
        decision_id=decision_id,
        account=account,
        collection=collection,
        revision=revision,
        install_id=install_id,
        decided_at_ms=int(decided_at.timestamp() * 1000),
        context_json=context,
        answer_json=answer,
    ).SerializeToString()
    return _message(account, install_id, value, event_id=decision_id, occurred_at=decided_at)


def decision_of(record: Record) -> Decision:
    """Return the decision that a record holds."""
    message = events_pb2.DecisionMade.FromString(record.value)
    return Decision(
        account=message.account,
        decision_id=message.decision_id,
        collection=message.collection,
        revision=message.revision,
        install_id=message.install_id,
        decided_at=_EPOCH + timedelta(milliseconds=message.decided_at_ms),
        context=json.loads(message.context_json),
        answer=json.loads(message.answer_json),
    )


def device_reported(account: str, install_id: str, report: bytes, now: datetime) -> Message:
    """Return the record of update states; `report` is the JSON of `report_of`."""
    value = events_pb2.DeviceReported(account=account, install_id=install_id, report_json=report).SerializeToString()
    return _message(account, install_id, value, event_id=new_id("e"), occurred_at=now)


def report_of(record: Record) -> Report:
    """Return the report that a record holds."""
    message = events_pb2.DeviceReported.FromString(record.value)
    received = datetime.fromisoformat(record.headers["occurred-at"])
    events = tuple(_event(item, received) for item in json.loads(message.report_json)["events"])
    return Report(message.account, message.install_id, events)


def _event(item: dict[str, Any], received: datetime) -> DeviceEvent:
    return DeviceEvent(
        event_id=item["event_id"],
        collection=item["collection"],
        package=item["package"],
        state=item["state"],
        code=item["code"],
        detail=item["detail"],
        at=datetime.fromisoformat(item["at"]),
        decision_id=item["decision_id"],
        received_at=received,
    )


def _message(account: str, install_id: str, value: bytes, *, event_id: str, occurred_at: datetime) -> Message:
    headers = {
        "event-id": event_id,
        "account": account,
        "request-id": request_id.get(),
        "occurred-at": rfc3339(occurred_at),
        **record_headers(),
    }
    return Message(key=f"{account}/{install_id}", value=value, headers=headers)
