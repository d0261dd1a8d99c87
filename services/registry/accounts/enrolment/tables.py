"""Tables of devices' identity."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, LargeBinary, String, Table

from kit.db.types import Timestamp
from services.registry.metadata import metadata

INSTALLS = Table(
    "installs",
    metadata,
    Column("account", String(40), ForeignKey("accounts.account"), primary_key=True),
    Column("install_id", String(36), primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("enrolment_key_id", String(12), nullable=False),
    Column("enrolled_at", Timestamp, nullable=False),
)

#: Nonces that were accepted, kept until they would have expired anyway.
USED_NONCES = Table(
    "used_nonces",
    metadata,
    Column("nonce", String(64), primary_key=True),
    Column("expires_at", Timestamp, nullable=False),
    Index(None, "expires_at"),
)
