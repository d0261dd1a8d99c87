"""Tables of uploads. The bytes of parts are blobs in a namespace of the upload, see `store.py`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, String, Table

from kit.db.types import Timestamp
from services.registry.metadata import metadata

#: `received` is the acknowledged offset. `completed_sha256` is set when the file is there, in the account's namespace.
UPLOADS = Table(
    "uploads",
    metadata,
    Column("upload_id", String(40), primary_key=True),
    Column("account", String(40), ForeignKey("accounts.account"), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=True),
    Column("received", BigInteger, nullable=False),
    Column("completed_sha256", String(64), nullable=True),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Index(None, "account", "upload_id"),
    Index(None, "expires_at"),
)

UPLOAD_PARTS = Table(
    "upload_parts",
    metadata,
    Column("upload_id", String(40), ForeignKey("uploads.upload_id", ondelete="CASCADE"), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
)
