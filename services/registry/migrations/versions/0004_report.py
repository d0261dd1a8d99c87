"""What the packager's gates found about a version's variants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from kit.db import types

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply."""
    op.add_column("versions", sa.Column("report", types.Json(), nullable=True))
