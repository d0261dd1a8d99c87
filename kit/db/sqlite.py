"""SQLite behind the database port: one connection writes and checkpoints, the others are opened read-only.

Two writing connections on one file can corrupt a WAL database on SQLite up to 3.51.2 (docs/adr/0003): hence exactly one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

from kit.clock import Clock
from kit.db import Database

_READERS = 4
_BUSY_TIMEOUT_MS = 10_000


def path_of(url: str) -> Path:
    """Return the file of a `sqlite:/path` URL. Raises `ValueError` for an empty path."""
    path = url.removeprefix("sqlite:").partition("?")[0]
    if path.startswith("///"):
        path = path[2:]
    if not path:
        raise ValueError("a sqlite URL names a file: sqlite:/path/to/file.db")
    return Path(path).absolute()


@asynccontextmanager
async def open_sqlite(url: str, clock: Clock) -> AsyncIterator[Database]:
    """Open (and create) the file. The engines' threads are not daemons: leaving the context ends them."""
    path = path_of(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    writer = _engine(f"file:{quote(str(path))}", read_only=False)
    reader = _engine(f"file:{quote(str(path))}?mode=ro", read_only=True)
    try:
        async with writer.connect():
            pass  # sets the journal mode before the first reader comes
        yield Database(url, clock, write_engine=writer, read_engine=reader, write_lock=asyncio.Lock())
    finally:
        await reader.dispose()
        await writer.dispose()


def _engine(file_uri: str, *, read_only: bool) -> AsyncEngine:
    separator = "&" if "?" in file_uri else "?"
    address = f"sqlite+aiosqlite:///{file_uri}{separator}uri=true"
    pool: dict[str, Any] = (
        {"poolclass": AsyncAdaptedQueuePool, "pool_size": _READERS, "max_overflow": 0} if read_only else {"poolclass": StaticPool}
    )
    engine = create_async_engine(address, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000}, **pool)

    @event.listens_for(engine.sync_engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        # SQLAlchemy starts transactions, not the driver (which would defer the lock to the first write).
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA foreign_keys=ON")
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
