"""The event log in one SQLite file, for one process: durable, bounded, with consumer groups inside the process.

`local_file` holds the bytes; this module knows what is where, who reads which partition and how far everyone is, so a consumer at
the end of the log waits without reading anything. A lock file keeps a second process out. Records that every group has committed
are deleted in the background. It does not spread over machines: that is what the Kafka adapter is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from kit.checks import Findings, note, ok, room
from kit.errors import TooLarge, Unavailable
from kit.eventlog import MAX_PARTITIONS, Consumer, LogFull, Message, Record, check_partitions
from kit.eventlog.local_file import AddTopic, Append, Commit, Forget, Lane, LogFile, Operation, Outcome, Ping, Trim
from kit.eventlog.local_groups import Group, LocalConsumer
from kit.eventlog.local_reader import LogReader
from kit.lockfile import held
from kit.logs import get_logger
from kit.url_options import read_options

#: One message may be this big, key and headers included.
MAX_MESSAGE_BYTES = 16 << 20
#: So many bytes may wait for the writer before `append` waits.
MAX_WAITING_BYTES = 64 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")
_PING_S = 2.0
_NEVER = 1 << 62
#: What `read` yields at a time, at most.
_READ_RECORDS = 500
_READ_BYTES = 4 << 20
#: A log fuller than this share has a reader that does not keep up.
_CROWDED = 0.7

log = get_logger(__name__)
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Options:
    """What the URL may set. Sizes in bytes, times in seconds."""

    #: Size of the live part of the file at which `append` waits and then raises `LogFull`.
    max_bytes: int = 4 << 30
    #: Partitions of a topic when it is first used.
    partitions: int = 4
    #: Committed records are kept at least this long, so that a group that starts later still finds them; less when half full.
    keep_s: float = 3600.0
    #: Records of a topic that no group reads (dead letters) are kept this long.
    unread_s: float = 30 * 86400.0
    #: How long `append` waits for room.
    full_wait_s: float = 2.0
    #: Pause between two looks for records to delete.
    trim_every_s: float = 10.0

    @classmethod
    def of(cls, query: str) -> Options:
        """Read the query part of a URL. Raises `ValueError` for an unknown name or a bad number."""
        options = read_options(cls, query, "the URL of a local log")
        if options.max_bytes < 1 << 16 or not 1 <= options.partitions <= MAX_PARTITIONS:
            raise ValueError(f"max_bytes is at least 65536, partitions between 1 and {MAX_PARTITIONS}")
        return options


class LocalLog:
    """See `kit.eventlog.EventLog`. Made by `open_local_log`; belongs to the event loop it was opened in."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path = path
        self.reader = LogReader(path)
        self.lanes: dict[int, Lane] = {}
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._file = LogFile(path, self._loop, self._deliver)
        self._topics: dict[str, list[Lane]] = {}
        self._groups: dict[str, Group] = {}
        self._joining = asyncio.Lock()
        self._trimming = asyncio.Lock()
        self._used_bytes = 0
        self._waiting_bytes = 0
        self._room = asyncio.Event()
        self._trimmable = True
        self._closed = False

    async def open(self) -> None:
        """Read what the file holds."""
        contents = await self._file.open()
        for lane in contents.lanes:
            self._add_lanes(lane.topic, [*self._topics.get(lane.topic, ()), lane])
        self._groups = {name: Group(name, committed) for name, committed in contents.commits.items()}
        self._used_bytes = contents.used_bytes

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        self._closed = True
        self._room.set()
        await self.reader.close()
        await self._file.close()

    async def append(self, topic: str, messages: Sequence[Message]) -> None:
        """Write all messages or none; see `kit.eventlog.EventLog`. Raises `TooLarge` for a message over `MAX_MESSAGE_BYTES`."""
        lanes = self._topics.get(topic) or await self._topic(topic)
        count = len(lanes)
        parts = [(lanes[zlib.crc32(message.key.encode()) % count].id, _encoded(message)) for message in messages]
        size = 0
        for _, encoded in parts:
            size += len(encoded)
        if self._crowded(size):
            await self._wait_for_room(size)
        if not parts:
            return
        self._waiting_bytes += size
        await self._submit(Append(self._loop.create_future(), parts, size))

    async def make_topics(self, topics: Mapping[str, int | None]) -> None:
        """Make the topics that do not exist; see `kit.eventlog.EventLog`."""
        check_partitions(topics)
        for topic, partitions in topics.items():
            await self._topic(topic, partitions)

    @asynccontextmanager
    async def consumer(self, group: str, topics: Sequence[str]) -> AsyncIterator[Consumer]:
        """Join a group; see `kit.eventlog.EventLog`."""
        if not _NAME.fullmatch(group):
            raise ValueError(f"not a group name: {group!r}")
        lanes = {topic: self._topics.get(topic) or await self._topic(topic) for topic in topics}
        async with self._joining:
            joined = self._groups.setdefault(group, Group(group, {}))
            # A group is durable from the start: from now on nothing it has not read is deleted.
            new = {lane.id: 0 for of_topic in lanes.values() for lane in of_topic if lane.id not in joined.committed}
            if new:
                await self.write_commit(joined, new)
        consumer = LocalConsumer(self, joined, frozenset(topics))
        joined.members.append(consumer)
        for of_topic in lanes.values():
            joined.share(of_topic)
        try:
            yield consumer
        finally:
            joined.members.remove(consumer)
            for of_topic in lanes.values():
                consumer.take(of_topic, ())
                joined.share(of_topic)

    async def lag(self, group: str, topic: str) -> int:
        """Return how many records of the topic the group has not committed; all of them for an unknown group."""
        return sum(head - done for done, head in (await self.progress(group, topic)).values())

    async def progress(self, group: str, topic: str) -> Mapping[int, tuple[int, int]]:
        """Return how far the group is in each partition; see `kit.eventlog.EventLog`."""
        known = self._groups.get(group)
        committed = known.committed if known else {}
        return {lane.partition: (max(committed.get(lane.id, 0), lane.oldest), lane.head) for lane in self._topics.get(topic, ())}

    async def read(self, topic: str) -> AsyncIterator[Sequence[Record]]:
        """Yield what is there; see `kit.eventlog.EventLog`."""
        for lane in self._topics.get(topic, ()):
            position, end = lane.oldest, lane.head
            while position < end:
                records = [one for one in await self.reader.read([(lane, position)], _READ_RECORDS, _READ_BYTES) if one.offset < end]
                if not records:
                    break  # deleted meanwhile
                yield records
                position = records[-1].offset + 1

    async def forget(self, group: str) -> None:
        """Give up a group that will never read again, so that it no longer keeps records from being deleted."""
        known = self._groups.get(group)
        if known is None:
            return
        if known.members:
            raise ValueError(f"{group} still has consumers")
        del self._groups[group]
        await self._submit(Forget(self._loop.create_future(), group))
        self._trimmable = True

    async def ping(self) -> None:
        """Write nothing, durably; raises `Unavailable` when that does not work."""
        try:
            async with asyncio.timeout(_PING_S):
                await self._submit(Ping(self._loop.create_future()))
        except TimeoutError:
            raise Unavailable("the event log does not answer") from None

    async def examine(self, topics: Sequence[str]) -> Findings:
        """Say how full the log is; see `kit.eventlog.EventLog`."""
        await self.ping()
        there = sum(topic in self._topics for topic in topics)
        yield ok("topics", f"{there} of {len(topics)} are there; the others are made at their first use")
        share = self._used_bytes / self._options.max_bytes
        if share > _CROWDED:
            yield note("size", f"{share:.0%} of max_bytes are in use", "a reader is far behind; raise max_bytes in LATEBIND_EVENTLOG_URL")
        else:
            yield ok("size", f"{share:.0%} of max_bytes are in use")
        yield room(self._path.parent)

    @property
    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        return self._used_bytes

    def lane(self, topic: str, partition: int) -> Lane | None:
        """Return the lane of a partition, or None."""
        lanes = self._topics.get(topic, [])
        return lanes[partition] if 0 <= partition < len(lanes) else None

    async def write_commit(self, group: Group, offsets: Mapping[int, int]) -> None:
        """Make a commit durable, then let the group see it."""
        await self._submit(Commit(self._loop.create_future(), group.name, offsets))
        for lane, offset in offsets.items():
            group.committed[lane] = max(offset, group.committed.get(lane, 0))
        self._trimmable = True
        self._room.set()

    async def trim(self) -> None:
        """Delete what every group has committed and what is old enough; `open_local_log` calls it again and again."""
        async with self._trimming:
            while self._trimmable and not self._closed:
                limits = self._limits()
                more = bool(limits) and await self._submit(Trim(self._loop.create_future(), limits))
                # What was too young is looked at again with the next turn.
                self._trimmable = more or any(before_ms != _NEVER for _, before_ms in limits.values())
                if not more:
                    return

    def _limits(self) -> dict[int, tuple[int, int]]:
        """Per lane the offset below which, and the moment (Unix ms) before which, records may be deleted."""
        options, now_ms = self._options, time.time_ns() // 1_000_000
        plenty = self._used_bytes < options.max_bytes // 2
        limits: dict[int, tuple[int, int]] = {}
        for lane in self.lanes.values():
            commits = [group.committed[lane.id] for group in self._groups.values() if lane.id in group.committed]
            keep_s = (options.keep_s if plenty else 0.0) if commits else options.unread_s
            below = min(commits, default=lane.head)
            if below > lane.oldest:
                limits[lane.id] = (below, now_ms - int(keep_s * 1000) if keep_s else _NEVER)
        return limits

    def _crowded(self, size: int) -> bool:
        return self._used_bytes + self._waiting_bytes + size > self._options.max_bytes or self._waiting_bytes + size > MAX_WAITING_BYTES

    async def _wait_for_room(self, size: int) -> None:
        try:
            async with asyncio.timeout(self._options.full_wait_s):
                while self._crowded(size):
                    if self._closed:
                        raise Unavailable("the event log is closed")
                    await self.trim()
                    self._room.clear()
                    if self._crowded(size):
                        await self._room.wait()
        except TimeoutError:
            raise LogFull("the event log is full; consumers have to catch up first") from None

    async def _submit(self, operation: Operation) -> Any:
        if self._closed:
            raise Unavailable("the event log is closed")
        self._file.submit(operation)
        return await operation.future

    async def _topic(self, topic: str, partitions: int | None = None) -> list[Lane]:
        if not _NAME.fullmatch(topic):
            raise ValueError(f"not a topic name: {topic!r}")
        async with self._joining:
            if topic not in self._topics:
                lanes = await self._submit(AddTopic(self._loop.create_future(), topic, partitions or self._options.partitions))
                self._add_lanes(topic, lanes)
            return self._topics[topic]

    def _add_lanes(self, topic: str, lanes: list[Lane]) -> None:
        self._topics[topic] = lanes
        self.lanes.update((lane.id, lane) for lane in lanes)

    def _deliver(self, outcome: Outcome) -> None:
        """In the event loop, after a transaction: note what changed, then wake who waits for it."""
        taken = self._used_bytes + self._waiting_bytes
        if outcome.error is None:
            self._used_bytes = outcome.used_bytes
            for lane_id, offset in outcome.oldest.items():
                self.lanes[lane_id].oldest = offset
            topics = set()
            for lane_id, head in outcome.heads.items():
                lane = self.lanes[lane_id]
                lane.head = head
                topics.add(lane.topic)
            for group in self._groups.values():
                for member in group.members:
                    if not topics.isdisjoint(member.topics):
                        member.wake.set()
        results = outcome.results or [None] * len(outcome.operations)
        for operation, result in zip(outcome.operations, results, strict=True):
            if isinstance(operation, Append):
                self._waiting_bytes -= operation.size
            if operation.future.done():
                continue
            if outcome.error is None:
                operation.future.set_result(result)
            else:
                operation.future.set_exception(outcome.error)
        if self._used_bytes + self._waiting_bytes < taken:
            self._room.set()


