"""The database port: one per service, SQLite embedded or PostgreSQL in a cluster, the same SQL on both.

Writers of one service take turns on both (docs/adr/0105), so what a transaction checked still holds when it commits, and events leave
in the order of their commits. `begin()` is the only way to write, `read()` the only way to read outside a write; they give different
types so that a use case shows which it is. Statements are SQLAlchemy Core; they live in each service's `store.py`, never here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import Connection, Executable, Row, event, text
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from kit.checks import Findings, fault, ok
from kit.clock import Clock, rfc3339
from kit.context import idempotency_claim, request_id, write_fence
from kit.db.system import IDEMPOTENCY, OUTBOX, SEEN
from kit.errors import Conflict, NotMigrated, Unavailable
from kit.ids import new_id
from kit.logs import get_logger
from kit.tracing import record_headers

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")

log = get_logger(__name__)

_COPY_INSTEAD = "an embedded installation is backed up by copying its data folder: docs/operating.md"


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached or did not answer in time."""

    code = "DATABASE_UNAVAILABLE"


class IdempotencyInFlight(Conflict):
    """A request with this `Idempotency-Key` is being handled right now."""

    code = "IDEMPOTENCY_IN_FLIGHT"
    retry_after_s = 1


class Reader:
    """Runs statements that read. Rows come back as SQLAlchemy rows, in a consistent snapshot per `read()`."""

    def __init__(self, connection: AsyncConnection, clock: Clock, dialect: Dialect) -> None:
        self._connection, self._clock, self._dialect = connection, clock, dialect

    async def database_now(self) -> datetime:
        """Return the moment by the database's own clock: one for all processes that share it."""
        asked = self._dialect.clock()
        return self._clock.now() if asked is None else _EPOCH + timedelta(microseconds=await self.scalar(asked))

    async def run_sync(self, work: Callable[[Connection], T]) -> T:
        """Run what takes a plain connection: a look at tables, not at rows."""
        return await self._connection.run_sync(work)

    async def all(self, statement: Executable) -> Sequence[Row[Any]]:
        """Return every row."""
        return (await self._connection.execute(statement)).all()

    async def first(self, statement: Executable) -> Row[Any] | None:
        """Return the first row or None."""
        return (await self._connection.execute(statement)).first()

    async def scalar(self, statement: Executable) -> Any:
        """Return the first column of the first row, or None."""
        return (await self._connection.execute(statement)).scalar()


class Transaction(Reader):
    """A write transaction: what it checked still holds when it commits. Facts and their events go in together."""

    emitted = False

    async def execute(self, statement: Executable, rows: Sequence[Mapping[str, Any]] | None = None) -> CursorResult[Any]:
        """Run an INSERT, UPDATE or DELETE, once per entry of `rows` when given. Raises `IntegrityError` on a broken constraint."""
        if rows is not None and not rows:
            raise ValueError("rows is empty: skip the statement instead")
        return await self._connection.execute(statement, rows)

    async def emit(self, topic: str, *, key: str, account: str, value: bytes, headers: Mapping[str, str] | None = None) -> str:
        """Write an event into the outbox; the relay appends it to the log after the commit. Returns the event id."""
        event_id = new_id("e")
        now = self._clock.now()
        all_headers = {
            "event-id": event_id,
            "account": account,
            "request-id": request_id.get(),
            "occurred-at": rfc3339(now),
            **record_headers(),
            **(headers or {}),
        }
        await self._connection.execute(
            OUTBOX.insert().values(event_id=event_id, topic=topic, key=key, value=value, headers=json.dumps(all_headers), created_at=now)
        )
        self.emitted = True
        return event_id

    async def first_time(self, consumer: str, event_id: str) -> bool:
        """Record that `consumer` has handled the event. False: it had been handled before, skip it."""
        seen = await self.scalar(
            SEEN.select().with_only_columns(SEEN.c.event_id).where(SEEN.c.consumer == consumer, SEEN.c.event_id == event_id)
        )
        if seen is not None:
            return False
        await self._connection.execute(SEEN.insert().values(consumer=consumer, event_id=event_id, seen_at=self._clock.now()))
        return True

    async def claim_idempotency_key(self) -> None:
        """Write the request's `Idempotency-Key` beside its effect, so that both are there or neither. Raises `IdempotencyInFlight`."""
        claim = idempotency_claim.get()
        if claim is None:
            return
        try:
            await self._connection.execute(
                IDEMPOTENCY.insert().values(
                    caller=claim.caller, key=claim.key, request_hash=claim.request_hash, created_at=self._clock.now()
                )
            )
        except IntegrityError as error:
            raise IdempotencyInFlight("another request with this Idempotency-Key is under way; ask again in a moment") from error
        idempotency_claim.set(None)  # a use case has one transaction; a second one would be another effect


