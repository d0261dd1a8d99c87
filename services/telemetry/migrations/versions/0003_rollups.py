"""Which days have a roll-up that answers for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from kit.db import types

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "rollup_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("changes", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", types.Timestamp(), nullable=False),
        sa.Column("begun", sa.BigInteger(), nullable=True),
        sa.Column("build", sa.BigInteger(), nullable=True),
        sa.Column("built_changes", sa.BigInteger(), nullable=True),
        sa.Column("built_rows", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_rollup_days")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("rollup_days")
