"""Fences the rows of accounts from each other (PostgreSQL)."""

from __future__ import annotations

from alembic import op

from kit.db.fence import fence_accounts

revision = "0002"
down_revision = "0001"

_TABLES = (
    "job_lines",
    "jobs",
    "packages",
)


def upgrade() -> None:
    """Apply."""
    fence_accounts(op.get_bind(), _TABLES)
