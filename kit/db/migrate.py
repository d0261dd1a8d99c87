"""Runs one service's Alembic tree up to its newest revision.

Each service's `migrations/env.py` calls `run_migrations(metadata)`; the connection is handed in, so Alembic opens nothing itself.
A revision is named like its file's number (`0001_first.py` is `0001`), so that a database that is up to date is known as such
without loading Alembic: 10 MB and a third of a second at every start.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, inspect, text

from kit.db import Database


async def migrate(database: Database, package: str) -> None:
    """Upgrade the database with the tree in `<package>/migrations` (`package` for example `services.registry`)."""
    with as_file(files(package) / "migrations") as folder:
        newest = newest_revision(folder)

        def upgrade(connection: Connection) -> None:
            if _current(connection) != newest:
                _upgrade(connection, folder)

        await database.dialect.prepare()
        async with database.write_engine.connect() as connection:
            connection.info["dialect"] = database.dialect  # for `kit.db.fence`
            alone = database.dialect.before_migration()
            if alone is not None:
                await connection.execute(alone)
            await connection.run_sync(upgrade)
            await connection.commit()


async def revisions(database: Database, package: str) -> tuple[str | None, str]:
    """Return the revision that the database has (None: no tables yet) and the newest one. Changes nothing.

    Raises `DatabaseUnavailable`.
    """
    with as_file(files(package) / "migrations") as folder:
        newest = newest_revision(folder)
    async with database.read() as reader:
        return await reader.run_sync(_current), newest


def newest_revision(folder: Path) -> str:
    """Return the highest number among the revisions' files."""
    return max(path.name.partition("_")[0] for path in (folder / "versions").glob("[0-9]*.py"))


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _upgrade(connection: Connection, folder: Path) -> None:
    from alembic import command  # noqa: PLC0415 - only a database that is behind needs it
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def run_migrations(metadata: MetaData) -> None:
    """What a tree's `env.py` does: run the revisions on the connection that `migrate` handed in."""
    from alembic import context  # noqa: PLC0415 - loaded by then

    connection: Any = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
