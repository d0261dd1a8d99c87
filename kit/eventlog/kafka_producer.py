"""What appends to Kafka: an idempotent producer, bounded in memory, and replaced when its numbers have a gap.

The library numbers a batch when it takes it in hand. One that is then given up or refused leaves a gap in its partition's numbers, and
the broker refuses all that comes behind (aio-libs/aiokafka#1017): only a producer with an identity of its own can go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, OutOfOrderSequenceNumber, ProducerClosed, UnknownProducerId

from kit.eventlog import LogFull
from kit.eventlog.kafka_clients import closed
from kit.eventlog.kafka_options import KafkaOptions
from kit.logs import get_logger

#: These say nothing about the records themselves: they were not taken because of what happened to others.
_BEHIND_A_GAP = (OutOfOrderSequenceNumber, UnknownProducerId, ProducerClosed)

log = get_logger(__name__)


class Encoded(NamedTuple):
    """A message as the library takes it."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.key) + len(self.value) + sum(len(name) + len(text) for name, text in self.headers)


class KafkaProducer:
    """Appends for one `KafkaLog`; connects at the first use."""

    def __init__(self, servers: list[str], options: KafkaOptions, *, max_message_bytes: int) -> None:
        self._servers, self._options, self._max_message_bytes = servers, options, max_message_bytes
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()
        self._leaving = set[asyncio.Task[None]]()
        self._waiting_bytes = 0
        self._room = asyncio.Event()

    async def append(self, topic: str, messages: Sequence[Encoded]) -> None:
        """Write all; returns when they are on disk of all in-sync replicas. `topic` is the name in the cluster.

        Raises what the library raises; some may have been written then.
        """
        failed = await self._send(topic, messages)
        if failed and all(isinstance(error, _BEHIND_A_GAP) for _, error in failed):
            failed = await self._send(topic, [message for message, _ in failed])
        for _, error in failed:
            raise error

    async def wait_for_room(self, size: int) -> None:
        """Wait until so many bytes may be sent. Raises `LogFull`."""
        try:
            async with asyncio.timeout(self._options.full_wait_s):
                while self._waiting_bytes and self._waiting_bytes + size > self._options.max_waiting_bytes:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise LogFull("the event log takes no more now; keep the data and try again") from None

    async def close(self) -> None:
        """Send what waits, then close the connections."""
        if self._producer is not None:
            self._replace(self._producer)
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _send(self, topic: str, messages: Sequence[Encoded]) -> list[tuple[Encoded, KafkaError]]:
        """Send in order and wait for all; returns those that were not taken."""
        producer = await self._connected()
        failed: list[tuple[Encoded, KafkaError]] = []
        # Not gather(): a send that was cancelled goes on, and its bytes stay counted until it is over.
        sent: list[tuple[Encoded, asyncio.Future[object]]] = []
        for message in messages:
            size = message.size
            self._waiting_bytes += size
            try:
                future = await producer.send(topic, message.value, key=message.key, headers=message.headers)
            except ProducerClosed as error:
                self._sent(size)
                failed.append((message, error))
            except BaseException:
                self._sent(size)
                raise
            else:
                future.add_done_callback(lambda _done, size=size: self._sent(size))
                sent.append((message, future))
        if sent:
            await asyncio.wait([future for _, future in sent])
        for message, future in sent:
            try:
                future.result()
            except KafkaError as error:
                failed.append((message, error))
        if failed and self._producer is producer:
            log.warning(
                "the producer is replaced: brokers refuse what comes behind a lost batch", topic=topic, error=repr(failed[0][1])[:200]
            )
            self._replace(producer)
        return failed

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._servers,
                    acks="all",
                    enable_idempotence=True,
                    compression_type="lz4",
                    linger_ms=self._options.linger_ms,
                    max_batch_size=1 << 20,
                    max_request_size=self._max_message_bytes,
                    # Half of it: a connection that died in silence is replaced in time for the append that notices it.
                    request_timeout_ms=int(self._options.append_s * 500),
                )
                try:
                    await producer.start()
                except BaseException:
                    await closed(producer.stop(), self._options.append_s)
                    raise
                self._producer = producer
            return self._producer

    def _replace(self, producer: AIOKafkaProducer) -> None:
        """Let a producer end what it has begun for others; the next append makes a new one."""
        self._producer = None
        task = asyncio.create_task(closed(producer.stop(), self._options.append_s))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _sent(self, size: int) -> None:
        self._waiting_bytes -= size
        self._room.set()
