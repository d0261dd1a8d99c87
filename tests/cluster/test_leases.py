"""Periodic work of several processes on one PostgreSQL: one does it, another takes over when that one is killed or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path

import pytest
from sqlalchemy import select

from kit.clock import SystemClock
from kit.db import Database, open_database
from tests import real_servers
from tests.cluster.lease_worker import METADATA, TURNS

pytestmark = pytest.mark.cluster

TTL_S = 2.0
#: A machine that is busy with other work may be late by so much.
PATIENCE_S = 90.0


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with open_database(f"{real_servers.postgres()}#test", SystemClock()) as opened:
        await opened.dialect.prepare()
        async with opened.write_engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
        yield opened


@contextmanager
def worker(database: Database, name: str) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.cluster.lease_worker", database.url, name, str(TTL_S)]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def turns(database: Database) -> list[tuple[str, int]]:
    async with database.read() as reader:
        rows = await reader.all(select(TURNS).order_by(TURNS.c.number))
    return [(row.holder, row.at_us) for row in rows]


async def turns_of(database: Database, name: str, count: int) -> None:
    """Wait until `name` has done so many turns."""
    async with asyncio.timeout(PATIENCE_S):
        while [holder for holder, _ in await turns(database)].count(name) < count:
            await asyncio.sleep(0.05)


def holders(done: list[tuple[str, int]]) -> list[str]:
    """Who did the work, each stretch once: two processes at work at the same time would alternate."""
    return [name for name, _ in groupby(holder for holder, _ in done)]


async def test_when_the_holder_is_killed_another_takes_over_and_nothing_runs_twice(database: Database) -> None:
    with ExitStack() as processes:
        first = processes.enter_context(worker(database, "first"))
        await turns_of(database, "first", 5)
        processes.enter_context(worker(database, "second"))
        processes.enter_context(worker(database, "third"))
        await turns_of(database, "first", 10)
        first.send_signal(signal.SIGKILL)
        first.wait()
        async with asyncio.timeout(PATIENCE_S):
            while len(holders(await turns(database))) < 2:
                await asyncio.sleep(0.05)
        successor = holders(await turns(database))[1]
        await turns_of(database, successor, 10)
        done = await turns(database)
    assert holders(done) == ["first", successor]
    gap_s = min(at for name, at in done if name == successor) - max(at for name, at in done if name == "first")
    assert gap_s / 1e6 > TTL_S / 2, "taken from a holder whose lease still ran"


async def test_a_holder_that_hung_writes_nothing_after_its_successor(database: Database) -> None:
    with ExitStack() as processes:
        first = processes.enter_context(worker(database, "first"))
        await turns_of(database, "first", 5)
        processes.enter_context(worker(database, "second"))
        await turns_of(database, "first", 10)
        first.send_signal(signal.SIGSTOP)
        await turns_of(database, "second", 5)
        first.send_signal(signal.SIGCONT)
        await turns_of(database, "second", 20)
        done = await turns(database)
    assert holders(done) == ["first", "second"]
