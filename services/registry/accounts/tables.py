"""Tables of accounts and keys. Keys are stored as keyed hashes; the text of a key is nowhere."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, String, Table, UniqueConstraint

from kit.db.types import Json, Sequence, Timestamp
from services.registry.metadata import metadata

ACCOUNTS = Table(
    "accounts",
    metadata,
    Column("account", String(40), primary_key=True),
    Column("title", String(200), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(40), nullable=False),
)

#: `position` gives lists their order; `digest` is HMAC-SHA256 of the key's text, hex.
API_KEYS = Table(
    "api_keys",
    metadata,
    Column("position", Sequence, primary_key=True, autoincrement=True),
    Column("key_id", String(12), nullable=False),
    Column("account", String(40), ForeignKey("accounts.account"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("scopes", Json, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("expires_at", Timestamp, nullable=True),
    Column("revoked_at", Timestamp, nullable=True),
    UniqueConstraint("key_id"),
    Index(None, "account", "position"),
)

#: One row: `slot` is always 1, so that two processes that start at once cannot make two.
OPERATOR_KEYS = Table(
    "operator_keys",
    metadata,
    Column("slot", Sequence, primary_key=True, autoincrement=False),
    Column("key_id", String(12), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    UniqueConstraint("key_id"),
)

ENROLMENT_KEYS = Table(
    "enrolment_keys",
    metadata,
    Column("position", Sequence, primary_key=True, autoincrement=True),
    Column("key_id", String(12), nullable=False),
    Column("account", String(40), ForeignKey("accounts.account"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("quota", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("expires_at", Timestamp, nullable=True),
    Column("revoked_at", Timestamp, nullable=True),
    UniqueConstraint("key_id"),
    Index(None, "account", "position"),
)

#: What the packager and the deployer announced. No foreign key: an announcement may be read before anything else of the account.
SIGNING_KEYS = Table(
    "signing_keys",
    metadata,
    Column("account", String(40), primary_key=True),
    Column("role", String(20), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("announced_at", Timestamp, nullable=False),
)