class Dialect:
    """What an adapter does at the start of transactions and around migrations. This one, SQLite's, does nothing."""

    schema = ""
    #: Whether every start makes and upgrades the tables; elsewhere only `latebindd migrate` does.
    starts_migrate = True

    async def connect(self, stack: AsyncExitStack, engine: AsyncEngine) -> AsyncConnection:
        """Lend a connection until `stack` ends. Raises what driver and system raise."""
        return await stack.enter_async_context(engine.connect())

    def at_start(self, *, writes: bool) -> Executable | None:
        """Return the statement that every transaction starts with."""
        return None

    def clock(self) -> Executable | None:
        """Return the statement that reads the server's clock (microseconds since 1970). None: there is no server but this machine."""
        return None

    def unavailable(self, error: DBAPIError) -> bool:
        """Whether a driver's error says that the database cannot do it now, as opposed to never."""
        return any(words in str(error.orig) for words in ("database is locked", "disk is full"))

    def lacks_tables(self, error: DBAPIError) -> bool:
        """Whether a driver's error says that a table or column is not there. An embedded database is migrated by every start."""
        return False

    async def prepare(self) -> None:
        """Make the place that the migrations fill."""

    def fence(self, table: str) -> Sequence[str]:
        """Return the statements that show a transaction only rows of its account, whatever it asks for."""
        return ()

    def before_migration(self) -> Executable | None:
        """Return the statement that keeps other processes from migrating until the transaction ends."""
        return None

    def name_snapshot(self) -> Executable:
        """Return the statement that names what its transaction sees, for `dump`."""
        raise ValueError(_COPY_INSTEAD)

    async def dump(self, snapshot: str, dialects: Sequence[Dialect], file: Path, programs: Path | None) -> None:
        """Write a snapshot of the databases of these dialects into a file. Raises `DatabaseUnavailable`."""
        raise ValueError(_COPY_INSTEAD)

    async def load(self, dialects: Sequence[Dialect], file: Path, programs: Path | None) -> None:
        """Load such a file into databases without tables. Raises `DatabaseUnavailable`, and then has changed nothing."""
        raise ValueError(_COPY_INSTEAD)

    async def examine(self, database: Database) -> Findings:
        """Look for what could be wrong with the database, in words (`latebindd doctor`). Raises `DatabaseUnavailable`."""
        async with database.read() as reader:
            version = await reader.scalar(text("SELECT sqlite_version()"))
            broken = await reader.scalar(text("PRAGMA quick_check(1)"))
        yield ok("server", f"SQLite {version}")
        if broken != "ok":
            yield fault("file", f"is damaged: {broken}", "stop the server and restore a backup (docs/operating.md)")
        else:
            yield ok("file", "is whole")


