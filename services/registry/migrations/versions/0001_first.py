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
        "accounts",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_accounts")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("position", types.Sequence, autoincrement=True, nullable=False),
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=True),
        sa.Column("to_version", sa.Integer(), nullable=True),
        sa.Column("moved_at", types.Timestamp(), nullable=False),
        sa.Column("moved_by", sa.String(length=40), nullable=False),
        sa.Column("why", sa.String(length=500), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_alias_moves")),
    )
    op.create_index(
        op.f("ix_alias_moves_account_model_id_name_position"), "alias_moves", ["account", "model_id", "name", "position"], unique=False
    )
    op.create_table(
        "catalogue_sources",
        sa.Column("source_id", sa.String(length=40), nullable=False),
        sa.Column("location", sa.String(length=1000), nullable=False),
        sa.Column("public_keys", types.Json(), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("fetched_at", types.Timestamp(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("source_id", name=op.f("pk_catalogue_sources")),
        sa.UniqueConstraint("location", name=op.f("uq_catalogue_sources_location")),
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
        "operator_keys",
        sa.Column("slot", types.Sequence, autoincrement=False, nullable=False),
        sa.Column("key_id", sa.String(length=12), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("slot", name=op.f("pk_operator_keys")),
        sa.UniqueConstraint("key_id", name=op.f("uq_operator_keys_key_id")),
    )
    op.create_table(
        "outbox",
        sa.Column("position", types.Sequence, autoincrement=True, nullable=False),
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
        "seen_events",
        sa.Column("consumer", sa.String(length=80), nullable=False),
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("seen_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", "event_id", name=op.f("pk_seen_events")),
    )
    op.create_index(op.f("ix_seen_events_seen_at"), "seen_events", ["seen_at"], unique=False)
    op.create_table(
        "signing_keys",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("announced_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("account", "role", "key_id", name=op.f("pk_signing_keys")),
    )
    op.create_table(
        "used_nonces",
        sa.Column("nonce", sa.String(length=64), nullable=False),
        sa.Column("expires_at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_used_nonces")),
    )
    op.create_index(op.f("ix_used_nonces_expires_at"), "used_nonces", ["expires_at"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("position", types.Sequence, autoincrement=True, nullable=False),
        sa.Column("key_id", sa.String(length=12), nullable=False),
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("scopes", types.Json(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("expires_at", types.Timestamp(), nullable=True),
        sa.Column("revoked_at", types.Timestamp(), nullable=True),
        sa.ForeignKeyConstraint(["account"], ["accounts.account"], name=op.f("fk_api_keys_account_accounts")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_id", name=op.f("uq_api_keys_key_id")),
    )
    op.create_index(op.f("ix_api_keys_account_position"), "api_keys", ["account", "position"], unique=False)
    op.create_table(
        "catalogue_entries",
        sa.Column("source_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("license", sa.String(length=100), nullable=False),
        sa.Column("labels", types.Json(), nullable=False),
        sa.Column("packages", types.Json(), nullable=False),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["catalogue_sources.source_id"],
            name=op.f("fk_catalogue_entries_source_id_catalogue_sources"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("source_id", "name", name=op.f("pk_catalogue_entries")),
    )
    op.create_table(
        "enrolment_keys",
        sa.Column("position", types.Sequence, autoincrement=True, nullable=False),
        sa.Column("key_id", sa.String(length=12), nullable=False),
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("quota", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("expires_at", types.Timestamp(), nullable=True),
        sa.Column("revoked_at", types.Timestamp(), nullable=True),
        sa.ForeignKeyConstraint(["account"], ["accounts.account"], name=op.f("fk_enrolment_keys_account_accounts")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_enrolment_keys")),
        sa.UniqueConstraint("key_id", name=op.f("uq_enrolment_keys_key_id")),
    )
    op.create_index(op.f("ix_enrolment_keys_account_position"), "enrolment_keys", ["account", "position"], unique=False)
    op.create_table(
        "installs",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("install_id", sa.String(length=36), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("enrolment_key_id", sa.String(length=12), nullable=False),
        sa.Column("enrolled_at", types.Timestamp(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["accounts.account"], name=op.f("fk_installs_account_accounts")),
        sa.PrimaryKeyConstraint("account", "install_id", name=op.f("pk_installs")),
    )
    op.create_table(
        "models",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("labels", types.Json(), nullable=False),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("updated_at", types.Timestamp(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["accounts.account"], name=op.f("fk_models_account_accounts")),
        sa.PrimaryKeyConstraint("account", "model_id", name=op.f("pk_models")),
    )
    op.create_table(
        "uploads",
        sa.Column("upload_id", sa.String(length=40), nullable=False),
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("filename", sa.String(length=255), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("completed_sha256", sa.String(length=64), nullable=True),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("expires_at", types.Timestamp(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["accounts.account"], name=op.f("fk_uploads_account_accounts")),
        sa.PrimaryKeyConstraint("upload_id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_account_upload_id"), "uploads", ["account", "upload_id"], unique=False)
    op.create_index(op.f("ix_uploads_expires_at"), "uploads", ["expires_at"], unique=False)
    op.create_table(
        "upload_parts",
        sa.Column("upload_id", sa.String(length=40), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.upload_id"], name=op.f("fk_upload_parts_upload_id_uploads"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("upload_id", "start", name=op.f("pk_upload_parts")),
    )
    op.create_table(
        "versions",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("declaration", types.Json(), nullable=False),
        sa.Column("binds_contract", sa.Boolean(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("problem_code", sa.String(length=80), nullable=True),
        sa.Column("problem_detail", sa.Text(), nullable=True),
        sa.Column("created_at", types.Timestamp(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("updated_at", types.Timestamp(), nullable=False),
        sa.Column("committed_at", types.Timestamp(), nullable=True),
        sa.Column("committed_by", sa.String(length=40), nullable=True),
        sa.Column("packaged_at", types.Timestamp(), nullable=True),
        sa.Column("archived_at", types.Timestamp(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account", "model_id"], ["models.account", "models.model_id"], name=op.f("fk_versions_account_model_id_models")
        ),
        sa.PrimaryKeyConstraint("account", "model_id", "version", name=op.f("pk_versions")),
    )
    op.create_table(
        "aliases",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("moved_at", types.Timestamp(), nullable=False),
        sa.Column("moved_by", sa.String(length=40), nullable=False),
        sa.Column("why", sa.String(length=500), nullable=False),
        sa.ForeignKeyConstraint(
            ["account", "model_id", "version"],
            ["versions.account", "versions.model_id", "versions.version"],
            name=op.f("fk_aliases_account_model_id_version_versions"),
        ),
        sa.PrimaryKeyConstraint("account", "model_id", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "packages",
        sa.Column("account", sa.String(length=40), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("variant", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account", "model_id", "version"],
            ["versions.account", "versions.model_id", "versions.version"],
            name=op.f("fk_packages_account_model_id_version_versions"),
        ),
        sa.PrimaryKeyConstraint("account", "digest", name=op.f("pk_packages")),
    )
    op.create_index(
        op.f("ix_packages_account_model_id_version_position"), "packages", ["account", "model_id", "version", "position"], unique=False
    )


def downgrade() -> None:
    """Undo."""
    op.drop_index(op.f("ix_packages_account_model_id_version_position"), table_name="packages")
    op.drop_table("packages")
    op.drop_table("aliases")
    op.drop_table("versions")
    op.drop_table("upload_parts")
    op.drop_index(op.f("ix_uploads_expires_at"), table_name="uploads")
    op.drop_index(op.f("ix_uploads_account_upload_id"), table_name="uploads")
    op.drop_table("uploads")
    op.drop_table("models")
    op.drop_table("installs")
    op.drop_index(op.f("ix_enrolment_keys_account_position"), table_name="enrolment_keys")
    op.drop_table("enrolment_keys")
    op.drop_table("catalogue_entries")
    op.drop_index(op.f("ix_api_keys_account_position"), table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_index(op.f("ix_used_nonces_expires_at"), table_name="used_nonces")
    op.drop_table("used_nonces")
    op.drop_table("signing_keys")
    op.drop_index(op.f("ix_seen_events_seen_at"), table_name="seen_events")
    op.drop_table("seen_events")
    op.drop_table("outbox")
    op.drop_table("operator_keys")
    op.drop_table("leases")
    op.drop_table("idempotency_keys")
    op.drop_table("catalogue_sources")
    op.drop_index(op.f("ix_alias_moves_account_model_id_name_position"), table_name="alias_moves")
    op.drop_table("alias_moves")
    op.drop_table("accounts")
