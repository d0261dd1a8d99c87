"""Each service's Alembic tree, run from nothing, makes exactly the tables of its `tables.py`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from kit.clock import SystemClock
from kit.db import open_database
from kit.db.migrate import migrate, newest_revision
from kit.ports import PortSettings


@pytest.mark.parametrize("service", ["registry", "packager", "deployer", "telemetry"])
async def test_tree_and_tables_agree(service: str, ports_at: PortSettings) -> None:
    metadata = importlib.import_module(f"services.{service}.tables").metadata

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))

    async with open_database(ports_at.database_of(service), SystemClock()) as database:
        await migrate(database, f"services.{service}")
        await migrate(database, f"services.{service}")  # a second start finds nothing to do
        async with database.write_engine.connect() as connection:
            assert await connection.run_sync(differences) == []


@pytest.mark.parametrize("service", ["registry", "packager", "deployer", "telemetry"])
def test_a_revision_is_named_like_its_file(service: str) -> None:
    folder = Path(importlib.import_module(f"services.{service}").__file__ or "").parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    for script in scripts.walk_revisions():
        assert Path(script.path).name.partition("_")[0] == script.revision
    assert scripts.get_current_head() == newest_revision(folder)
