"""Contract levels of models, what each version promises, and which collections serve a model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from kit.db import types
from kit.db.fence import fence_accounts

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply."""
    op.add_column("models", sa.Column("contract_level", sa.String(length=20), nullable=False, server_default="frozen"))
    op.add_column("models", sa.Column("contract_set_at", types.Timestamp(), nullable=True))
    op.add_column("models", sa.Column("contract_set_by", sa.String(length=40), nullable=True))
    op.add_column("versions", sa.Column("commit_number", sa.Integer(), nullable=True))
    op.add_column("versions", sa.Column("contract", types.Json(), nullable=True))
    op.create_table(
        "collection_models",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("collection", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("account", "model_id", "collection", name=op.f("pk_collection_models")),
    )
    fence_accounts(op.get_bind(), ("collection_models",))
