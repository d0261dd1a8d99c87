"""Tables that every service's database has: outbox, seen events, leases, idempotency keys."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

from kit.db.types import NAMING_CONVENTION, Sequence, Timestamp

_metadata = MetaData(naming_convention=NAMING_CONVENTION)

OUTBOX = Table(
    "outbox",
    _metadata,
    Column("position", Sequence, primary_key=True, autoincrement=True),
    Column("event_id", String(40), nullable=False, unique=True),
    Column("topic", String(80), nullable=False),
    Column("key", String(300), nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("headers", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
)
SEEN = Table(
    "seen_events",
    _metadata,
    Column("consumer", String(80), primary_key=True),
    Column("event_id", String(40), primary_key=True),
    Column("seen_at", Timestamp, nullable=False),
    Index(None, "seen_at"),
)
LEASES = Table(
    "leases",
    _metadata,
    Column("name", String(80), primary_key=True),
    Column("holder", String(80), nullable=False),
    Column("expires_at", Timestamp, nullable=False),
)
IDEMPOTENCY = Table(
    "idempotency_keys",
    _metadata,
    Column("caller", String(120), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("request_hash", String(64), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("status", Integer, nullable=True),
    Column("content_type", String(100), nullable=True),
    Column("body", LargeBinary, nullable=True),
)
TABLES = (OUTBOX, SEEN, LEASES, IDEMPOTENCY)


def new_metadata() -> MetaData:
    """Return an empty table registry with our naming convention and the system tables in it: the start of each `tables.py`."""
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    for table in TABLES:
        table.to_metadata(metadata)
    return metadata
