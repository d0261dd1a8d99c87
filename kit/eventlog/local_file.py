"""The SQLite file behind the local log, and the one thread that writes it.

That thread owns the only connection that writes or checkpoints, because SQLite before 3.51.3 can corrupt a WAL file that two
connections write (LIBRARIES 3.2). Everything that waits when it turns to its queue goes into one transaction, so many appends
share one fsync. It knows lanes and offsets, not consumers; `local_reader` reads.

A lane is one partition of one topic. Records lie in segments, one row for what one transaction brought to one lane: `id` is
`lane << 40 | offset of the first record`, `body` a msgpack array of `[key, value, headers]`. The last segment of a lane is never
deleted: it says where offsets go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import Unavailable
from kit.eventlog import LogFull
from kit.logs import get_logger

OFFSET_BITS = 40
OFFSET_MASK = (1 << OFFSET_BITS) - 1
FORMAT = 1
#: A segment holds at most so many records, and no further one once it has so many bytes.
SEGMENT_RECORDS = 512
SEGMENT_BYTES = 1 << 20
#: One transaction takes at most so many bytes, so that nobody waits long behind it.
TRANSACTION_BYTES = 16 << 20
_CHECKPOINT_PAGES = 4000
_TRIM_SEGMENTS = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lanes (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL, UNIQUE (topic, partition));
CREATE TABLE IF NOT EXISTS segments (id INTEGER PRIMARY KEY, records INTEGER NOT NULL, at_ms INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS commits (
    reader TEXT NOT NULL, lane INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (reader, lane)
) WITHOUT ROWID;
"""

log = get_logger(__name__)


@dataclass(slots=True)
class Lane:
    """One partition. `head` is the offset the next record gets, `oldest` the lowest that is still there."""

    id: int
    topic: str
    partition: int
    head: int = 0
    oldest: int = 0


@dataclass(slots=True, eq=False)
class Operation:
    """Something for the writer; `future` ends when it is durable."""

    future: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class Append(Operation):
    """Encoded records with their lanes."""

    parts: Sequence[tuple[int, bytes]]
    size: int


@dataclass(slots=True, eq=False)
class Commit(Operation):
    """Per lane the offset below which a group is done; a commit never goes back."""

    group: str
    offsets: Mapping[int, int]


@dataclass(slots=True, eq=False)
class AddTopic(Operation):
    """Make the lanes of a topic; the result is the list of its lanes."""

    topic: str
    partitions: int


@dataclass(slots=True, eq=False)
class Trim(Operation):
    """Delete whole segments below an offset and older than a moment, per lane. The result says whether more is left to delete."""

    limits: Mapping[int, tuple[int, int]]


@dataclass(slots=True, eq=False)
class Forget(Operation):
    """Remove a group and its commits."""

    group: str


@dataclass(slots=True, eq=False)
class Ping(Operation):
    """An empty transaction."""


@dataclass(slots=True)
class Outcome:
    """What a transaction changed: heads and oldest offsets per lane, bytes in use, or the error that undid it."""

    operations: Sequence[Operation]
    results: Sequence[Any] = ()
    heads: Mapping[int, int] = field(default_factory=dict)
    oldest: Mapping[int, int] = field(default_factory=dict)
    used_bytes: int = 0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What the file held when it was opened."""

    lanes: Sequence[Lane]
    commits: Mapping[str, Mapping[int, int]]
    used_bytes: int


def _translate(error: Exception) -> Exception:
    """Our error for one of SQLite's."""
    if isinstance(error, sqlite3.Error):
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return LogFull("the disk is full")
        return Unavailable(f"the event log cannot be written: {error}")
    return error


