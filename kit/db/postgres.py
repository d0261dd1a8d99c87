"""PostgreSQL (15 or newer) behind the database port: one schema per service, writers of a service in turn, rows fenced by account.

URL: `postgresql://user:password@host:port/database?options#service`. The schema is `schema_prefix` + service. Tables of accounts carry
row-level security (`kit.db.fence`): each transaction says whose rows it may see, so a forgotten filter shows nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, Executable, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from kit.checks import Findings
from kit.clock import Clock
from kit.context import account_scope
from kit.db import Database, DatabaseUnavailable, Dialect, postgres_backup, postgres_checks
from kit.db.lending import Lender
from kit.url_options import read_options

#: Classes of SQLSTATE that pass by themselves: connection, resources, operator's intervention, locks (PostgreSQL, appendix A).
_PASSING = ("08", "53", "55", "57", "58")
#: Undefined table, undefined column, no such schema.
_LACKING = frozenset({"42P01", "42703", "3F000"})
_TURN, _MIGRATION = 1, 2
_VISIBLE = "account = current_setting('latebind.account', true) OR current_setting('latebind.account', true) = '*'"


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """What stands in the query of the URL. Times in seconds."""

    schema_prefix: str = ""
    pool: int = 5
    pool_timeout_s: float = 5.0
    connect_timeout_s: float = 2.0
    statement_timeout_s: float = 15.0
    tls: str = "prefer"


class PostgresDialect(Dialect):
    """Sets the account of each transaction, and gives writers their turn."""

    starts_migrate = False

    def __init__(
        self, address: URL, schema: str, connect_args: dict[str, Any], lenders: Mapping[AsyncEngine, Lender], *, connections: int
    ) -> None:
        self.schema = schema
        self._lenders = lenders
        self._connections = connections
        self._address = address
        self._connect_args = connect_args
        self._tls = str(connect_args["ssl"])
        # The lock's number must be equal in every process and differ between schemas.
        self._number = zlib.crc32(schema.encode()) & 0x7FFFFFFF

    async def connect(self, stack: AsyncExitStack, engine: AsyncEngine) -> AsyncConnection:
        """Say whose rows may be seen, until the transaction ends; this also shows that the connection lives."""
        scope = text("SELECT set_config('latebind.account', :scope, true)").bindparams(scope=account_scope.get())
        return await self._lenders[engine].lend(stack, scope)

    def at_start(self, *, writes: bool) -> Executable | None:
        """Make a writer wait for its turn, which ends with the transaction."""
        if not writes:
            return None
        return text("SELECT pg_advisory_xact_lock(:purpose, :number)").bindparams(purpose=_TURN, number=self._number)

    def clock(self) -> Executable:
        """Read the server's clock, which moves on inside a transaction."""
        return text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")

    def unavailable(self, error: DBAPIError) -> bool:
        """Judge by the class of the SQLSTATE; an error without one came from the connection."""
        state = getattr(error.orig, "sqlstate", None)
        return state is None or state.startswith(_PASSING)

    def lacks_tables(self, error: DBAPIError) -> bool:
        """Judge by the SQLSTATE."""
        return getattr(error.orig, "sqlstate", None) in _LACKING

    async def prepare(self) -> None:
        """Make the schema. Raises `DatabaseUnavailable`."""
        engine = create_async_engine(self._address, connect_args=self._connect_args, poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                await connection.execute(self.before_migration())
                await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"'))
        except (OSError, DBAPIError) as error:
            raise DatabaseUnavailable("the database cannot be reached now, or does not let us make a schema") from error
        finally:
            await engine.dispose()

    def name_snapshot(self) -> Executable:
        """Export what a transaction sees; the name is good while that transaction lasts."""
        return text("SELECT pg_export_snapshot()")

    async def dump(self, snapshot: str, dialects: Sequence[Dialect], file: Path, programs: Path | None) -> None:
        """Run `pg_dump`. Raises `ValueError` without one, `DatabaseUnavailable` when it fails."""
        schemas = [one.schema for one in dialects]
        await postgres_backup.dump(self._address, self._tls, snapshot=snapshot, schemas=schemas, file=file, programs=programs)

    async def load(self, dialects: Sequence[Dialect], file: Path, programs: Path | None) -> None:
        """Run `pg_restore`. Raises `ValueError` without one, `DatabaseUnavailable` when it fails, and then has changed nothing."""
        await postgres_backup.load(self._address, self._tls, file=file, programs=programs)

    async def examine(self, database: Database) -> Findings:
        """Look at server, role, rights and fences; see `kit.db.postgres_checks`."""
        engine = create_async_engine(self._address, connect_args=self._connect_args, poolclass=NullPool, hide_parameters=True)
        try:
            async for finding in postgres_checks.examine(engine, self.schema, connections=self._connections):
                yield finding
        finally:
            await engine.dispose()

    def fence(self, table: str) -> Sequence[str]:
        """Put the policy on a table. Its owner is bound as well; a superuser never is, so the service must not be one."""
        return (
            f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY',
            f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY',
            f'CREATE POLICY account_fence ON "{table}" USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})',
        )

    def before_migration(self) -> Executable:
        """Take a lock that ends with the transaction: of several processes that start at once, one migrates and the others look."""
        return text("SELECT set_config('latebind.account', '*', true), pg_advisory_xact_lock(:purpose, :number)").bindparams(
            purpose=_MIGRATION, number=self._number
        )


@asynccontextmanager
async def open_postgres(url: str, clock: Clock) -> AsyncIterator[Database]:
    """Make the pools of one service. Raises `ValueError` for a URL that names no service or has an unknown option."""
    parts = urlsplit(url)
    options = read_options(PostgresOptions, parts.query, "a postgresql URL")
    schema = options.schema_prefix + parts.fragment
    if not parts.fragment or not schema.replace("_", "").isalnum() or not schema.isascii() or len(schema) > 63:
        raise ValueError("a postgresql URL ends with #service, and schema_prefix takes letters, digits and _")
    if not parts.hostname or not parts.path.strip("/"):
        raise ValueError("a postgresql URL names host and database: postgresql://user:password@host:5432/latebind")
    address = URL.create(
        "postgresql+asyncpg",
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        host=parts.hostname,
        port=parts.port or 5432,
        database=unquote(parts.path.strip("/")),
    )
    milliseconds = str(round(options.statement_timeout_s * 1000))
    connect_args: dict[str, Any] = {
        "timeout": options.connect_timeout_s,
        # The client's own deadline covers a server that is there and silent.
        "command_timeout": options.statement_timeout_s + 1,
        "ssl": options.tls,
        "server_settings": {
            "search_path": schema,
            "application_name": f"latebind-{parts.fragment}",
            "statement_timeout": milliseconds,
            "lock_timeout": milliseconds,
            # A writer whose process is gone without a word gives its turn back after this.
            "idle_in_transaction_session_timeout": milliseconds,
            "timezone": "UTC",
        },
    }
    writer = _engine(address, connect_args, options, writes=True)
    reader = _engine(address, connect_args, options, writes=False)
    lenders = {
        engine: Lender(engine, places=options.pool, wait_s=options.pool_timeout_s, connect_s=options.connect_timeout_s)
        for engine in (writer, reader)
    }
    try:
        # One process may run all four services, each with two pools.
        dialect = PostgresDialect(address, schema, connect_args, lenders, connections=8 * options.pool)
        yield Database(url, clock, write_engine=writer, read_engine=reader, dialect=dialect)
    finally:
        await reader.dispose()
        await writer.dispose()


def _engine(address: URL, connect_args: dict[str, Any], options: PostgresOptions, *, writes: bool) -> AsyncEngine:
    read_only = {} if writes else {"default_transaction_read_only": "on"}
    return create_async_engine(
        address,
        connect_args={**connect_args, "server_settings": connect_args["server_settings"] | read_only},
        # Writers take turns and see the latest; readers keep one snapshot.
        isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
        pool_size=options.pool,
        max_overflow=0,
        hide_parameters=True,
    )