def _encoded(message: Message) -> bytes:
    headers = message.headers if type(message.headers) is dict else dict(message.headers)
    for name, value in headers.items():
        if type(name) is not str or type(value) is not str:
            raise TypeError(f"headers hold text, {name!r} does not")
    encoded = _encode((message.key, message.value, headers))
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise TooLarge(f"a message of the event log has at most {MAX_MESSAGE_BYTES} bytes")
    return encoded


async def _keep_trimming(eventlog: LocalLog, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await eventlog.trim()
        except Unavailable:
            log.warning("records could not be deleted from the event log; trying again", pause_s=every_s)


@asynccontextmanager
async def open_local_log(url: str) -> AsyncIterator[LocalLog]:
    """Open `local:/path/to/log.db?…`; the query may set every field of `Options`.

    Raises `Unavailable` when the file cannot be used or another process has it, `ValueError` for a bad URL.
    """
    parts = urlsplit(url)
    if not parts.path or parts.netloc:
        raise ValueError("a local log is named local:/path/to/log.db")
    path = Path(unquote(parts.path))
    options = Options.of(parts.query)
    with held(path.with_name(f"{path.name}.lock"), f"the event log {path}"):
        eventlog = LocalLog(path, options)
        await eventlog.open()
        trimming = asyncio.create_task(_keep_trimming(eventlog, options.trim_every_s), name="trim event log")
        try:
            yield eventlog
        finally:
            trimming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await trimming
            await eventlog.close()
