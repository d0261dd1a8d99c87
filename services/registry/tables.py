"""Tables of models, versions, aliases and packages; importing this file makes `metadata` know the tables of every room."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKeyConstraint, Index, Integer, LargeBinary, String, Table, Text

from kit.db.types import Json, Sequence, Timestamp
from services.registry.accounts import tables as accounts_tables
from services.registry.accounts.enrolment import tables as enrolment_tables
from services.registry.catalogue import tables as catalogue_tables
from services.registry.metadata import metadata
from services.registry.uploads import tables as uploads_tables

__all__ = [
    "ALIASES",
    "ALIAS_MOVES",
    "COLLECTION_MODELS",
    "MODELS",
    "PACKAGES",
    "VERSIONS",
    "accounts_tables",
    "catalogue_tables",
    "enrolment_tables",
    "metadata",
    "uploads_tables",
]

MODELS = Table(
    "models",
    metadata,
    Column("account", String(40), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("description", Text, nullable=False),
    Column("labels", Json, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("last_version", Integer, nullable=False),
    Column("contract_level", String(20), nullable=False),
    Column("contract_set_at", Timestamp, nullable=True),
    Column("contract_set_by", String(40), nullable=True),
    ForeignKeyConstraint(["account"], ["accounts.account"]),
)

#: `binds_contract`: the version was committed and did not fail, so later ones must keep what it promises (docs/adr/0050).
#: `contract`: all that is promised since this version, by those before it too; `commit_number` orders that (docs/adr/0170).
VERSIONS = Table(
    "versions",
    metadata,
    Column("account", String(40), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("state", String(20), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("declaration", Json, nullable=False),
    Column("binds_contract", Boolean, nullable=False),
    Column("job_id", String(40), nullable=True),
    Column("problem_code", String(80), nullable=True),
    Column("problem_detail", Text, nullable=True),
    Column("report", Json, nullable=True),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("committed_at", Timestamp, nullable=True),
    Column("committed_by", String(40), nullable=True),
    Column("packaged_at", Timestamp, nullable=True),
    Column("archived_at", Timestamp, nullable=True),
    Column("commit_number", Integer, nullable=True),
    Column("contract", Json, nullable=True),
    ForeignKeyConstraint(["account", "model_id"], ["models.account", "models.model_id"]),
)

ALIASES = Table(
    "aliases",
    metadata,
    Column("account", String(40), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("moved_at", Timestamp, nullable=False),
    Column("moved_by", String(40), nullable=False),
    Column("why", String(500), nullable=False),
    ForeignKeyConstraint(["account", "model_id", "version"], ["versions.account", "versions.model_id", "versions.version"]),
)

#: Never changed, never deleted. `position` is the alias's revision too, so a removed and remade alias has new ETags.
ALIAS_MOVES = Table(
    "alias_moves",
    metadata,
    Column("position", Sequence, primary_key=True, autoincrement=True),
    Column("account", String(40), nullable=False),
    Column("model_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("from_version", Integer, nullable=True),
    Column("to_version", Integer, nullable=True),
    Column("moved_at", Timestamp, nullable=False),
    Column("moved_by", String(40), nullable=False),
    Column("why", String(500), nullable=False),
    Index(None, "account", "model_id", "name", "position"),
)

#: `position` is the place in the version's order of preference. Manifest and envelope are kept byte for byte, as they were signed.
PACKAGES = Table(
    "packages",
    metadata,
    Column("account", String(40), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("model_id", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("variant", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    ForeignKeyConstraint(["account", "model_id", "version"], ["versions.account", "versions.model_id", "versions.version"]),
    Index(None, "account", "model_id", "version", "position"),
)

#: Which collections serve a model, as the deployer told at their last publish.
COLLECTION_MODELS = Table(
    "collection_models",
    metadata,
    Column("account", String(40), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("collection", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
)
