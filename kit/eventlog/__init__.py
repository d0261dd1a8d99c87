"""The event log port: durable, ordered per key, read by groups. Adapters: `local` (a SQLite file), `kafka`.

It moves bytes. What they mean is the business of each service's `events.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol
from urllib.parse import urlsplit

from kit.checks import Findings
from kit.errors import Unavailable

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class LogFull(Unavailable):
    """The log has no room; nothing was written. The caller keeps its data and tries again after `retry_after_s`."""

    code = "EVENT_LOG_FULL"
    retry_after_s = 5


class PartitionLost(Exception):
    """A commit came too late: the partition belongs to another consumer now, which receives the batch again."""


class ConsumerStoodStill(Exception):
    """A consumer was handed nothing for too long although there is something to read. Only a new one helps: leave it, and join again."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is appended. Records of one `key` keep their order."""

    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)


@dataclass(frozen=True, slots=True)
class Record:
    """A message in its place. `offset` rises within a partition; `timestamp_ms` is the log's clock, Unix milliseconds."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Records as they came, in order within each partition. Empty when nothing arrived in time."""

    records: tuple[Record, ...]

    def next_offsets(self) -> dict[tuple[str, int], int]:
        """Return per (topic, partition) the offset a commit of the whole batch stores: the one after its last record."""
        return {(record.topic, record.partition): record.offset + 1 for record in self.records}


class Consumer(Protocol):
    """One member of a group. Starts behind the group's last commit; a new group starts at the oldest record."""

    async def batch(self, *, max_records: int, max_bytes: int, max_wait_s: float) -> Batch:
        """Return what has arrived, at most `max_records` and about `max_bytes`, waiting at most `max_wait_s` for the first record.

        Each call goes on behind the call before, committed or not. Raises `Unavailable`, or `ConsumerStoodStill`.
        """
        ...

    async def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Remember durably that everything below `offsets` (per topic and partition) is done. Raises `PartitionLost`."""
        ...

    async def rewind(self) -> None:
        """Go back to the last commit: what was handed out but not committed comes again."""
        ...


class EventLog(Protocol):
    """Durable when `append` returns; redelivers what was not committed; never drops. When full it waits, then raises `LogFull`."""

    async def append(self, topic: str, messages: Sequence[Message]) -> None:
        """Write all messages; when this returns all of them are durable.

        Raises `LogFull`, or `Unavailable` when the log cannot be reached or did not answer in time. Then some of the messages may be there
        all the same: the caller repeats them with the same ids, which readers skip (docs/adr/0110).
        """
        ...

    async def make_topics(self, topics: Mapping[str, int | None]) -> None:
        """Make the topics that do not exist, each with so many partitions (None: as many as the URL says).

        One that exists keeps its partitions, or the keys in it would change their places. A topic that nobody made is made at its first
        use, as by None. Raises `ValueError` for a name or number that cannot be one, `Unavailable` when the log cannot be reached.
        """
        ...

    def consumer(self, group: str, topics: Sequence[str]) -> AbstractAsyncContextManager[Consumer]:
        """Join a group for some topics; leaving the context hands the partitions to the others."""
        ...

    async def lag(self, group: str, topic: str) -> int:
        """Return how many records of the topic the group has not committed."""
        ...

    async def progress(self, group: str, topic: str) -> Mapping[int, tuple[int, int]]:
        """Return per partition the offset below which the group is done, and the one that the next record gets."""
        ...

    def read(self, topic: str) -> AsyncIterator[Sequence[Record]]:
        """Yield all that is in a topic now, in order within each partition, some records at a time; then end.

        Joins no group: nothing is committed, and nothing is kept for the reader. Raises `Unavailable`.
        """
        ...

    async def ping(self) -> None:
        """Raise `Unavailable` when the log cannot be used now."""
        ...

    def examine(self, topics: Sequence[str]) -> Findings:
        """Look for what could be wrong with the log and these topics, in words (`latebindd doctor`); makes no topic.

        Raises `Unavailable` when it cannot go on.
        """
        ...


#: Partitions of one topic, at most.
MAX_PARTITIONS = 1024


def check_partitions(topics: Mapping[str, int | None]) -> None:
    """Raise `ValueError` for a number of partitions that no topic can have."""
    for topic, partitions in topics.items():
        if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
            raise ValueError(f"{topic} cannot have {partitions} partitions: between 1 and {MAX_PARTITIONS}")


#: scheme -> adapter; the contract suite runs over these.
SCHEMES = ("local", "kafka")


@asynccontextmanager
async def open_eventlog(url: str) -> AsyncIterator[EventLog]:
    """Open the log that the URL names: `local:/path/to/log.db?max_bytes=…&partitions=…` or `kafka://host:port`."""
    scheme = urlsplit(url).scheme
    if scheme == "local":
        from kit.eventlog.local import open_local_log  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_local_log(url) as log:
            yield log
        return
    if scheme == "kafka":
        from kit.eventlog.kafka import open_kafka_log  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_kafka_log(url) as log:
            yield log
        return
    raise ValueError(f"no event log adapter for {scheme!r}: use one of {', '.join(SCHEMES)}")
