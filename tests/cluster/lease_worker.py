"""One of several processes with the same periodic work: `python -m tests.cluster.lease_worker <database url> <name> <ttl seconds>`."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from sqlalchemy import BigInteger, Column, Integer, String, Table, func, insert, select

from kit.clock import SystemClock
from kit.db import open_database
from kit.db.lease import Lease, leased
from kit.db.system import new_metadata
from kit.workers import running

METADATA = new_metadata()
#: Each turn of the work adds a row: the next number, and who did it.
TURNS = Table(
    "turns",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("holder", String(20), nullable=False),
    Column("at_us", BigInteger, nullable=False),
)


async def work(url: str, name: str, ttl_s: float) -> None:
    clock = SystemClock()
    async with open_database(url, clock) as database:

        async def turn() -> None:
            async with database.begin() as tx:
                number = (await tx.scalar(select(func.max(TURNS.c.number))) or 0) + 1
                at_us = int((await tx.database_now()).timestamp() * 1e6)
                await tx.execute(insert(TURNS).values(number=number, holder=name, at_us=at_us))

        lease = Lease(database, clock, name="work", holder=name, ttl=timedelta(seconds=ttl_s))
        async with running([leased(lease, "turns", 0.05, turn, clock=clock)], clock=clock):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], float(sys.argv[3])))
