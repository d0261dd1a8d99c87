"""Bytes of the files that only a result has, so that they are bounded per account."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply."""
    op.add_column("results", sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"))
