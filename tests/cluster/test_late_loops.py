"""A connection to PostgreSQL that has answered is not taken for dead because the event loop was busy; one that is dead still is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import uvloop
from sqlalchemy import text

from deploy.chaos import Fault, FaultProxy
from kit.clock import SystemClock
from kit.db import Database, DatabaseUnavailable, open_database
from tests import real_servers

pytestmark = pytest.mark.cluster
#: Longer than the first answer on a connection may take.
BLOCKED_S = 1.3
#: What the first answer may take on a loop that turns (1 s) and on one that is always late (20 of its slices), the attempt to connect
#: anew (2 s), and room for a busy machine.
CUT_WITHIN_S = {"idle": 7.5, "always late": 15.0}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def backend(database: Database) -> int:
    async with database.read() as reader:
        return int(await reader.scalar(text("SELECT pg_backend_pid()")))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_good_connection_survives_a_blocked_loop(loop: str) -> None:
    async def work() -> None:
        async with open_database(f"{real_servers.postgres(pool='1')}#late", SystemClock()) as database:
            before = await backend(database)
            blocks = 0

            def block(statement: str) -> None:
                """The statement goes out; its answer comes while nobody looks."""
                nonlocal blocks
                if "set_config" in statement:
                    blocks += 1
                    asyncio.get_running_loop().call_soon(time.sleep, BLOCKED_S)

            stop = database.on_statement(block)
            for _ in range(3):
                assert await backend(database) == before, "it was cut off, and another one was made"
            assert blocks == 3
            stop()
            # Blocked before it asks: its clock stands still meanwhile, and runs on at once afterwards.
            time.sleep(BLOCKED_S)
            assert await backend(database) == before

    run(loop, work)


@pytest.mark.parametrize(("loop", "state"), [("uvloop", "idle"), ("asyncio", "always late")])
def test_a_silent_connection_is_cut_off_whatever_the_loop_does(loop: str, state: str) -> None:
    async def work() -> None:
        parts = urlsplit(real_servers.postgres(pool="1"))
        with FaultProxy(lambda: parts.port or 0) as proxy:
            url = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()
            async with open_database(f"{url}#late", SystemClock()) as database:
                await backend(database)
                proxy.set(Fault.BLACKHOLE)
                hog = asyncio.create_task(hogging()) if state == "always late" else None
                began = time.monotonic()
                with pytest.raises(DatabaseUnavailable):
                    await backend(database)
                print(f"{loop}, {state}: {time.monotonic() - began:.2f} s")
                assert time.monotonic() - began < CUT_WITHIN_S[state]
                if hog:
                    hog.cancel()
                proxy.set(Fault.NONE)

    run(loop, work)


async def hogging() -> None:
    """Make every timer of the loop late."""
    while True:
        time.sleep(0.12)
        await asyncio.sleep(0)


def run(loop: str, work: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(work())  # type: ignore[arg-type]