class Database:
    """One service's database. Made by `open_database`; closed by leaving that context."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        write_engine: AsyncEngine,
        read_engine: AsyncEngine,
        write_lock: asyncio.Lock | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        self.url = url
        self.write_engine = write_engine
        self.read_engine = read_engine
        self.dialect = dialect or Dialect()
        self._clock = clock
        self._write_lock = write_lock
        self._outbox_listeners: list[Callable[[], None]] = []

    @property
    def place(self) -> str:
        """The URL without user and password: which database this is."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Transaction]:
        """Open a write transaction; commits when the block ends, rolls back when it raises.

        Raises `DatabaseUnavailable` when the database cannot be reached.
        """
        if self._write_lock is None:
            async with self._transaction() as transaction:
                yield transaction
        else:
            # SQLite has one writer: waiting here keeps "database is locked" away and the order fair.
            async with self._write_lock, self._transaction() as transaction:
                yield transaction
        if transaction.emitted:
            for listener in self._outbox_listeners:
                listener()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Transaction]:
        async with self._connected(self.write_engine, writes=True) as connection:
            transaction = Transaction(connection, self._clock, self.dialect)
            if (fence := write_fence.get()) is not None:
                await fence(transaction)
            await transaction.claim_idempotency_key()
            yield transaction

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Reader]:
        """Open a read-only snapshot. Raises `DatabaseUnavailable` when the database cannot be reached."""
        async with self._connected(self.read_engine, writes=False) as connection:
            yield Reader(connection, self._clock, self.dialect)

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine, *, writes: bool) -> AsyncIterator[AsyncConnection]:
        """Lend a connection in a transaction; what the driver says of a database that is not there becomes `DatabaseUnavailable`."""
        async with AsyncExitStack() as stack:
            try:
                connection = await self.dialect.connect(stack, engine)
            except Exception as error:  # connecting raises what the driver, the system and the server like to
                raise DatabaseUnavailable("the database cannot be reached now; try again") from error
            async with _Unavailable(self.dialect, connection, service=urlsplit(self.url).fragment):
                start = self.dialect.at_start(writes=writes)
                if start is not None:
                    await connection.execute(start)
                yield connection
                if writes:
                    await connection.commit()

    async def ping(self) -> None:
        """Raise `DatabaseUnavailable` when the database does not answer."""
        async with self.read() as reader:
            await reader.scalar(text("SELECT 1"))

    def connections(self) -> dict[str, tuple[int, int]]:
        """Return per use (`read`, `write`) how many connections are lent out and how many wait, where there is a pool."""
        engines = {"read": self.read_engine, "write": self.write_engine}
        pools = {use: engine.pool for use, engine in engines.items()}
        return {use: (pool.checkedout(), pool.checkedin()) for use, pool in pools.items() if isinstance(pool, QueuePool)}

    def on_outbox(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each commit that wrote an event: the relay need not poll."""
        self._outbox_listeners.append(listener)

    def on_statement(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener` with each statement sent, from either engine (tests count queries). Returns the way to stop it."""

        def heard(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            listener(statement)

        engines = {engine.sync_engine for engine in (self.write_engine, self.read_engine)}
        for engine in engines:
            event.listen(engine, "before_cursor_execute", heard)

        def stop() -> None:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", heard)

        return stop


class _Unavailable:
    """Turns connection faults of the driver into `DatabaseUnavailable`, missing tables into `NotMigrated`; all else passes through."""

    def __init__(self, dialect: Dialect, connection: AsyncConnection, *, service: str) -> None:
        self._dialect = dialect
        self._connection = connection
        self._service = service

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, TimeoutError):
            # The driver's own deadline: what became of the statement is unknown, and a rollback would wait as long again.
            await self._connection.invalidate()
            raise DatabaseUnavailable("the database did not answer in time; try again") from error
        if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError):
            return
        if error.connection_invalidated or self._dialect.unavailable(error):
            raise DatabaseUnavailable("the database cannot be used now; try again") from error
        if self._dialect.lacks_tables(error):
            log.error("a table or column is not there: run latebindd migrate", service=self._service, error=str(error.orig)[:200])
            raise NotMigrated.of(self._service) from error


#: scheme -> adapter; the contract suite runs over these.
SCHEMES = ("sqlite", "postgresql")


@asynccontextmanager
async def open_database(url: str, clock: Clock) -> AsyncIterator[Database]:
    """Open the database that the URL names: `sqlite:/path/to/file.db` or `postgresql://user:password@host/database#service`.

    Nothing is connected before it is needed. Tables are made by `kit.db.migrate`.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        from kit.db.sqlite import open_sqlite  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_sqlite(url, clock) as database:
            yield database
        return
    if scheme == "postgresql":
        from kit.db.postgres import open_postgres  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_postgres(url, clock) as database:
            yield database
        return
    raise ValueError(f"no database adapter for {scheme!r}: use one of {', '.join(SCHEMES)}")
