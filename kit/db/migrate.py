"""Runs one service's Alembic tree up to its newest revision.

Each service's `migrations/env.py` calls `run_migrations(metadata)`; the connection is handed in, so Alembic opens nothing itself.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

from alembic import command, context
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text

from kit.db import Database


async def migrate(database: Database, package: str) -> None:
    """Upgrade the database with the tree in `<package>/migrations` (`package` for example `services.registry`)."""
    with as_file(files(package) / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        head = ScriptDirectory.from_config(config).get_current_head()

        def upgrade(connection: Connection) -> None:
            if _current(connection) == head:
                return
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

        async with database.write_engine.connect() as connection:
            await connection.run_sync(upgrade)
            await connection.commit()


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def run_migrations(metadata: MetaData) -> None:
    """What a tree's `env.py` does: run the revisions on the connection that `migrate` handed in."""
    connection: Any = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite")
    with context.begin_transaction():
        context.run_migrations()
