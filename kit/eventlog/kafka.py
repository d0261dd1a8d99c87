"""Apache Kafka behind the event log port (aiokafka): every record on disk of all in-sync replicas before `append` returns.

URL: `kafka://host:port,host:port?prefix=latebind.&partitions=8&replication=3`. Topics are made by `make_topics` or explicitly at their
first use; the broker must not make them from typing mistakes. What is read and committed is the business of `kafka_consumer`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import InvalidTopicError, KafkaError, MessageSizeTooLargeError, TopicAlreadyExistsError, for_code

from kit.checks import Findings, fault, ok
from kit.errors import TooLarge, Unavailable
from kit.eventlog import Consumer, Message, Record, check_partitions
from kit.eventlog.kafka_checks import examine_topics
from kit.eventlog.kafka_clients import closed
from kit.eventlog.kafka_consumer import KafkaConsumer, record_of
from kit.eventlog.kafka_options import KafkaOptions
from kit.eventlog.kafka_producer import Encoded, KafkaProducer
from kit.logs import get_logger
from kit.silence import Silence, Silent
from kit.url_options import read_options

#: One message may be this big, key and headers included; brokers need `message.max.bytes` of at least this.
MAX_MESSAGE_BYTES = 8 << 20
_PING_S = 1.0
_ADMIN_S = 10.0
_OVERHEAD = 128

log = get_logger(__name__)
T = TypeVar("T")


class KafkaLog:
    """See `kit.eventlog.EventLog`. Made by `open_kafka_log`; connects at the first use, so a broker that is down stops no start."""

    def __init__(self, servers: list[str], options: KafkaOptions) -> None:
        self.servers = servers
        self.options = options
        self._producer = KafkaProducer(servers, options, max_message_bytes=MAX_MESSAGE_BYTES)
        self._admin: AIOKafkaAdminClient | None = None
        self._reader: AIOKafkaConsumer | None = None
        self._connecting = asyncio.Lock()
        self._silence = Silence(trial_s=options.append_s)
        self._known_topics: set[str] = set()

    async def append(self, topic: str, messages: Sequence[Message]) -> None:
        """Write messages; returns when all are durable. See `kit.eventlog.EventLog`.

        Raises `TooLarge` for a message over `MAX_MESSAGE_BYTES`, before any was sent.
        """
        encoded = [_encoded(message) for message in messages]
        if not encoded:
            return
        if max(message.size for message in encoded) > MAX_MESSAGE_BYTES - _OVERHEAD:
            raise TooLarge(f"a record of the event log has at most {MAX_MESSAGE_BYTES} bytes")
        await self._producer.wait_for_room(sum(message.size for message in encoded))
        with _unavailable(self._silence):
            self._silence.enter()
            async with asyncio.timeout(self.options.append_s):
                await self._make_missing({topic: None})
                await self._producer.append(self.name_of(topic), encoded)
            self._silence.ended()

    @asynccontextmanager
    async def consumer(self, group: str, topics: Sequence[str]) -> AsyncIterator[Consumer]:
        """Join a group; see `kit.eventlog.EventLog`."""
        with _unavailable():
            await self._make_missing(dict.fromkeys(topics))
        consumer = KafkaConsumer(self.servers, self.options.prefix + group, [self.name_of(topic) for topic in topics], self.options)
        try:
            with _unavailable():
                await consumer.start()
            yield consumer
        finally:
            await consumer.stop()

    async def lag(self, group: str, topic: str) -> int:
        """Return how many records of the topic the group has not committed; all of them for an unknown group."""
        return sum(head - done for done, head in (await self.progress(group, topic)).values())

    async def progress(self, group: str, topic: str) -> Mapping[int, tuple[int, int]]:
        """Return how far the group is in each partition; see `kit.eventlog.EventLog`."""
        with _unavailable():
            async with self._asking(_ADMIN_S):
                await self._make_missing({topic: None})
                admin = await self._connected_admin()
                reader = await self._connected_reader()
                partitions = await self._partitions(admin, self.name_of(topic))
                committed = await admin.list_consumer_group_offsets(self.options.prefix + group, partitions=partitions)
                oldest = await reader.beginning_offsets(partitions)
                newest = await reader.end_offsets(partitions)
        done = {partition: committed[partition].offset for partition in partitions if partition in committed}
        return {
            partition.partition: (max(done.get(partition, 0), oldest[partition]), newest[partition])
            for partition in sorted(partitions, key=lambda one: one.partition)
        }

    async def read(self, topic: str) -> AsyncIterator[Sequence[Record]]:
        """Yield what is there; see `kit.eventlog.EventLog`."""
        with _unavailable():
            async with asyncio.timeout(_ADMIN_S):
                await self._make_missing({topic: None})
                partitions = await self._partitions(await self._connected_admin(), self.name_of(topic))
            consumer = AIOKafkaConsumer(bootstrap_servers=self.servers, enable_auto_commit=False, auto_offset_reset="earliest")
            try:
                async with asyncio.timeout(_ADMIN_S):
                    await _started(consumer, consumer.stop)
                    consumer.assign(partitions)
                    await consumer.seek_to_beginning(*partitions)
                    ends = await consumer.end_offsets(partitions)
                while True:
                    async with asyncio.timeout(_ADMIN_S):
                        left = [one for one in partitions if await consumer.position(one) < ends[one]]
                        found = await consumer.getmany(*left, timeout_ms=500, max_records=500) if left else {}
                    for place, messages in found.items():
                        if records := [record_of(message, self.options.prefix) for message in messages if message.offset < ends[place]]:
                            yield records
                    if not left:
                        return
            finally:
                await closed(consumer.stop(), _ADMIN_S)

    async def ping(self) -> None:
        """Raise `Unavailable` when the cluster does not answer within a second."""
        with _unavailable():
            async with self._asking(_PING_S):
                await (await self._connected_admin()).list_topics()

    async def examine(self, topics: Sequence[str]) -> Findings:
        """Look at brokers and topics; see `kit.eventlog.EventLog`."""
        names = [self.name_of(topic) for topic in topics]
        try:
            with _unavailable():
                async with asyncio.timeout(_ADMIN_S):
                    admin = await self._connected_admin()
                    brokers = len((await admin.describe_cluster())["brokers"])
                    existing = set(await admin.list_topics())
                    described = await admin.describe_topics([name for name in names if name in existing]) if existing else []
        except Unavailable as refused:
            yield fault("brokers", refused.detail, "check host and port of LATEBIND_EVENTLOG_URL, and advertised.listeners of the brokers")
            return
        yield ok("brokers", f"{brokers} answer")
        for finding in examine_topics(
            names, described, brokers=brokers, partitions=self.options.partitions, replication=self.options.replication
        ):
            yield finding

    async def make_topics(self, topics: Mapping[str, int | None]) -> None:
        """Make the topics that do not exist, with the replicas of the URL; see `kit.eventlog.EventLog`."""
        check_partitions(topics)
        with _unavailable():
            await self._make_missing(topics)

    async def _make_missing(self, topics: Mapping[str, int | None]) -> None:
        missing = {topic: partitions for topic, partitions in topics.items() if topic not in self._known_topics}
        if not missing:
            return
        admin = await self._connected_admin()
        options = self.options
        configs = {"retention.ms": str(options.retention_s * 1000), "max.message.bytes": str(MAX_MESSAGE_BYTES)}
        new = [
            NewTopic(self.name_of(topic), partitions or options.partitions, options.replication, topic_configs=configs)
            for topic, partitions in missing.items()
        ]
        answer = await admin.create_topics(new, timeout_ms=int(_ADMIN_S * 1000))
        for topic, code, *words in answer.topic_errors:
            error = for_code(code)
            if error is InvalidTopicError:
                raise ValueError(f"not a topic name: {topic!r} ({' '.join(map(str, words))})")
            if code and error is not TopicAlreadyExistsError:
                raise error(topic)
        self._known_topics.update(missing)

    def name_of(self, topic: str) -> str:
        """Return the topic's name in the cluster."""
        return self.options.prefix + topic

    async def close(self) -> None:
        """Send what waits, then close the connections."""
        await self._producer.close()
        for client in (self._admin, self._reader):
            if client is not None:
                close = client.close if isinstance(client, AIOKafkaAdminClient) else client.stop
                await closed(close(), self.options.append_s)

    @asynccontextmanager
    async def _asking(self, within_s: float) -> AsyncIterator[None]:
        """Bound what is asked of the cluster; after a silence the connections are made anew, for the old ones may be dead."""
        try:
            async with asyncio.timeout(within_s):
                yield
        except (TimeoutError, KafkaError):
            admin, self._admin = self._admin, None
            reader, self._reader = self._reader, None
            for close in (admin and admin.close, reader and reader.stop):
                if close:
                    await closed(close(), _PING_S)
            raise

    async def _connected_admin(self) -> AIOKafkaAdminClient:
        async with self._connecting:
            if self._admin is None:
                admin = AIOKafkaAdminClient(bootstrap_servers=self.servers, request_timeout_ms=int(_ADMIN_S * 1000))
                self._admin = await _started(admin, admin.close)
            return self._admin

    async def _connected_reader(self) -> AIOKafkaConsumer:
        async with self._connecting:
            if self._reader is None:
                reader = AIOKafkaConsumer(bootstrap_servers=self.servers)
                self._reader = await _started(reader, reader.stop)
            return self._reader

    async def _partitions(self, admin: AIOKafkaAdminClient, name: str) -> list[TopicPartition]:
        """Return the partitions of a topic; one that was just made takes a moment to be known."""
        while True:
            (described,) = await admin.describe_topics([name])
            if not described["error_code"] and described["partitions"]:
                return [TopicPartition(name, found["partition"]) for found in described["partitions"]]
            await asyncio.sleep(0.02)


