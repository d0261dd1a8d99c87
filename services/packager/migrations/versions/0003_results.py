"""Results that are kept, so that the same work is not done again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from kit.db import types
from kit.db.fence import fence_accounts

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "results",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("used_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("account", "key", name=op.f("pk_results")),
    )
    op.create_index(op.f("ix_results_account_used_at"), "results", ["account", "used_at"], unique=False)
    fence_accounts(op.get_bind(), ["results"])
