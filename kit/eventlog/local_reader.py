"""Reads the SQLite file of the local log: one read-only connection in one thread. The format is described in `local_file`."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from kit.errors import Unavailable
from kit.eventlog import Record
from kit.eventlog.local_file import OFFSET_BITS, OFFSET_MASK, Lane

_decode = msgspec.msgpack.Decoder(list[tuple[str, bytes, dict[str, str]]]).decode


class _Found:
    """Records as they are found, until there are enough."""

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self.records: list[Record] = []
        self._max_records = max_records
        self._bytes_left = max_bytes

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._bytes_left -= len(record.value)

    @property
    def enough(self) -> bool:
        return len(self.records) >= self._max_records or (bool(self.records) and self._bytes_left <= 0)


class LogReader:
    """Opens the file at the first read; the writer must have it open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"log-reader {path.name}")
        self._connection: sqlite3.Connection | None = None

    async def read(self, wanted: Sequence[tuple[Lane, int]], max_records: int, max_bytes: int) -> list[Record]:
        """Return records of several lanes, each from its offset on; at least one, however big it is. Raises `Unavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, wanted, max_records, max_bytes)

    async def close(self) -> None:
        """Close the connection and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=True)

    def _read(self, wanted: Sequence[tuple[Lane, int]], max_records: int, max_bytes: int) -> list[Record]:
        found = _Found(max_records, max_bytes)
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            for lane, offset in wanted:
                self._read_lane(self._connection, lane, offset, found)
                if found.enough:
                    break
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            self._close()
            raise Unavailable(f"the event log cannot be read: {error}") from error
        return found.records

    def _read_lane(self, connection: sqlite3.Connection, lane: Lane, offset: int, found: _Found) -> None:
        base = lane.id << OFFSET_BITS
        # The wanted offset may lie inside a segment: begin with the last one that starts at or before it.
        rows = connection.execute(
            "SELECT id, records, at_ms, body FROM segments WHERE id >= max(?1, coalesce((SELECT max(id) FROM segments WHERE id <= ?2), 0))"
            " AND id <= ?3 ORDER BY id",
            (base, base | offset, base | OFFSET_MASK),
        )
        with contextlib.closing(rows):
            for row_id, records, at_ms, body in rows:
                first = row_id & OFFSET_MASK
                if first + records <= offset:
                    continue
                entries = _decode(body)
                for position in range(max(offset - first, 0), records):
                    key, value, headers = entries[position]
                    found.add(Record(lane.topic, lane.partition, first + position, key, value, headers, at_ms))
                    if found.enough:
                        return

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