def _encoded(message: Message) -> Encoded:
    """Return a message as the client takes it. Raises `TypeError` for what is not text."""
    headers = []
    for name, value in message.headers.items():
        if not isinstance(value, str):
            raise TypeError(f"header {name} is {type(value).__name__}, not text")
        headers.append((name, value.encode()))
    return Encoded(message.key.encode(), message.value, headers)


async def _started(client: T, close: Callable[[], Coroutine[Any, Any, None]]) -> T:
    """Start a client of the library and return it; one that cannot start leaves nothing open."""
    try:
        await client.start()  # type: ignore[attr-defined]
    except BaseException:
        await closed(close(), _ADMIN_S)
        raise
    return client


class _unavailable(contextlib.AbstractContextManager[None]):
    """Turns what the library raises for a cluster that is not there, or not in time, into `Unavailable`."""

    def __init__(self, silence: Silence | None = None) -> None:
        self._silence = silence

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Silent):
            raise Unavailable("the event log does not answer now; try again") from error
        if isinstance(error, TimeoutError) and self._silence is not None:
            self._silence.began()
        if isinstance(error, MessageSizeTooLargeError):
            raise TooLarge("the broker takes no record of this size; raise its message.max.bytes") from error
        if isinstance(error, KafkaError | TimeoutError | OSError):
            log.warning("the event log did not answer", error=f"{type(error).__name__}: {error}"[:200])
            raise Unavailable("the event log cannot be reached now; try again") from error


@asynccontextmanager
async def open_kafka_log(url: str) -> AsyncIterator[KafkaLog]:
    """Open the log of a `kafka://host:port,…` URL. Nothing is connected yet. Raises `ValueError` for a URL that names no server."""
    parts = urlsplit(url)
    servers = [server if ":" in server else f"{server}:9092" for server in parts.netloc.split(",") if server]
    if not servers:
        raise ValueError("a kafka URL names its servers: kafka://one:9092,two:9092")
    opened = KafkaLog(servers, read_options(KafkaOptions, parts.query, "a kafka URL"))
    try:
        yield opened
    finally:
        await opened.close()
