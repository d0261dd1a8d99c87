"""Applies numbered SQL files to a column store: `0001_events.sql`, `0002_…`, each once, in order, recorded in the same store.

A file is applied whole, statement by statement; the engines have no transactions for DDL, so after a crash it is applied again from
its first statement: write statements that bear that (`CREATE TABLE IF NOT EXISTS`). There is no way back; write another file.
Several processes may do it at once: who loses a race looks again whether the other one has applied the file.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.checks import Finding, fault, note, ok
from kit.logs import get_logger
from kit.olap import ColumnStore, StatementFailed

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_TABLE = "schema_migrations"
_UNKNOWN_TABLE = 60
_ATTEMPTS = 5
_PAUSE_S = 0.2
# Quoted text, comments, or the end of a statement: a semicolon inside the first two ends nothing.
_TOKENS = re.compile(r"'(?:[^'\\]|\\.)*'|`[^`]*`|--[^\n]*|/\*.*?\*/|;", re.DOTALL)

log = get_logger(__name__)


class MigrationChanged(Exception):
    """A file that was applied already now has other contents. Undo the change and write a new file."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    statements: Sequence[str]
    sha256: str


def read_migrations(folder: Path) -> list[Migration]:
    """Return the files of a folder in order. Raises `ValueError` for a gap, a repeated number or a name that is none."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path.name}: a migration is named 0001_what_it_does.sql")
        text = path.read_text("utf-8")
        found.append(Migration(int(match[1]), match[2], split_statements(text), hashlib.sha256(text.encode()).hexdigest()))
    numbers = [migration.number for migration in found]
    if numbers != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations are numbered 1, 2, 3 …; found {numbers}")
    return found


def split_statements(text: str) -> list[str]:
    """Cut SQL at its semicolons, leaving out comments and empty statements."""
    statements, current, end = [], "", 0
    for token in _TOKENS.finditer(text):
        current += text[end : token.start()]
        end = token.end()
        if token[0] == ";":
            statements.append(current.strip())
            current = ""
        elif not token[0].startswith(("--", "/*")):
            current += token[0]
    statements.append((current + text[end:]).strip())
    return [statement for statement in statements if statement]


async def examine_schema(store: ColumnStore, folder: Path) -> Finding:
    """Say which files have not been applied. Changes nothing. Raises `Unavailable`."""
    try:
        applied = await _applied(store)
        waiting = [f"{one.number:04d}_{one.name}" for one in read_migrations(folder) if not _is_applied(one, applied)]
    except StatementFailed as failed:
        if failed.code == _UNKNOWN_TABLE:
            return ok("schema", "has no tables yet; they are made at the first use")
        return fault("schema", f"cannot be read: {failed}", "let the account read and write all tables of its database")
    except MigrationChanged as changed:
        return fault("schema", str(changed), "install the release that made the tables, or a newer one")
    if waiting:
        return note("schema", f"{', '.join(waiting)} not applied yet", "the first use does it")
    return ok("schema", "is at its newest")


async def _applied(store: ColumnStore) -> dict[int, str]:
    rows = await store.query(f"SELECT number, sha256 FROM {_TABLE} FINAL ORDER BY number")  # noqa: S608 - a constant
    return {int(row["number"]): str(row["sha256"]) for row in rows}


def _is_applied(migration: Migration, applied: Mapping[int, str]) -> bool:
    if migration.number not in applied:
        return False
    if applied[migration.number] != migration.sha256:
        raise MigrationChanged(f"{migration.number:04d}_{migration.name}.sql was changed after it had been applied")
    return True


async def migrate(store: ColumnStore, folder: Path) -> list[str]:
    """Apply what has not been applied yet and return the names of the files that this call has applied.

    Raises `MigrationChanged`, or what the store raises.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await _migrate(store, read_migrations(folder))
        except StatementFailed as failed:
            # Old servers do not take turns: of two that make a table one may fail, although it says IF NOT EXISTS.
            if attempt == _ATTEMPTS:
                raise
            log.info("a migration of the column store failed, perhaps because another process does it; looking again", error=str(failed))
            await asyncio.sleep(_PAUSE_S * attempt)
    raise AssertionError("unreachable")


async def _migrate(store: ColumnStore, migrations: Sequence[Migration]) -> list[str]:
    await store.execute(
        f"CREATE TABLE IF NOT EXISTS {_TABLE} (number UInt32, name String, sha256 String, applied_at DateTime DEFAULT now())"
        " ENGINE = ReplacingMergeTree ORDER BY number"
    )
    done = []
    for migration in migrations:
        # Read anew for each file: another process may be a file ahead.
        if _is_applied(migration, await _applied(store)):
            continue
        for statement in migration.statements:
            await store.execute(statement)
        # Not through insert(), which would load what batches need; not as VALUES, for which old protocols wait.
        # The values are digits, a-z, _ and hex.
        await store.execute(
            f"INSERT INTO {_TABLE} (number, name, sha256) SELECT {migration.number}, '{migration.name}', '{migration.sha256}'"
        )
        done.append(f"{migration.number:04d}_{migration.name}")
        log.info("column store migrated", migration=done[-1])
    return done
