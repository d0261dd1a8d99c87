"""Marks become microseconds, so that they order answers over all processes and stay above the counters that devices hold."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

from kit.db import types

revision = "0003"
down_revision = "0002"

#: Processes of the release before may run beside this one for so long, and give out counters by the clock.
_OVERLAP_US = 3600 * 1_000_000


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("collections") as table:
        table.alter_column("mark", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False)
        table.add_column(sa.Column("active_at", types.Timestamp(), nullable=True))
    mark = int(time.time() * 1_000_000) + _OVERLAP_US
    op.execute(
        sa.text("UPDATE collections SET mark = :mark, active_at = touched_at").bindparams(sa.bindparam("mark", mark, sa.BigInteger()))
    )
    with op.batch_alter_table("collections") as table:
        table.alter_column("active_at", existing_type=types.Timestamp(), nullable=False)
