"""ClickHouse (18.16 or newer) behind the column store port: `clickhouse-driver` in threads, one connection each.

URL: `clickhouse://user:password@host:9000/database?…`. The SQL is what 18.16 and chDB both understand. Old servers have neither insert
tokens nor parameters of statements: repeats are told apart by the identity of their rows (docs/adr/0115), and a parameter is written
into the statement as a checked, escaped literal of its type.
"""

from __future__ import annotations

import asyncio
import math
import re
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from clickhouse_driver import Client, defines, errors
from clickhouse_driver.block import BlockInfo, ColumnOrientedBlock
from clickhouse_driver.columns.service import write_column
from clickhouse_driver.protocol import ClientPacketTypes
from clickhouse_driver.streams.native import BlockOutputStream
from clickhouse_driver.varint import write_varint
from clickhouse_driver.writer import write_binary_str, write_binary_uint8

from kit.checks import Findings, clocks, fault, note, ok
from kit.errors import Unavailable
from kit.logs import get_logger
from kit.olap import Coded, Columns, StatementFailed
from kit.olap.migrate import examine_schema
from kit.olap.native import encoded
from kit.olap.values import NAME, PASSING, WRAPPED, Queue, insertable, quoted, rendered
from kit.silence import Silent, Threads
from kit.url_options import read_options

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*):([A-Za-z0-9(), ']+)\}")
_INTEGER = re.compile(r"U?Int\d+")
_INLINE_VALUES = re.compile(r"\s*INSERT\b.*\bVALUES\b", re.IGNORECASE | re.DOTALL)
#: What a value of a plain type must look like; the engine itself would read "-1" as a large unsigned number.
_SHAPES = (
    (re.compile(r"UInt\d+"), re.compile(r"\d{1,39}")),
    (re.compile(r"Int\d+"), re.compile(r"-?\d{1,39}")),
    (re.compile(r"Float\d+"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|nan|-?inf")),
)
_QUOTE = "'"
_QUERY_SECONDS = 60
_PING_S = 1.0
#: How long a statement waits for a connection, of which there are few.
_WAIT_S = 10.0
_EXAMINE_S = 5.0
_OLDEST = (18, 16)
#: Nobody is there, or what answers is not ClickHouse, or it speaks in the middle of something.
_AWAY = (errors.NetworkError, errors.UnexpectedPacketFromServerError, errors.UnknownPacketFromServerError, EOFError, OSError)
#: Codes of wrong credentials, old servers' and new ones'.
_REFUSED = frozenset({192, 193, 194, 516})

log = get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What stands in the query of the URL. Times in seconds."""

    #: Statements at a time, per process; each has a thread and a connection.
    connections: int = 4
    connect_s: float = 2.0
    #: How long the server may be silent; at work it tells its progress all the time.
    answer_s: float = 10.0
    secure: bool = False


class _Blocks(BlockOutputStream):  # type: ignore[misc]
    """Writes columns that are bytes already as they are; the others as the driver does."""

    def write_columns(self, names_and_kinds: Sequence[tuple[str, str]], columns: Sequence[Any], rows: int) -> None:
        """Write one block."""
        revision = self.context.server_info.used_revision
        if revision >= defines.DBMS_MIN_REVISION_WITH_BLOCK_INFO:
            BlockInfo().write(self.fout)
        write_varint(len(columns), self.fout)
        write_varint(rows, self.fout)
        for (name, kind), column in zip(names_and_kinds, columns, strict=True):
            write_binary_str(name, self.fout)
            write_binary_str(kind, self.fout)
            if revision >= defines.DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION:
                write_binary_uint8(0, self.fout)
            if (ready := encoded(column, kind)) is not None:
                self.fout.write(ready)
            else:
                write_column(self.context, name, kind, _values(column, kind), self.fout)
        self.finalize()


class _Connection(Client):  # type: ignore[misc]
    """The driver's client, for inserts of whole columns: one block each, so that a batch is there whole or not at all."""

    def send_data(self, sample_block: Any, data: Sequence[Any], types_check: bool = False, columnar: bool = False) -> int:
        """Send the columns of an insert (called by the driver after the server has named their types)."""
        connection, rows = self.connection, len(data[0])
        write_varint(ClientPacketTypes.DATA, connection.fout)
        if connection.server_info.used_revision >= defines.DBMS_MIN_REVISION_WITH_TEMPORARY_TABLES:
            write_binary_str("", connection.fout)
        _Blocks(connection.fout, connection.context).write_columns(sample_block.columns_with_types, data, rows)
        self.receive_profile_events()
        connection.send_data(ColumnOrientedBlock())  # an empty block ends the data
        self.receive_profile_events()
        return rows


class ClickHouseStore:
    """See `kit.olap.ColumnStore`. Made by `open_clickhouse`; connects at the first statement, and makes its database then."""

    def __init__(self, address: Mapping[str, Any], database: str, options: Options) -> None:
        self._address, self._database, self._options = address, database, options
        trial_s = options.connect_s + options.answer_s + _PING_S
        self._threads = Threads("clickhouse", options.connections, wait_s=_WAIT_S, trial_s=trial_s, is_silent=_is_silent)
        self._pinging = ThreadPoolExecutor(1, thread_name_prefix="clickhouse-ping")
        self._queue = Queue(options.connections)
        self._idle: LifoQueue[Client] = LifoQueue()
        self._database_made = False

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        """Insert one batch; see `kit.olap.ColumnStore`. Raises `ValueError` for names or tokens that cannot be ones."""
        if insertable(table, columns, token):
            await self._run(lambda client: self._insert(client, table, columns))

    async def query(self, sql: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Run one statement; see `kit.olap.ColumnStore`."""
        statement = with_parameters(sql, params or {})
        return await self._run(lambda client: _rows(client, statement))

    async def execute(self, sql: str) -> None:
        """Run one statement without a result; see `kit.olap.ColumnStore`. Raises `ValueError` for an INSERT with values in its text."""
        if _INLINE_VALUES.match(sql):
            raise ValueError("the native protocol waits for ever after INSERT … VALUES in a text: write INSERT … SELECT")
        await self._run(lambda client: client.execute(sql))

    async def ping(self) -> None:
        """Raise `Unavailable` when the server does not answer within about a second, even while every connection waits for it."""

        def check() -> None:
            client = self._connect("", connect_timeout=_PING_S, send_receive_timeout=_PING_S)
            try:
                client.execute("SELECT 1")
            except Exception as error:
                raise _translated(error) from error
            finally:
                client.disconnect()

        await asyncio.get_running_loop().run_in_executor(self._pinging, check)

    async def examine(self, schema: Path) -> Findings:
        """Look at server, account and clock; see `kit.olap.ColumnStore`. The database is not made for it."""

        def look() -> tuple[str, int, bool]:
            client = self._connect("", connect_timeout=_PING_S, send_receive_timeout=_EXAMINE_S)
            try:
                statement = "SELECT version(), toUnixTimestamp(now()), (SELECT count() FROM system.databases WHERE name = {name:String})"
                ((version, now, there),) = client.execute(with_parameters(statement, {"name": self._database}))
                return version, int(now), bool(there)
            except Exception as error:
                raise _translated(error) from error
            finally:
                client.disconnect()

        try:
            version, now, there = await asyncio.get_running_loop().run_in_executor(self._pinging, look)
        except (Unavailable, StatementFailed) as refused:
            code = getattr(refused.__cause__, "code", 0)
            if code in _REFUSED:
                yield fault("server", "refuses user or password", "correct them in LATEBIND_OLAP_URL")
            else:
                yield fault("server", "does not answer", "check host and native port (9000, with TLS 9440) of LATEBIND_OLAP_URL")
            return
        numbers = tuple(int(part) for part in version.split(".")[:2])
        if numbers < _OLDEST:
            yield fault("server", f"ClickHouse {version} is too old", "use ClickHouse 18.16 or newer")
        else:
            yield ok("server", f"ClickHouse {version}")
        if there:
            yield await examine_schema(self, schema)
        else:
            advice = "`latebindd migrate` or the first use makes it; if there were figures before, LATEBIND_OLAP_URL names another"
            yield note("schema", f"there is no database {self._database}", advice)
        yield clocks(datetime.fromtimestamp(now, UTC), datetime.now(UTC))

    def close(self) -> None:
        """Finish what is queued and close the connections."""
        self._pinging.shutdown(wait=True)
        self._threads.close()
        with suppress(Empty):
            while True:
                self._idle.get_nowait().disconnect()

    async def _run(self, work: Callable[[Client], T]) -> T:
        with self._queue:
            try:
                return await self._threads.run(lambda: self._do(work))
            except Silent as silent:
                raise Unavailable("the column store does not answer now") from silent

    def _do(self, work: Callable[[Client], T]) -> T:
        client: Client | None = None
        try:
            client = self._client()
            answer = work(client)
        except Exception as error:
            if client is not None:
                client.disconnect()  # a statement that broke off leaves the connection in the middle of something
            raise _translated(error) from error
        self._idle.put(client)
        return answer

    def _client(self) -> Client:
        """Return an idle connection or a new one; there are never more than threads."""
        if not self._database_made:
            first = self._connect("")
            try:
                first.execute(f"CREATE DATABASE IF NOT EXISTS `{self._database}`")
            finally:
                first.disconnect()
            self._database_made = True
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._connect(self._database)

    def _connect(self, database: str, **timeouts: float) -> Client:
        own = {
            "connect_timeout": self._options.connect_s,
            "send_receive_timeout": self._options.answer_s,
            # Whether an idle connection still lives.
            "sync_request_timeout": _PING_S,
        }
        settings = {"max_execution_time": _QUERY_SECONDS}
        return _Connection(**self._address, database=database, secure=self._options.secure, settings=settings, **(own | timeouts))

    def _insert(self, client: Client, table: str, columns: Columns) -> None:
        client.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES", list(columns.values()), columnar=True)


def with_parameters(sql: str, params: Mapping[str, Any]) -> str:
    """Return the statement with each `{name:Type}` as a literal of that type.

    A value never becomes SQL: text is escaped, and what is no number is refused where a number is wanted. Raises `StatementFailed` for a
    parameter that is missing or of another type, `TypeError` for a value of a kind that no parameter has.
    """
    texts = {name: (rendered(value), value is None) for name, value in params.items()}

    def literal(found: re.Match[str]) -> str:
        name, kind = found[1], found[2]
        if name not in texts:
            raise StatementFailed(456, f"the parameter {name} is missing")
        text, is_null = texts[name]
        if is_null:
            if not kind.startswith("Nullable("):
                raise StatementFailed(457, f"the parameter {name} is NULL, not {kind}")
            return f"CAST(NULL AS {kind})"
        for of_kind, shape in _SHAPES:
            if of_kind.fullmatch(kind) and not shape.fullmatch(text):
                raise StatementFailed(457, f"the parameter {name} is not {kind}")
        if _INTEGER.fullmatch(kind):
            return text  # LIMIT takes nothing else
        if kind == "String":
            # `rendered` has escaped it already, as for a value that stands alone.
            return f"'{text}'"
        if kind.startswith("DateTime"):
            return f"toDateTime('{text}', 'UTC')"
        # The text of an array holds literals and is one itself; any other text is escaped already.
        return f"CAST({quoted(text) if kind.startswith('Array(') else _QUOTE + text + _QUOTE} AS {kind})"

    return _PARAMETER.sub(literal, sql)


def _values(column: Any, kind: str) -> Sequence[Any]:
    """The column as the driver takes it: a list of Python values, times with their zone."""
    if isinstance(column, Coded):
        texts = list(column.values)
        return [texts[code] for code in column.codes.tolist()]
    for name in ("tolist", "to_pylist"):
        if hasattr(column, name):
            column = getattr(column, name)()
            break
    while wrapped := WRAPPED.fullmatch(kind):
        kind = wrapped[1]
    if kind.startswith("DateTime"):
        return [value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value for value in column]
    return column if isinstance(column, list) else list(column)


def _rows(client: Client, statement: str) -> list[dict[str, Any]]:
    rows, columns = client.execute(statement, with_column_types=True)
    names = [name for name, _ in columns]
    zone = ZoneInfo(client.connection.server_info.timezone or "UTC")
    readers = [_reader(kind, zone) for _, kind in columns]
    if not any(readers):
        return [dict(zip(names, row, strict=True)) for row in rows]
    return [
        {name: reader(value) if reader and value is not None else value for name, value, reader in zip(names, row, readers, strict=True)}
        for row in rows
    ]


def _reader(kind: str, zone: ZoneInfo) -> Callable[[Any], Any] | None:
    while wrapped := WRAPPED.fullmatch(kind):
        kind = wrapped[1]
    if kind.startswith("DateTime"):
        return lambda value: (value if value.tzinfo else value.replace(tzinfo=zone)).astimezone(UTC)
    if kind.startswith("Float"):
        return lambda value: value if math.isfinite(value) else None
    if kind.startswith("Array(Float"):
        return lambda values: [value if math.isfinite(value) else None for value in values]
    if kind.startswith("Array("):
        return list
    return None


def _is_silent(error: Exception) -> bool:
    return isinstance(error.__cause__, errors.SocketTimeoutError | TimeoutError)


def _translated(error: Exception) -> Exception:
    if isinstance(error, StatementFailed | Unavailable):
        return error
    if isinstance(error, _AWAY) or (isinstance(error, errors.Error) and error.code in PASSING):
        log.warning("column store unavailable", code=getattr(error, "code", 0), error=str(error)[:300])
        return Unavailable("the column store cannot do this now")
    if isinstance(error, errors.ServerException):
        return StatementFailed(error.code, str(error.message).partition(" Stack trace:")[0])
    if isinstance(error, errors.Error | struct.error | TypeError | ValueError | AttributeError | OverflowError):
        return StatementFailed(0, f"a column cannot be read: {error}")
    return error


@asynccontextmanager
async def open_clickhouse(url: str) -> AsyncIterator[ClickHouseStore]:
    """Open the database of a `clickhouse://` URL. Raises `ValueError` for a URL without host or database."""
    parts = urlsplit(url)
    database = parts.path.strip("/")
    if not parts.hostname or not NAME.fullmatch(database):
        raise ValueError("a clickhouse URL names host and database: clickhouse://user:password@host:9000/latebind")
    options = read_options(Options, parts.query, "a clickhouse URL")
    address = {
        "host": parts.hostname,
        "port": parts.port or (9440 if options.secure else 9000),
        "user": unquote(parts.username or "default"),
        "password": unquote(parts.password or ""),
        "client_name": "latebind",
    }
    store = ClickHouseStore(address, database, options)
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)
