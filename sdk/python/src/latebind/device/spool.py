"""A bounded buffer on disk: records go in at one end, are sent from the other, and survive the process.

    <folder>/<part>/lock            held by the process that writes this part
    <folder>/<part>/<number>.seg    records, see below
    <folder>/<part>/cursor.json     how far sending has come, and how much was given up

A record is its CRC-32, the payload's length, its weight (u32 each), the dropped weight reported up to here (u64), all little-endian, and
the payload. A segment is only ever appended to, so a process that dies leaves at most a torn last record, which is skipped. When the buffer
is full the oldest segment goes, and the weight of its records counts as dropped. What was sent but not yet noted as sent is sent again:
records carry their own ids. This module does not know what a record means.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from latebind._files import disk_errors, read_json, remove, sync_folder, write_whole
from latebind.errors import Closed, DiskFull

_CRC = struct.Struct("<I")
_REST = struct.Struct("<IIQ")
_HEADER_SIZE = _CRC.size + _REST.size
MAX_RECORD_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One payload, where it ends, and what it weighs when it has to be given up."""

    payload: bytes
    weight: int
    reported: int
    segment: int
    end: int


@dataclass(slots=True)
class _Segment:
    number: int
    size: int


class Spool:
    """The buffer. Safe to use from several threads of the process that opened it.

    `max_bytes` bounds what lies on the disk; a segment is closed at a sixteenth of that.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._segment_bytes = max(max_bytes // 16, 4096)
        self._lock = threading.Lock()
        self._part, self._held = _claim_part(folder)
        cursor = read_json(self._part / "cursor.json")
        cursor = cursor if isinstance(cursor, dict) else {}
        self._first, self._offset = _count(cursor, "segment"), _count(cursor, "offset")
        self._dropped = _count(cursor, "dropped")
        self._reported = _count(cursor, "reported")
        self._segments: deque[_Segment] = deque()
        for path in sorted(self._part.glob("*.seg")):
            number = int(path.stem)
            if number < self._first:
                remove(path)
            else:
                self._segments.append(_Segment(number, path.stat().st_size))
                # A record may have been written and the cursor not: then the record knows better what has been reported.
                self._reported = max([self._reported, *(record.reported for record in _read_segment(path, number, 0))])
        self._descriptor: int | None = None
        self._closed = False
        _adopt_orphans(folder, self)

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def dropped(self) -> int:
        """Weight that was given up and not yet reported."""
        return self._dropped - self._reported

    def append(self, payload: bytes, *, weight: int = 1, reports_dropped: int = 0) -> None:
        """Store a record durably; it is there when this returns. Gives up the oldest records when the buffer is full.

        `reports_dropped` is the part of `dropped` that this record tells the server about; if the record is given up itself, it counts
        again. Raises DiskFull, and then nothing of the record is left and its weight counts as dropped; ValueError for a record that can
        never fit.
        """
        size = _HEADER_SIZE + len(payload)
        if len(payload) > MAX_RECORD_BYTES or size > self._max_bytes:
            raise ValueError(f"a record of {len(payload)} bytes does not fit into a buffer of {self._max_bytes}")
        with self._lock:
            if self._closed:
                raise Closed("the buffer is closed")
            while self._segments and self.size + size > self._max_bytes:
                self._drop_oldest()
            reported = self._reported + reports_dropped
            rest = _REST.pack(len(payload), weight + reports_dropped, reported) + payload
            try:
                self._write(_CRC.pack(zlib.crc32(rest)) + rest)
            except OSError as error:
                self._dropped += weight
                raise DiskFull(f"no room for telemetry in {self._part}: {error.strerror}") from error
            self._reported = reported

    def peek(self, limit: int = 1) -> list[Record]:
        """The oldest records that have not been acknowledged, at most `limit`."""
        found: list[Record] = []
        with self._lock:
            for segment in list(self._segments):
                start = self._offset if segment.number == self._first else 0
                for record in _read_segment(self._path(segment.number), segment.number, start):
                    found.append(record)
                    if len(found) == limit:
                        return found
        return found

    def acknowledge(self, record: Record) -> None:
        """Everything up to and including this record needs no more sending."""
        with self._lock:
            if (record.segment, record.end) <= (self._first, self._offset):
                return
            while self._segments and self._segments[0].number < record.segment:
                self._forget_oldest()
            self._first, self._offset = record.segment, record.end
            if self._segments and self._segments[0].number == record.segment and self._is_spent(self._segments[0]):
                self._forget_oldest()
            self._save_cursor()

    def give_up(self, record: Record) -> None:
        """Like `acknowledge`, but the record's weight counts as dropped."""
        with self._lock:
            self._dropped += record.weight
        self.acknowledge(record)

    def close(self) -> None:
        """Close the files and let another process take this part over."""
        with self._lock:
            self._closed = True
            self._close_segment()
            self._held.close()

    # --- inside, with the lock held ---------------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self._part / f"{number:012d}.seg"

    def _write(self, record: bytes) -> None:
        if self._descriptor is None or self._segments[-1].size + len(record) > self._segment_bytes:
            self._open_segment()
        assert self._descriptor is not None
        segment = self._segments[-1]
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError:
            # Nothing half written may stand before the next record.
            os.ftruncate(self._descriptor, segment.size)
            raise
        segment.size += len(record)

    def _open_segment(self) -> None:
        """Every process begins a new segment, so that what another one left torn stays last in its own."""
        self._close_segment()
        number = max(self._segments[-1].number if self._segments else 0, self._first) + 1
        self._descriptor = os.open(self._path(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._segments.append(_Segment(number, 0))
        sync_folder(self._part)

    def _close_segment(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_spent(self, segment: _Segment) -> bool:
        """Whether nothing unsent is left in the oldest segment, and nothing will be written to it."""
        is_open = self._descriptor is not None and segment is self._segments[-1]
        return not is_open and next(_read_segment(self._path(segment.number), segment.number, self._offset), None) is None

    def _forget_oldest(self) -> None:
        segment = self._segments.popleft()
        if not self._segments:
            self._close_segment()
        self._first, self._offset = segment.number + 1, 0
        remove(self._path(segment.number))

    def _drop_oldest(self) -> None:
        segment = self._segments[0]
        start = self._offset if segment.number == self._first else 0
        self._dropped += sum(record.weight for record in _read_segment(self._path(segment.number), segment.number, start))
        # The cursor stands behind the segment, and is on the disk, before the records go: a crash in between counts nothing twice.
        self._first, self._offset = segment.number + 1, 0
        self._save_cursor(durable=True)
        self._forget_oldest()

    def _save_cursor(self, *, durable: bool = False) -> None:
        """A lost cursor costs sending again, so that only what counts drops has to be durable. A full disk is no reason to stop sending."""
        cursor = {"segment": self._first, "offset": self._offset, "dropped": self._dropped, "reported": self._reported}
        with contextlib.suppress(DiskFull):
            write_whole(self._part / "cursor.json", json.dumps(cursor).encode(), durable=durable)


def _read_segment(path: Path, number: int, start: int) -> Iterator[Record]:
    """Whole records of a segment from an offset on; a torn or damaged one ends it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    position = start
    while position + _HEADER_SIZE <= len(data):
        length, weight, reported = _REST.unpack_from(data, position + _CRC.size)
        end = position + _HEADER_SIZE + length
        if end > len(data) or zlib.crc32(data[position + _CRC.size : end]) != _CRC.unpack_from(data, position)[0]:
            return
        yield Record(data[position + _HEADER_SIZE : end], weight, reported, number, end)
        position = end


def _claim_part(folder: Path) -> tuple[Path, BinaryIO]:
    """A part that no living process writes to: one that was left behind, or a new one."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        held = _try_lock(part)
        if held is not None:
            return part, held
    while True:
        part = folder / secrets.token_hex(6)
        part.mkdir()
        held = _try_lock(part)
        if held is not None:
            return part, held


def _try_lock(part: Path) -> BinaryIO | None:
    try:
        held = (part / "lock").open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (part / "lock").exists():
            return held
    except OSError:
        pass
    held.close()
    return None


def _adopt_orphans(folder: Path, spool: Spool) -> None:
    """Move the records of other parts whose process has died into this one. A crash in between only repeats records."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path != spool._part):
        held = _try_lock(part)
        if held is None:
            continue
        with held:
            cursor = read_json(part / "cursor.json")
            cursor = cursor if isinstance(cursor, dict) else {}
            first, offset = _count(cursor, "segment"), _count(cursor, "offset")
            for path in sorted(part.glob("*.seg")):
                number = int(path.stem)
                for record in _read_segment(path, number, offset if number == first else 0) if number >= first else ():
                    spool.append(record.payload, weight=record.weight)
            with spool._lock:
                spool._dropped += _count(cursor, "dropped") - _count(cursor, "reported")
                spool._save_cursor()
            for path in part.iterdir():
                remove(path)
            with contextlib.suppress(OSError):
                part.rmdir()


def _count(cursor: dict[str, object], name: str) -> int:
    value = cursor.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
