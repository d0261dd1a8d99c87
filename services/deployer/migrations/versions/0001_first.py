"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from kit.db import types

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "aliases",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("account", "model_id", "alias", name=op.f("pk_aliases")),
    )
    op.create_table(
        "collection_models",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("collection", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("account", "model_id", "collection", name=op.f("pk_collection_models")),
    )
    op.create_table(
        "collections",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("updated_at", types.Timestamp(), nullable=False),
        sa.Column("draft", types.Json(), nullable=False),
        sa.Column("draft_number", sa.Integer(), nullable=False),
        sa.Column("draft_by", sa.String(length=120), nullable=False),
        sa.Column("draft_at", types.Timestamp(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("mark", sa.Integer(), nullable=False),
        sa.Column("touched_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("account", "id", name=op.f("pk_collections")),
    )
    op.create_index(op.f("ix_collections_touched_at"), "collections", ["touched_at"], unique=False)
    op.create_table(
        "decisions",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("decision_id", sa.String(length=40), nullable=False),
        sa.Column("collection", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("install_id", sa.String(length=64), nullable=False),
        sa.Column("decided_at", types.Timestamp(), nullable=False),
        sa.Column("context", types.Json(), nullable=False),
        sa.Column("answer", types.Json(), nullable=False),
        sa.PrimaryKeyConstraint("account", "decision_id", name=op.f("pk_decisions")),
    )
    op.create_index(op.f("ix_decisions_account_install_id_decided_at"), "decisions", ["account", "install_id", "decided_at"], unique=False)
    op.create_index(op.f("ix_decisions_decided_at"), "decisions", ["decided_at"], unique=False)
    op.create_table(
        "device_collections",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("install_id", sa.String(length=64), nullable=False),
        sa.Column("collection", sa.String(length=64), nullable=False),
        sa.Column("wanted", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("decision_id", sa.String(length=40), nullable=True),
        sa.Column("decided_at", types.Timestamp(), nullable=True),
        sa.Column("running", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=True),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("reported_at", types.Timestamp(), nullable=True),
        sa.PrimaryKeyConstraint("account", "install_id", "collection", name=op.f("pk_device_collections")),
    )
    op.create_index(
        op.f("ix_device_collections_account_collection_install_id"),
        "device_collections",
        ["account", "collection", "install_id"],
        unique=False,
    )
    op.create_table(
        "device_events",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("install_id", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("collection", sa.String(length=64), nullable=False),
        sa.Column("package", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", types.Timestamp(), nullable=False),
        sa.Column("decision_id", sa.String(length=40), nullable=True),
        sa.Column("received_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("account", "install_id", "event_id", name=op.f("pk_device_events")),
    )
    op.create_index(op.f("ix_device_events_received_at"), "device_events", ["received_at"], unique=False)
    op.create_table(
        "devices",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("install_id", sa.String(length=64), nullable=False),
        sa.Column("first_seen_at", types.Timestamp(), nullable=False),
        sa.Column("last_seen_at", types.Timestamp(), nullable=False),
        sa.Column("context", types.Json(), nullable=False),
        sa.Column("context_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("account", "install_id", name=op.f("pk_devices")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.String(length=120), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("content_type", sa.String(length=100), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("holder", sa.String(length=80), nullable=False),
        sa.Column("expires_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "outbox",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("topic", sa.String(length=80), nullable=False),
        sa.Column("key", sa.String(length=300), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_outbox")),
        sa.UniqueConstraint("event_id", name=op.f("uq_outbox_event_id")),
    )
    op.create_table(
        "packages",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("variant", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account", "model_id", "version", "position", name=op.f("pk_packages")),
    )
    op.create_index(op.f("ix_packages_account_digest"), "packages", ["account", "digest"], unique=False)
    op.create_table(
        "revisions",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("collection", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("document", types.Json(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("published_at", types.Timestamp(), nullable=False),
        sa.Column("published_by", sa.String(length=120), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("reverted_to", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("account", "collection", "revision", name=op.f("pk_revisions")),
    )
    op.create_table(
        "seen_events",
        sa.Column("consumer", sa.String(length=80), nullable=False),
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("seen_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", "event_id", name=op.f("pk_seen_events")),
    )
    op.create_index(op.f("ix_seen_events_seen_at"), "seen_events", ["seen_at"], unique=False)
    op.create_table(
        "versions",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("readied_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("account", "model_id", "version", name=op.f("pk_versions")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("versions")
    op.drop_index(op.f("ix_seen_events_seen_at"), table_name="seen_events")
    op.drop_table("seen_events")
    op.drop_table("revisions")
    op.drop_index(op.f("ix_packages_account_digest"), table_name="packages")
    op.drop_table("packages")
    op.drop_table("outbox")
    op.drop_table("leases")
    op.drop_table("idempotency_keys")
    op.drop_table("devices")
    op.drop_index(op.f("ix_device_events_received_at"), table_name="device_events")
    op.drop_table("device_events")
    op.drop_index(op.f("ix_device_collections_account_collection_install_id"), table_name="device_collections")
    op.drop_table("device_collections")
    op.drop_index(op.f("ix_decisions_decided_at"), table_name="decisions")
    op.drop_index(op.f("ix_decisions_account_install_id_decided_at"), table_name="decisions")
    op.drop_table("decisions")
    op.drop_index(op.f("ix_collections_touched_at"), table_name="collections")
    op.drop_table("collections")
    op.drop_table("collection_models")
    op.drop_table("aliases")
