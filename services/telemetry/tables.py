"""The SQL tables of telemetry: which range of the log a writer is inserting, who may say so, and which days are rolled up."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Date, Integer, String, Table

from kit.db.system import new_metadata
from kit.db.types import Timestamp

metadata = new_metadata()

#: One row per partition: the last range that was planned. While `done` is false exactly this range is cut again after a crash.
INGEST_PLANS = Table(
    "ingest_plans",
    metadata,
    Column("topic", String(80), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("first_offset", BigInteger, nullable=False),
    Column("last_offset", BigInteger, nullable=False),
    Column("newest_at", Timestamp, nullable=False),
    Column("planned_at", Timestamp, nullable=False),
    Column("done", Boolean, nullable=False),
)

#: One row per partition: how often it was taken. Only who took it last may plan (`store.take_partitions`).
INGEST_OWNERS = Table(
    "ingest_owners",
    metadata,
    Column("topic", String(80), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
)

#: One row per day (UTC) of which there are rows. `changes` rises when rows were added after a roll-up had begun; `begun` is the newest
#: build that was begun, `build` the one that answers, while `built_changes` equals `changes`; it has `built_rows` rows.
ROLLUP_DAYS = Table(
    "rollup_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("changes", BigInteger, nullable=False),
    Column("changed_at", Timestamp, nullable=False),
    Column("begun", BigInteger),
    Column("build", BigInteger),
    Column("built_changes", BigInteger),
    Column("built_rows", BigInteger),
)
