"""Tables of the catalogue: what the operator named, and the index as it was fetched last."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, String, Table, Text, UniqueConstraint

from kit.db.types import Json, Timestamp
from services.registry.metadata import metadata

#: `problem` says why the last fetch failed; the entries of the last good one stay listed.
CATALOGUE_SOURCES = Table(
    "catalogue_sources",
    metadata,
    Column("source_id", String(40), primary_key=True),
    Column("location", String(1000), nullable=False),
    Column("public_keys", Json, nullable=False),
    Column("title", String(200), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("fetched_at", Timestamp, nullable=True),
    Column("problem", Text, nullable=True),
    UniqueConstraint("location"),
)

CATALOGUE_ENTRIES = Table(
    "catalogue_entries",
    metadata,
    Column("source_id", String(40), ForeignKey("catalogue_sources.source_id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("title", String(200), nullable=False),
    Column("description", Text, nullable=False),
    Column("license", String(100), nullable=False),
    Column("labels", Json, nullable=False),
    Column("packages", Json, nullable=False),
)
