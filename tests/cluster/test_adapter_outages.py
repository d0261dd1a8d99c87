"""Adapters behind a fault proxy: whatever the network does, a call ends in time with `Unavailable`, and works again soon after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlalchemy import text

from deploy.chaos import Fault, FaultProxy
from deploy.servers import Server
from kit.blobs import open_blobs
from kit.clock import SystemClock
from kit.db import Database, DatabaseUnavailable, open_database
from kit.errors import Unavailable
from kit.eventlog import Batch, Message, open_eventlog
from kit.olap import open_olap
from kit.workers import consume, running
from tests import real_servers

pytestmark = pytest.mark.cluster
FAULTS = [fault for fault in Fault if fault is not Fault.NONE]
#: To a driver that waits for an answer, slowness is silence: `SLOW` is left to PostgreSQL and to the outages of whole clusters.
QUICK_FAULTS = [fault for fault in FAULTS if fault is not Fault.SLOW]
#: The gateway gives up after this, whatever a service does.
GATEWAY_S = 15.0
RECOVERY_S = 30.0


@contextlib.contextmanager
def behind_proxy(url: str) -> Iterator[tuple[FaultProxy, str]]:
    """A proxy before the server of a URL, and the URL that leads through it."""
    parts = urlsplit(url)
    with FaultProxy(lambda: parts.port or 0) as proxy:
        yield proxy, parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()


async def timed(call: Callable[[], Awaitable[object]]) -> tuple[bool, float]:
    """Whether it worked, and the seconds until it worked or said that it cannot; anything but `Unavailable` fails the test."""
    began = time.monotonic()
    try:
        await call()
    except Unavailable:
        return False, time.monotonic() - began
    return True, time.monotonic() - began


async def back_after(*calls: Callable[[], Awaitable[object]]) -> float:
    """Seconds until all calls work."""
    began = time.monotonic()
    for call in calls:
        while not (await timed(call))[0]:
            assert time.monotonic() - began < RECOVERY_S
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def read(database: Database) -> None:
    async with database.read() as reader:
        await reader.scalar(text("SELECT 1"))


async def write(database: Database) -> None:
    async with database.begin() as tx:
        await tx.scalar(text("SELECT 1"))


@asynccontextmanager
async def postgres(**options: str) -> AsyncIterator[tuple[FaultProxy, Database]]:
    with behind_proxy(real_servers.postgres(**options)) as (proxy, url):
        async with open_database(f"{url}#outages", SystemClock()) as database:
            await database.dialect.prepare()
            yield proxy, database


@pytest.mark.parametrize("fault", FAULTS)
async def test_postgresql_that_fails_keeps_nobody_waiting(fault: Fault) -> None:
    async with postgres() as (proxy, database):
        calls = (lambda: read(database), lambda: write(database))
        await back_after(*calls)
        proxy.set(fault)
        first = await asyncio.gather(*(timed(call) for call in calls * 8))
        print(f"{fault}: worst {max(seconds for _, seconds in first):.2f} s")
        assert max(seconds for _, seconds in first) < GATEWAY_S / 2
        if fault is Fault.HALF_OPEN:
            assert all(worked for worked, _ in first), "what is dead is replaced within the call"
        else:
            assert not any(worked for worked, _ in first)
            # Somebody knows now: of all who come, few wait.
            later = sorted(seconds for _, seconds in await asyncio.gather(*(timed(call) for call in calls * 8)))
            assert later[len(later) // 2] < 1
        proxy.set(Fault.NONE)
        print(f"{fault}: back after {await back_after(*calls):.2f} s")
        assert database.connections()["read"][0] == database.connections()["write"][0] == 0


async def test_a_statement_on_a_silent_postgresql_ends_at_its_own_deadline() -> None:
    """In the middle of a transaction, where the answer was the driver's own exception."""
    async with postgres(statement_timeout_s="1") as (proxy, database):
        await write(database)
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            async with database.begin() as tx:
                proxy.set(Fault.BLACKHOLE)
                await tx.scalar(text("SELECT 1"))
        assert time.monotonic() - began < GATEWAY_S / 2
        proxy.set(Fault.NONE)
        await back_after(lambda: write(database))
        assert database.connections()["write"][0] == 0


