"""Fences the rows of accounts from each other (PostgreSQL)."""

from __future__ import annotations

from alembic import op

from kit.db.fence import fence_accounts

revision = "0002"
down_revision = "0001"

_TABLES = (
    "accounts",
    "alias_moves",
    "aliases",
    "api_keys",
    "enrolment_keys",
    "installs",
    "models",
    "packages",
    "signing_keys",
    "uploads",
    "versions",
)


def upgrade() -> None:
    """Apply."""
    fence_accounts(op.get_bind(), _TABLES)
