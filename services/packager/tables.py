"""The packager's tables. Every row carries its account; no query of a request leaves it out."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, String, Table, Text

from kit.db.system import new_metadata
from kit.db.types import Timestamp

metadata = new_metadata()

ACCOUNT, NAME, JOB_ID, DIGEST = String(64), String(64), String(40), String(64)

#: `not_before`: a queued job may start then; a running one belongs to `holder` until then. `attempt` fences off earlier holders.
JOBS = Table(
    "jobs",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("job_id", JOB_ID, primary_key=True),
    Column("model_id", NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("version_created_at", String(40), nullable=False),
    Column("declaration", LargeBinary, nullable=False),
    Column("state", String(20), nullable=False),
    Column("progress", Float, nullable=False),
    Column("step", String(100), nullable=False),
    Column("code", String(64), nullable=True),
    Column("detail", Text, nullable=True),
    Column("created_at", Timestamp, nullable=False),
    Column("started_at", Timestamp, nullable=True),
    Column("finished_at", Timestamp, nullable=True),
    Column("holder", String(80), nullable=True),
    Column("not_before", Timestamp, nullable=False),
    Column("attempt", Integer, nullable=False),
    Index(None, "state", "not_before"),
)
JOB_LINES = Table(
    "job_lines",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("job_id", JOB_ID, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("at", Timestamp, nullable=False),
    Column("step", String(100), nullable=False),
    Column("progress", Float, nullable=False),
    Column("text", Text, nullable=False),
)
PACKAGES = Table(
    "packages",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("job_id", JOB_ID, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("variant", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Index(None, "account", "digest"),
)
#: What examining or converting came to, by account and a digest of everything that it depends on.
RESULTS = Table(
    "results",
    metadata,
    Column("account", ACCOUNT, primary_key=True),
    Column("key", DIGEST, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False, server_default="0"),
    Column("used_at", Timestamp, nullable=False),
    Index(None, "account", "used_at"),
)
