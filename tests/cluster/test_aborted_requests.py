"""Clients that hang up and work that is cancelled leave no connection of PostgreSQL lent out or in a transaction (SEC-D11)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx2
import pytest
from sqlalchemy import text

from deploy.cluster.process import migrate
from kit.clock import SystemClock
from kit.db import Database, open_database
from tests import real_servers
from tests.e2e.world import eventually
from tests.server import ServerProcess

pytestmark = pytest.mark.cluster
REQUESTS = 10_000
AT_ONCE = 100
CANCELLED = 2_000
#: Close with a reset instead of a farewell: what a vanished network looks like.
RESET = struct.pack("ii", 1, 0)


async def sessions(application: str) -> Counter[str]:
    """What PostgreSQL says that our connections do."""
    connection = await asyncpg.connect(real_servers.address("POSTGRES_ADMIN_URL"))
    try:
        rows = await connection.fetch(
            "SELECT state, count(*) FROM pg_stat_activity WHERE application_name LIKE $1 GROUP BY state", f"{application}%"
        )
    finally:
        await connection.close()
    return Counter({row["state"]: row["count"] for row in rows})


def left_behind(application: str) -> int:
    found = asyncio.run(sessions(application))
    return sum(count for state, count in found.items() if state != "idle")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    environment = {
        "LATEBIND_DATABASE_URL": real_servers.postgres(),
        "LATEBIND_GATEWAY_USER_REQUESTS_PER_MINUTE": "10000000",
        "LATEBIND_GATEWAY_ANONYMOUS_REQUESTS_PER_MINUTE": "10000000",
    }
    folder = tmp_path_factory.mktemp("aborted") / "data"
    migrate(folder, environment)
    with ServerProcess(folder, environment=environment) as started:
        yield started


def requests(key: str, chance: random.Random) -> Iterator[bytes]:
    """Reads, writes and bodies that never end."""
    head = f"host: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
    while True:
        body = f'{{"model_id":"m-{uuid4().hex[:12]}"}}'
        write = f"POST /v1/models HTTP/1.1\r\n{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        yield write.encode()
        yield f"GET /v1/models HTTP/1.1\r\n{head}\r\n".encode()
        yield f"GET /v1/collections HTTP/1.1\r\n{head}\r\n".encode()
        yield write.encode()[: chance.randrange(len(write) // 2, len(write))]


async def abort(port: int, request: bytes, chance: random.Random) -> None:
    """Send a request and go before the answer is read, at any moment, politely or not."""
    with contextlib.suppress(ConnectionError):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if chance.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.write(request)
        await writer.drain()
        await asyncio.sleep(chance.random() ** 2 * 0.1)
        writer.close()
        await writer.wait_closed()


async def abort_all(port: int, key: str) -> None:
    chance = random.Random(20261130)
    given = requests(key, chance)

    async def client(count: int) -> None:
        for _ in range(count):
            await abort(port, next(given), chance)

    await asyncio.gather(*(client(REQUESTS // AT_ONCE) for _ in range(AT_ONCE)))


def lent_out(server: ServerProcess) -> float:
    text = httpx2.get(f"{server.internal_url}/metrics", timeout=30).text
    found = re.findall(r'latebind_database_connections\{[^}]*state="in_use"[^}]*\} (\S+)', text)
    assert len(found) == 8  # four services, reading and writing
    return sum(map(float, found))


def test_ten_thousand_requests_that_nobody_waits_for(server: ServerProcess) -> None:
    key = server.new_account()
    asyncio.run(abort_all(server.port, key))
    with server.client(key) as client:
        eventually(lambda: client.get("/v1/models").status_code == 200, within_s=120)
        first = client.get("/v1/models", params={"page_size": 200}).json()
    assert first["items"]  # some of the writes got through
    eventually(lambda: left_behind("latebind-") == 0, within_s=120)
    eventually(lambda: lent_out(server) == 0, within_s=120)
    assert not re.search(r"Traceback|never retrieved|garbage collector", server.log.read_text())


async def use(database: Database, number: int) -> None:
    if number % 2:
        async with database.read() as reader:
            await reader.scalar(text("SELECT pg_sleep(0.001)"))
    else:
        async with database.begin() as tx:
            await tx.scalar(text("SELECT pg_sleep(0.001)"))


async def test_cancelled_work_gives_its_connection_back(tmp_path: Path) -> None:
    """A cancel may hit while the connection is made, lent, in a statement, or in its commit."""
    chance = random.Random(20261130)
    name = f"d11_{uuid4().hex[:8]}"
    async with open_database(f"{real_servers.postgres(pool_timeout_s='30')}#{name}", SystemClock()) as database:
        await database.dialect.prepare()
        for _ in range(CANCELLED // 50):
            tasks = [asyncio.create_task(use(database, number)) for number in range(50)]
            while waiting := [task for task in tasks if not task.done()]:
                await asyncio.sleep(chance.random() * 0.004)
                for task in chance.sample(waiting, min(5, len(waiting))):
                    task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        until = time.monotonic() + 30
        while (found := await sessions(f"latebind-{name}")) and set(found) != {"idle"}:
            assert time.monotonic() < until, found
            await asyncio.sleep(0.05)
        assert {in_use for in_use, _idle in database.connections().values()} == {0}
        await asyncio.gather(*(use(database, number) for number in range(20)))
