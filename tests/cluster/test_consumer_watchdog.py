"""A consumer that makes no progress although there is something to read is noticed, shown, and replaced; on a broker behind a proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from deploy.chaos import Fault, FaultProxy
from deploy.servers import Server
from kit.eventlog import Batch, Consumer, ConsumerStoodStill, EventLog, Message, open_eventlog
from kit.eventlog.kafka_consumer import KafkaConsumer
from kit.metrics import KIT_METRICS, PrometheusMetrics
from kit.workers import Workers, consume, running
from tests import real_servers

pytestmark = pytest.mark.cluster
TOPIC, GROUP = "things.happened", "readers"
#: Three sessions without progress are too many; then it takes the adapter's deadline to find out that nobody answers.
SESSION_S = 2.0
NOTICED_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultProxy, str]]:
    """A broker that tells its clients the proxy's port, and its URL."""
    with FaultProxy(lambda: server.ports["broker"]) as proxy:
        server = Server("kafka", tmp_path_factory.mktemp("proxied") / "kafka", advertised=proxy.port)
        with server:
            yield proxy, f"kafka://127.0.0.1:{proxy.port}?partitions=2&session_s={SESSION_S}"


@pytest.fixture
def proxied(broker: tuple[FaultProxy, str]) -> Iterator[tuple[FaultProxy, str]]:
    """The same, healed after each test."""
    yield broker
    broker[0].set(Fault.NONE)


@dataclass
class Reading:
    """A worker that reads the topic."""

    workers: Workers
    metrics: PrometheusMetrics
    read: list[int] = field(default_factory=list)

    async def until(self, *values: int) -> None:
        """Wait until these were read."""
        async with asyncio.timeout(NOTICED_WITHIN_S):
            while not set(values) <= set(self.read):
                await asyncio.sleep(0.05)

    async def trouble(self) -> str:
        """Wait until the worker has one, and return it."""
        async with asyncio.timeout(NOTICED_WITHIN_S):
            while not (problems := self.workers.problems()):
                await asyncio.sleep(0.02)
        return problems[0]

    async def well(self) -> None:
        """Wait until it has none."""
        async with asyncio.timeout(NOTICED_WITHIN_S):
            while self.workers.problems():
                await asyncio.sleep(0.02)

    @property
    def stalls(self) -> bool:
        return f'latebind_log_stalls_total{{group="{GROUP}"}} ' in self.metrics.render().decode()


@asynccontextmanager
async def reading(eventlog: EventLog) -> AsyncIterator[Reading]:
    metrics = PrometheusMetrics(*KIT_METRICS)
    read: list[int] = []

    async def handle(batch: Batch) -> None:
        read.extend(int(record.value) for record in batch.records)

    worker = consume(eventlog, GROUP, [TOPIC], handle, max_wait_s=0.5, metrics=metrics)
    async with running([worker], metrics=metrics) as workers:
        yield Reading(workers, metrics, read)


async def append(eventlog: EventLog, *values: int) -> None:
    await eventlog.append(TOPIC, [Message(f"key{value}", b"%d" % value) for value in values])


async def test_a_worker_behind_a_silent_network_says_so_and_reads_again_when_it_is_over(proxied: tuple[FaultProxy, str]) -> None:
    proxy, url = proxied
    async with open_eventlog(real_servers.with_query(url, prefix=real_servers.namespace())) as eventlog, reading(eventlog) as worker:
        await append(eventlog, *range(20))
        await worker.until(*range(20))
        async with asyncio.timeout(NOTICED_WITHIN_S):
            while await eventlog.lag(GROUP, TOPIC):  # a commit under way would fail, which is another trouble
                await asyncio.sleep(0.05)
        await worker.well()
        began = time.monotonic()
        proxy.set(Fault.BLACKHOLE)
        trouble = await worker.trouble()
        print(f"after {time.monotonic() - began:.1f} s: {trouble}")
        assert f"{GROUP} got nothing" in trouble
        assert worker.stalls
        proxy.set(Fault.NONE)
        began = time.monotonic()
        await appended(eventlog, 20)
        await worker.until(20)
        await worker.well()
        print(f"back after {time.monotonic() - began:.1f} s")


async def appended(eventlog: EventLog, value: int) -> None:
    """Append as soon as the log takes it."""
    async with asyncio.timeout(NOTICED_WITHIN_S):
        while True:
            try:
                return await append(eventlog, value)
            except Exception:
                await asyncio.sleep(0.1)


async def test_a_consumer_that_fetches_nothing_is_told_from_one_that_has_nothing_to_fetch(proxied: tuple[FaultProxy, str]) -> None:
    _, url = proxied
    async with open_eventlog(real_servers.with_query(url, prefix=real_servers.namespace())) as eventlog:
        await append(eventlog, *range(8))
        async with eventlog.consumer(GROUP, [TOPIC]) as consumer:
            first = await read(consumer, 8)
            await consumer.commit(first.next_offsets())
            assert not (await read(consumer, 1, for_s=4 * SESSION_S)).records, "nothing is there, and that is no fault"
            assert isinstance(consumer, KafkaConsumer)
            # What the library does by itself after some outages: it is alive, sends its heartbeats, and fetches nothing.
            consumer._consumer.pause(*consumer._consumer.assignment())
            await append(eventlog, *range(8, 16))
            began = time.monotonic()
            with pytest.raises(ConsumerStoodStill, match=GROUP):
                await read(consumer, 1, for_s=NOTICED_WITHIN_S)
            assert time.monotonic() - began > SESSION_S, "a moment of silence is no fault"
        async with eventlog.consumer(GROUP, [TOPIC]) as consumer:
            assert sorted(int(record.value) for record in (await read(consumer, 8)).records) == list(range(8, 16))


async def read(consumer: Consumer, count: int, *, for_s: float = 30.0) -> Batch:
    """Read until so many records are there, or the time is over."""
    records = []
    until = time.monotonic() + for_s
    while len(records) < count and time.monotonic() < until:
        records += (await consumer.batch(max_records=100, max_bytes=1 << 20, max_wait_s=0.5)).records
    return Batch(tuple(records))