class LogFile:
    """Opens the file and runs the writer. `deliver` is called in the event loop after each transaction."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop, deliver: Callable[[Outcome], None]) -> None:
        self._path = path
        self._loop = loop
        self._deliver = deliver
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._next: dict[int, int] = {}
        self._writer = threading.Thread(target=self._write_loop, name=f"log-writer {path.name}", daemon=True)
        self._opened: asyncio.Future[Contents] = loop.create_future()

    async def open(self) -> Contents:
        """Start the writer and return what the file holds. Raises `Unavailable` for a file that cannot be used."""
        self._writer.start()
        try:
            return await asyncio.shield(self._opened)
        except sqlite3.Error as error:
            raise Unavailable(f"{self._path} cannot be opened as an event log: {error}") from error

    def submit(self, operation: Operation) -> None:
        """Queue for the writer."""
        self._queue.put(operation)

    async def close(self) -> None:
        """Write what is queued, then close. Readers close before."""
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._writer.join)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=64)
        try:
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
                "busy_timeout=5000",
                "temp_store=MEMORY",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
            # What an earlier process left in the WAL reaches the main file before anything new is acknowledged.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            (found,) = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
            if found != FORMAT:
                raise sqlite3.DatabaseError(f"format {found}, this program knows {FORMAT}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _contents(self, connection: sqlite3.Connection) -> Contents:
        lanes = [Lane(*row) for row in connection.execute("SELECT id, topic, partition FROM lanes ORDER BY id")]
        for lane in lanes:
            span = (lane.id << OFFSET_BITS, lane.id << OFFSET_BITS | OFFSET_MASK)
            last = connection.execute("SELECT id, records FROM segments WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1", span).fetchone()
            if last is not None:
                lane.head = (last[0] & OFFSET_MASK) + last[1]
                lane.oldest = connection.execute("SELECT min(id) FROM segments WHERE id BETWEEN ? AND ?", span).fetchone()[0] & OFFSET_MASK
        commits: dict[str, dict[int, int]] = {}
        for group, lane_id, offset in connection.execute("SELECT reader, lane, next FROM commits"):
            commits.setdefault(group, {})[lane_id] = offset
        self._next = {lane.id: lane.head for lane in lanes}
        return Contents(lanes, commits, _used_bytes(connection))

    def _write_loop(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect()
            contents = self._contents(connection)
        except Exception as error:
            if connection is not None:
                connection.close()
            self._tell(_settle, self._opened, None, error)
            return
        log.info("event log opened", path=str(self._path), sqlite=sqlite3.sqlite_version, used_bytes=contents.used_bytes)
        self._tell(_settle, self._opened, contents, None)
        last = False
        while not last:
            operations, last = self._take()
            if not operations:
                continue
            try:
                if connection is None:
                    connection = self._connect()
                    self._contents(connection)
                outcome = self._transact(connection, operations)
            except Exception as error:
                outcome = Outcome(operations, error=_translate(error))
                connection = self._after_failure(connection, error)
            self._tell(self._deliver, outcome)
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.close()

    def _take(self) -> tuple[list[Operation], bool]:
        """Wait for one operation and take all that have come meanwhile, up to one transaction's bytes. True: it was the last."""
        operations: list[Operation] = []
        size = 0
        operation = self._queue.get()
        with contextlib.suppress(queue.Empty):
            while operation is not None:
                operations.append(operation)
                if isinstance(operation, Append):
                    size += operation.size
                if size >= TRANSACTION_BYTES:
                    return operations, False
                operation = self._queue.get_nowait()
            return operations, True
        return operations, False

    def _after_failure(self, connection: sqlite3.Connection | None, error: Exception) -> sqlite3.Connection | None:
        """Undo the transaction. After an I/O error the descriptor is not used again: whether its pages reached the disk is unknown."""
        log.error("event log transaction failed", path=str(self._path), error=str(error))
        if connection is None:
            return None
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                self._contents(connection)
                return connection
        except sqlite3.Error:
            log.warning("event log rollback failed; the file is opened again", path=str(self._path))
        connection.close()
        return None

    def _transact(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> Outcome:
        results: list[Any] = []
        coming: dict[int, list[bytes]] = {}
        oldest: dict[int, int] = {}
        connection.execute("BEGIN IMMEDIATE")
        for operation in operations:
            result: Any = None
            if isinstance(operation, Append):
                for lane, encoded in operation.parts:
                    coming.setdefault(lane, []).append(encoded)
            elif isinstance(operation, Commit):
                connection.executemany(
                    "INSERT INTO commits VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET next = max(next, excluded.next)",
                    [(operation.group, lane, offset) for lane, offset in operation.offsets.items()],
                )
            elif isinstance(operation, AddTopic):
                result = self._add_topic(connection, operation)
            elif isinstance(operation, Trim):
                result = self._trim(connection, operation, oldest)
            elif isinstance(operation, Forget):
                connection.execute("DELETE FROM commits WHERE reader = ?", (operation.group,))
            results.append(result)
        heads = self._insert(connection, coming)
        connection.execute("COMMIT")
        self._next.update(heads)
        return Outcome(operations, results, heads, oldest, _used_bytes(connection))

    def _insert(self, connection: sqlite3.Connection, coming: Mapping[int, list[bytes]]) -> dict[int, int]:
        at_ms = time.time_ns() // 1_000_000
        heads: dict[int, int] = {}
        rows: list[tuple[int, int, int, bytes]] = []
        for lane, entries in coming.items():
            offset = self._next[lane]
            for chunk in _chunks(entries):
                # 0xdd: a msgpack array with a 32-bit length; the entries are encoded already.
                body = b"".join((b"\xdd", len(chunk).to_bytes(4), *chunk))
                rows.append((lane << OFFSET_BITS | offset, len(chunk), at_ms, body))
                offset += len(chunk)
            heads[lane] = offset
        connection.executemany("INSERT INTO segments VALUES (?, ?, ?, ?)", rows)
        return heads

    def _add_topic(self, connection: sqlite3.Connection, operation: AddTopic) -> list[Lane]:
        """Lanes of the topic. One that exists keeps its number of partitions, or keys would change their place."""
        query = "SELECT id, topic, partition FROM lanes WHERE topic = ? ORDER BY partition"
        if connection.execute(query, (operation.topic,)).fetchone() is None:
            connection.executemany(
                "INSERT INTO lanes (topic, partition) VALUES (?, ?)", [(operation.topic, number) for number in range(operation.partitions)]
            )
        lanes = [Lane(*row) for row in connection.execute(query, (operation.topic,))]
        for lane in lanes:
            lane.head = self._next.setdefault(lane.id, 0)
        return lanes

    def _trim(self, connection: sqlite3.Connection, operation: Trim, oldest: dict[int, int]) -> bool:
        budget = _TRIM_SEGMENTS
        for lane, (below, before_ms) in operation.limits.items():
            base = lane << OFFSET_BITS
            rows = connection.execute(
                "SELECT id, records, at_ms FROM segments WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?", (base, base | below, budget)
            ).fetchall()
            # The segment that holds the last record of the lane stays, whoever has read it.
            done = 0
            for row_id, records, at_ms in rows:
                end = (row_id & OFFSET_MASK) + records
                if end > below or at_ms >= before_ms or end >= self._next[lane]:
                    break
                done += 1
            if done:
                end = (rows[done - 1][0] & OFFSET_MASK) + rows[done - 1][1]
                connection.execute("DELETE FROM segments WHERE id BETWEEN ? AND ?", (base, base | (end - 1)))
                oldest[lane] = end
                budget -= done
            if budget <= 0:
                return True
        return False

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        # The loop may be closed when a test or a crash ends it first; nobody waits any more then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def _chunks(entries: list[bytes]) -> list[list[bytes]]:
    """Cut into segments. Normally there is one."""
    if len(entries) <= SEGMENT_RECORDS and sum(map(len, entries)) <= SEGMENT_BYTES:
        return [entries]
    chunks: list[list[bytes]] = []
    size = SEGMENT_BYTES
    for entry in entries:
        if size >= SEGMENT_BYTES or len(chunks[-1]) >= SEGMENT_RECORDS:
            chunks.append([])
            size = 0
        chunks[-1].append(entry)
        size += len(entry)
    return chunks


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * page_size)
