"""The column store inside this process: chDB on a folder.

The engine costs a second and about 270 MB, so it starts at the first statement, in a thread; inserts and queries have a thread and a
handle each, because a handle may be used by one thread only. A lock file keeps a second process out. Importing chDB changes the
working directory for a moment: paths elsewhere in the process have to be absolute.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from kit.checks import Findings, ok
from kit.errors import Unavailable
from kit.lockfile import held
from kit.logs import get_logger
from kit.olap import Coded, Columns, StatementFailed
from kit.olap.migrate import examine_schema
from kit.olap.values import PASSING, WRAPPED, Queue, insertable, rendered
from kit.pages import release_clean_pages
from kit.url_options import read_options

#: How many inserts back a token is still known, per table.
TOKENS_KEPT = 10_000
_CODE = re.compile(r"Code: (\d+)\.")
_QUERY_SECONDS = 60

_ONE_BLOCK = 1 << 40

log = get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What the URL may set."""

    #: Memory one statement may take, bytes.
    max_memory_bytes: int = 1 << 30
    #: Threads of one statement.
    max_threads: int = 2


class _Handle:
    """One connection with the one thread that uses it."""

    def __init__(self, name: str, connect: Callable[[], Any]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"chdb-{name}")
        self._connect = connect
        self._queue = Queue(1)
        self._connection: Any = None

    @property
    def started(self) -> bool:
        return self._connection is not None

    async def run(self, work: Callable[[Any], T]) -> T:
        with self._queue:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, work)

    def _do(self, work: Callable[[Any], T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return work(self._connection)
        except RuntimeError as error:
            self._renew()
            raise _translated(error) from error

    def _renew(self) -> None:
        """Take another connection: chDB keeps what a failed query had written already and puts it before the next answer."""
        failed, self._connection = self._connection, None
        if failed is not None:
            # The new one comes first, because the engine stops with its last connection.
            with suppress(RuntimeError):
                self._connection = self._connect()
            failed.close()

    def close(self) -> None:
        """Finish what is queued, then close the connection in its own thread."""
        self._thread.submit(self._close).result()
        self._thread.shutdown(wait=True)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ChdbStore:
    """See `kit.olap.ColumnStore`. Made by `open_chdb`."""

    def __init__(self, folder: Path, options: Options) -> None:
        self._folder, self._options = folder, options
        self._starting = threading.Lock()
        self._started = False
        self._writer = _Handle("insert", self._connect)
        self._reader = _Handle("query", self._connect)
        self._fitted: set[str] = set()

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        """Insert one batch; see `kit.olap.ColumnStore`. Raises `ValueError` for names or tokens that cannot be ones."""
        if insertable(table, columns, token):
            await self._writer.run(lambda connection: self._insert(connection, table, columns, token))

    async def query(self, sql: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Run one statement; see `kit.olap.ColumnStore`."""
        bound = {name: rendered(value) for name, value in (params or {}).items()}
        return await self._reader.run(lambda connection: _rows(connection.query(sql, "JSONCompact", params=bound).bytes()))

    async def execute(self, sql: str) -> None:
        """Run one statement without a result; see `kit.olap.ColumnStore`."""
        await self._writer.run(lambda connection: connection.query(sql, "Null", params={}))

    async def ping(self) -> None:
        """Raise `Unavailable` when the engine does not answer. An engine that nobody has needed yet is not started for this."""
        if self._folder.exists() and not os.access(self._folder, os.W_OK | os.X_OK):
            raise Unavailable("the folder of the column store cannot be written")
        if self._reader.started:
            await self.query("SELECT 1")

    async def examine(self, schema: Path) -> Findings:
        """Start the engine if it has data; see `kit.olap.ColumnStore`."""
        await self.ping()
        if not self._folder.exists():
            yield ok("engine", "has no data yet; its folder is made at the first use")
            return
        rows = await self.query("SELECT version() AS version")
        yield ok("engine", f"chDB {rows[0]['version']}")
        yield await examine_schema(self, schema)

    def close(self) -> None:
        """Close both handles, the reader's first: an open one can crash the interpreter when it exits."""
        self._reader.close()
        self._writer.close()

    def _connect(self) -> Any:
        with self._starting:
            try:
                from chdb import _chdb  # noqa: PLC0415 - a second and 270 MB, only when needed
            except ImportError as error:
                raise Unavailable("chDB is not installed; install latebind-server[embedded]") from error
            engine: Any = _chdb
            # Caches of a server are too big for a process that others share.
            connection = engine.connect(f"{self._folder}?mark_cache_size={64 << 20}")
            settings = {
                "session_timezone": "'UTC'",
                "max_memory_usage": self._options.max_memory_bytes,
                "max_threads": self._options.max_threads,
                "max_execution_time": _QUERY_SECONDS,
                "output_format_json_quote_64bit_integers": 0,
                "output_format_json_quote_denormals": 0,
            }
            connection.query("SET " + ", ".join(f"{name} = {value}" for name, value in settings.items()), "Null", params={})
            if not self._started:
                self._started = True
                log.info("column store started", path=str(self._folder), released_kib=release_clean_pages("_chdb"))
            return connection

    def _insert(self, connection: Any, table: str, columns: Columns, token: str) -> None:
        if table not in self._fitted:
            self._fit(connection, table)
        body = _arrow_stream(columns)
        # One block per insert: tokens count per block, so a retry must not be cut differently.
        inserter = connection.send_insert(
            f"INSERT INTO {table} ({', '.join(columns)})"
            f" SETTINGS insert_deduplicate = 1, insert_deduplication_token = '{token}', max_insert_threads = 1, max_execution_time = 0,"
            f" max_insert_block_size = {_ONE_BLOCK}, min_insert_block_size_rows = {_ONE_BLOCK}, min_insert_block_size_bytes = 0",
            "ArrowStream",
        )
        try:
            connection.insert_append(inserter, body)
            connection.insert_done(inserter)
        except BaseException:
            with suppress(RuntimeError):
                connection.insert_cancel(inserter)
            raise

    def _fit(self, connection: Any, table: str) -> None:
        """Give a table what the port promises: tokens that are remembered, and rows on the disk when an insert returns.

        Settings that old servers do not know cannot stand in the table's own definition.
        """
        found = connection.query(
            "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = {name:String}",
            "JSONCompact",
            params={"name": table},
        )
        definition = str(next((row["engine_full"] for row in _rows(found.bytes())), ""))
        if "MergeTree" in definition and "fsync_after_insert = 1" not in definition:
            connection.query(
                f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = {TOKENS_KEPT},"
                " fsync_after_insert = 1, fsync_part_directory = 1",
                "Null",
                params={},
            )
        self._fitted.add(table)


def _column(values: Any) -> Any:
    """A `Coded` column as a dictionary array, which is smaller and faster to read than the text it stands for; others as they are."""
    if not isinstance(values, Coded):
        return values
    arrow = _pyarrow()
    # The engine refuses a dictionary that holds a value twice.
    places: dict[str, int] = {}
    codes = arrow.array([places.setdefault(value, len(places)) for value in values.values], arrow.int32()).take(arrow.array(values.codes))
    return arrow.DictionaryArray.from_arrays(codes, arrow.array(list(places), arrow.string()))


def _arrow_stream(columns: Columns) -> bytes:
    """The batch as an Arrow IPC stream."""
    arrow = _pyarrow()
    try:
        batch = arrow.table({name: _column(values) for name, values in columns.items()})
    except (arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise StatementFailed(0, f"a column cannot be read: {error}") from error
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_table(batch)
    return bytes(sink.getvalue())


@cache
def _pyarrow() -> Any:
    """The pyarrow module, told that there is no pandas: else it loads it with the first list, which costs 60 MB for nothing."""
    import pyarrow  # noqa: PLC0415 - only when something is inserted

    if "pandas" not in sys.modules:
        sys.modules["pandas"] = None  # type: ignore[assignment]
        try:
            # Both halves of pyarrow, in Python and in C++, look once and remember.
            with suppress(AttributeError):
                _ = pyarrow.lib._pandas_api.have_pandas
            pyarrow.array([None])
        finally:
            del sys.modules["pandas"]
    return pyarrow


def _translated(error: RuntimeError) -> Exception:
    text = str(error)
    code = int(found[1]) if (found := _CODE.search(text)) else 0
    if code in PASSING or "Failed to create connection" in text:
        log.warning("column store unavailable", code=code, error=text[:500])
        return Unavailable("the column store cannot do this now")
    return StatementFailed(code, text)


def _rows(body: bytes) -> list[dict[str, Any]]:
    """Rows of the JSONCompact format, dates and times as Python's."""
    answer = msgspec.json.decode(body)
    names = [column["name"] for column in answer["meta"]]
    readers = [(place, reader) for place, column in enumerate(answer["meta"]) if (reader := _reader(column["type"]))]
    for row in answer["data"]:
        for place, reader in readers:
            if row[place] is not None:
                row[place] = reader(row[place])
    return [dict(zip(names, row, strict=True)) for row in answer["data"]]


def _reader(kind: str) -> Callable[[str], Any] | None:
    while wrapped := WRAPPED.fullmatch(kind):
        kind = wrapped[1]
    if kind == "Date":
        return date.fromisoformat
    if kind.startswith("DateTime"):
        return lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC)
    return None


def _absolute(path: str) -> Path:
    return Path(path).absolute()


@asynccontextmanager
async def open_chdb(url: str) -> AsyncIterator[ChdbStore]:
    """Open `chdb:/path/to/folder?…`; returns at once, the engine starts later. The query may set every field of `Options`.

    Raises `Unavailable` when another process has the folder, `ValueError` for a bad URL.
    """
    parts = urlsplit(url)
    if not parts.path or parts.netloc:
        raise ValueError("an embedded column store is named chdb:/path/to/folder")
    folder = _absolute(unquote(parts.path))
    if "?" in str(folder):
        raise ValueError("the folder of the column store may not have ? in its name")
    options = read_options(Options, parts.query, "a chdb URL")
    with held(folder.with_name(f"{folder.name}.lock"), f"the column store in {folder}"):
        store = ChdbStore(folder, options)
        try:
            yield store
        finally:
            await asyncio.to_thread(store.close)
