"""The deployer's tables. Every row carries its account; no query leaves it out."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, String, Table, Text

from kit.db.system import new_metadata
from kit.db.types import Json, Timestamp

metadata = new_metadata()

ACCOUNT, NAME, DIGEST, INSTALL = String(64), String(64), String(64), String(64)

VERSIONS = Table(
    "versions",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("model_id", NAME, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("archived", Boolean, nullable=False),
    Column("readied_at", Timestamp, nullable=False),
)
PACKAGES = Table(
    "packages",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("model_id", NAME, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("variant", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("manifest", Text, nullable=False),
    Index(None, "account", "digest"),
)
ALIASES = Table(
    "aliases",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("model_id", NAME, primary_key=True),
    Column("alias", NAME, primary_key=True),
    Column("version", Integer, nullable=False),
)
#: `mark` rises and `touched_at` moves whenever an answer of the collection may change: processes that hold it in memory compare. The state
#: that a mark stands for holds from `active_at` on, in all of them.
COLLECTIONS = Table(
    "collections",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("id", NAME, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("draft", Json, nullable=False),
    Column("draft_number", Integer, nullable=False),
    Column("draft_by", String(120), nullable=False),
    Column("draft_at", Timestamp, nullable=False),
    Column("revision", Integer, nullable=True),
    Column("mark", BigInteger, nullable=False),
    Column("touched_at", Timestamp, nullable=False),
    Column("active_at", Timestamp, nullable=False),
    Index(None, "touched_at"),
)
#: Models that a collection's published rules serve: a change of one touches the collection.
COLLECTION_MODELS = Table(
    "collection_models",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("model_id", NAME, primary_key=True),
    Column("collection", NAME, primary_key=True),
)
REVISIONS = Table(
    "revisions",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("collection", NAME, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("document", Json, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("published_at", Timestamp, nullable=False),
    Column("published_by", String(120), nullable=False),
    Column("note", Text, nullable=False),
    Column("reverted_to", Integer, nullable=True),
)
DEVICES = Table(
    "devices",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("install_id", INSTALL, primary_key=True),
    Column("first_seen_at", Timestamp, nullable=False),
    Column("last_seen_at", Timestamp, nullable=False),
    Column("context", Json, nullable=False),
    Column("context_at", Timestamp, nullable=False),
)
#: What a device was told to run (by its last decision) and what it says it runs, per collection it asks for.
DEVICE_COLLECTIONS = Table(
    "device_collections",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("install_id", INSTALL, primary_key=True),
    Column("collection", NAME, primary_key=True),
    Column("wanted", DIGEST, nullable=True),
    Column("reason", String(40), nullable=True),
    Column("decision_id", String(40), nullable=True),
    Column("decided_at", Timestamp, nullable=True),
    Column("running", DIGEST, nullable=True),
    Column("state", String(20), nullable=True),
    Column("code", String(64), nullable=True),
    Column("reported_at", Timestamp, nullable=True),
    Index(None, "account", "collection", "install_id"),
)
DEVICE_EVENTS = Table(
    "device_events",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("install_id", INSTALL, primary_key=True),
    Column("event_id", String(64), primary_key=True),
    Column("collection", NAME, nullable=False),
    Column("package", DIGEST, nullable=True),
    Column("state", String(20), nullable=False),
    Column("code", String(64), nullable=True),
    Column("detail", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
    Column("decision_id", String(40), nullable=True),
    Column("received_at", Timestamp, nullable=False),
    Index(None, "received_at"),
)
DECISIONS = Table(
    "decisions",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("decision_id", String(40), primary_key=True),
    Column("collection", NAME, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("install_id", INSTALL, nullable=False),
    Column("decided_at", Timestamp, nullable=False),
    Column("context", Json, nullable=False),
    Column("answer", Json, nullable=False),
    Index(None, "account", "install_id", "decided_at"),
    Index(None, "decided_at"),
)
