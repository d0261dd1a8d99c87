"""One member of a Kafka consumer group: bounded batches, explicit commits, and no commit for a partition that has moved on.

The library hands out as much as it fetched; what exceeds a batch's limits waits here. A rebalance forgets what waits and what was
handed out: those records go to the new owner of their partition, so a commit of them raises `PartitionLost`.

The library finds back by itself after most outages, not after all (aio-libs/aiokafka#1154): who gets nothing for three sessions looks
whether there is something, and raises `ConsumerStoodStill`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from kit.errors import Unavailable
from kit.eventlog import Batch, ConsumerStoodStill, PartitionLost, Record
from kit.eventlog.kafka_clients import closed
from kit.eventlog.kafka_options import KafkaOptions
from kit.logs import get_logger

_DEADLINE_S = 10.0
#: So many sessions without progress are too many. A rebalance takes one.
_STALLED_SESSIONS = 3
#: So long after its time a fetch is not waited for: the group is being shared out anew.
_LATE_S = 1.0
_MOVED = (CommitFailedError, IllegalGenerationError, IllegalStateError, RebalanceInProgressError, UnknownMemberIdError)

log = get_logger(__name__)


class KafkaConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """See `kit.eventlog.Consumer`."""

    def __init__(self, servers: Sequence[str], group: str, names: Sequence[str], options: KafkaOptions) -> None:
        self._servers, self._group, self._names, self._options = list(servers), group, list(names), options
        self._consumer: Any = None
        self._waiting: deque[Any] = deque()
        self._handed_out: dict[TopicPartition, int] = {}
        self._progress_at = time.monotonic()

    async def start(self) -> None:
        """Join the group. Raises what the library raises."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(self._options.session_s * 1000),
            heartbeat_interval_ms=min(1000, int(self._options.session_s * 200)),
            fetch_max_wait_ms=200,
            max_partition_fetch_bytes=1 << 20,
            request_timeout_ms=int(_DEADLINE_S * 1000),
        )
        consumer.subscribe(self._names, listener=self)
        try:
            async with asyncio.timeout(2 * _DEADLINE_S + self._options.session_s):
                await consumer.start()
        except BaseException:
            await closed(consumer.stop(), _DEADLINE_S)
            raise
        self._consumer = consumer
        self._progress_at = time.monotonic()

    async def stop(self) -> None:
        """Leave the group, so that the others take over at once."""
        if self._consumer is None:
            return
        consumer, self._consumer = self._consumer, None
        self._forget()
        await closed(consumer.stop(), _DEADLINE_S)

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Forget what was not committed (called by the library before a rebalance)."""
        self._forget()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Start from the group's commits (called by the library after a rebalance)."""
        self._forget()
        self._progress_at = time.monotonic()

    async def batch(self, *, max_records: int, max_bytes: int, max_wait_s: float) -> Batch:
        """Return what has arrived; see `kit.eventlog.Consumer`."""
        if not self._waiting:
            await self._fetch(max_records, max_wait_s)
        records: list[Record] = []
        size = 0
        while self._waiting and len(records) < max_records:
            message = self._waiting[0]
            size += len(message.value)
            if records and size > max_bytes:
                break
            self._waiting.popleft()
            self._handed_out[TopicPartition(message.topic, message.partition)] = message.offset + 1
            records.append(record_of(message, self._options.prefix))
        return Batch(tuple(records))

    async def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Remember what is done. Raises `PartitionLost` when a partition belongs to another consumer, or `Unavailable`."""
        if not offsets:
            return
        placed = {TopicPartition(self._options.prefix + topic, partition): offset for (topic, partition), offset in offsets.items()}
        for partition, offset in placed.items():
            if offset > self._handed_out.get(partition, -1):
                raise PartitionLost(f"{partition.topic}/{partition.partition} was not handed out up to {offset}")
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self._running().commit(placed)
        except _MOVED as error:
            self._forget()
            raise PartitionLost("the partitions were shared out anew") from error
        except (KafkaError, TimeoutError, OSError) as error:
            raise Unavailable("the event log did not take the commit; it is repeated") from error

    async def rewind(self) -> None:
        """Go back to the last commit; see `kit.eventlog.Consumer`."""
        self._forget()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                consumer = self._running()
                for partition in consumer.assignment():
                    committed = await consumer.committed(partition)
                    if committed is None:
                        await consumer.seek_to_beginning(partition)
                    else:
                        consumer.seek(partition, committed)
        except IllegalStateError:
            return  # a rebalance goes on, which starts from the commits anyway
        except (KafkaError, TimeoutError, OSError) as error:
            raise Unavailable("the event log does not say how far we are; it is asked again") from error
        self._forget()

    async def _fetch(self, max_records: int, max_wait_s: float) -> None:
        rebalancing = False
        found: dict[TopicPartition, list[Any]] = {}
        try:
            async with asyncio.timeout(max_wait_s + _LATE_S):
                found = await self._running().getmany(timeout_ms=int(max_wait_s * 1000), max_records=max_records)
        except IllegalStateError:
            return
        except TimeoutError:
            rebalancing = True
        except KafkaError as error:
            await self._look_for_progress(rebalancing=False)
            raise Unavailable("the event log cannot be read now; it is tried again") from error
        for messages in found.values():
            self._waiting.extend(messages)
        if self._waiting:
            self._progress_at = time.monotonic()
        else:
            await self._look_for_progress(rebalancing=rebalancing)

    async def _look_for_progress(self, *, rebalancing: bool) -> None:
        """Raise `ConsumerStoodStill` when nothing has come for too long although something should have."""
        silent_s = time.monotonic() - self._progress_at
        if silent_s < _STALLED_SESSIONS * self._options.session_s:
            return
        if rebalancing or await self._is_stuck():
            log.error("a consumer stood still; a new one is needed", group=self._group, silent_s=round(silent_s), rebalancing=rebalancing)
            raise ConsumerStoodStill(f"{self._group} got nothing for {silent_s:.0f} s although there is something; it joins its group anew")
        self._progress_at = time.monotonic()

    async def _is_stuck(self) -> bool:
        """Whether there is something to read, or the brokers cannot say: after an outage the library may never find back."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                consumer = self._running()
                newest = await consumer.end_offsets(list(consumer.assignment()))
                for partition, end in newest.items():
                    if await consumer.position(partition) < end:
                        return True
        except IllegalStateError:
            return False  # a rebalance goes on
        except (KafkaError, TimeoutError, OSError):
            return True
        return False

    def _running(self) -> Any:
        if self._consumer is None:
            raise Unavailable("this consumer lost its group; it is made anew")
        return self._consumer

    def _forget(self) -> None:
        self._waiting.clear()
        self._handed_out.clear()


def record_of(message: Any, prefix: str) -> Record:
    """Return the library's record as ours."""
    return Record(
        topic=message.topic.removeprefix(prefix),
        partition=message.partition,
        offset=message.offset,
        key=(message.key or b"").decode(),
        value=message.value,
        headers={name: value.decode() for name, value in message.headers},
        timestamp_ms=message.timestamp,
    )