async def test_aborted_transactions_leave_no_connection_behind() -> None:
    async with postgres() as (_, database):
        rest = asyncio.Event()

        async def forever() -> None:
            async with database.begin() as tx:
                await tx.scalar(text("SELECT pg_sleep(60)"))
                rest.set()

        for _ in range(20):
            tasks = [asyncio.create_task(forever()) for _ in range(8)]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert not rest.is_set()
        await back_after(lambda: write(database))
        assert database.connections()["write"][0] == 0


async def outage(name: str, proxy: FaultProxy, fault: Fault, calls: Sequence[Callable[[], Awaitable[object]]], *, within_s: float) -> None:
    """Break it, call from many sides twice, mend it: every call ends in time, and all work again."""
    await back_after(*calls * 4)
    proxy.set(fault)
    for _ in range(2):
        worst = max(seconds for _, seconds in await asyncio.gather(*(timed(call) for call in calls * 6)))
        print(f"{name}, {fault}: worst {worst:.2f} s")
        assert worst < within_s
        assert proxy.connections < 60
    proxy.set(Fault.NONE)
    print(f"{name}, {fault}: back after {await back_after(*calls):.2f} s")


@pytest.mark.parametrize("fault", QUICK_FAULTS)
async def test_clickhouse_that_fails_keeps_nobody_waiting(fault: Fault) -> None:
    with behind_proxy(real_servers.clickhouse(answer_s="2")) as (proxy, url):
        async with open_olap(url) as olap:
            await olap.execute("CREATE TABLE IF NOT EXISTS numbers (number UInt32) ENGINE = MergeTree ORDER BY number")
            calls = (
                lambda: olap.query("SELECT 1 AS one"),
                lambda: olap.insert("numbers", {"number": [1]}, token="one"),
                olap.ping,
            )
            await outage("ClickHouse", proxy, fault, calls, within_s=GATEWAY_S)


@pytest.mark.parametrize("fault", QUICK_FAULTS)
async def test_an_object_store_that_fails_keeps_nobody_waiting(fault: Fault) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield os.urandom(2000)

    with behind_proxy(real_servers.s3("seaweedfs", read_s="2")) as (proxy, url):
        async with open_blobs(url, link_secret=b"l" * 32) as blobs:
            kept = (await blobs.put("acme", body())).sha256

            async def fetch() -> None:
                assert len(b"".join([chunk async for chunk in blobs.open("acme", kept)])) == 2000

            calls = (lambda: blobs.put("acme", body()), fetch, lambda: blobs.link("acme", kept, expires_in_s=60), blobs.ping)
            await outage("S3", proxy, fault, calls, within_s=GATEWAY_S)


@pytest.fixture(scope="module")
def proxied_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """A broker that tells its clients the proxy's port."""
    with FaultProxy(lambda: server.ports["broker"]) as proxy:
        server = Server("kafka", tmp_path_factory.mktemp("proxied") / "kafka", advertised=proxy.port)
        with server:
            yield proxy


@pytest.mark.parametrize("fault", QUICK_FAULTS)
async def test_kafka_that_fails_keeps_nobody_waiting_and_loses_nothing(fault: Fault, proxied_kafka: FaultProxy) -> None:
    url = f"kafka://127.0.0.1:{proxied_kafka.port}?prefix={real_servers.namespace()}.&partitions=2&append_s=4&session_s=6"
    acknowledged: set[str] = set()

    read: set[str] = set()

    async def handle(batch: Batch) -> None:
        read.update(record.key for record in batch.records)

    async with open_eventlog(url) as log, running([consume(log, "readers", ["news"], handle, max_wait_s=1)]):

        async def append() -> None:
            name = uuid4().hex
            await log.append("news", [Message(name, name.encode())])
            acknowledged.add(name)

        calls = (append, lambda: log.lag("readers", "news"), log.ping)
        await back_after(append)
        await all_read(acknowledged, read)
        await outage("Kafka", proxied_kafka, fault, calls, within_s=GATEWAY_S)
        await all_read(acknowledged, read)
        print(f"Kafka, {fault}: {len(acknowledged)} acknowledged, {len(read - acknowledged)} of unknown fate, all read")


async def all_read(acknowledged: set[str], read: set[str]) -> None:
    """Wait until a reader has got all. One may take three sessions to find out that its connection is stuck."""
    until = time.monotonic() + 2 * RECOVERY_S
    while not acknowledged <= read:
        assert time.monotonic() < until, f"{len(acknowledged - read)} of {len(acknowledged)} acknowledged records were not read"
        await asyncio.sleep(0.05)
