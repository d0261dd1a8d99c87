"""Two telemetry writers as processes: they and the broker are killed and started again while devices send; then every sample is looked for.

A writer that comes back is a rebalance for the other. Nobody may stand still because of it: after each event batches are accepted again,
and all that was accepted is written within `GOES_ON_S`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from deploy.cluster import Cluster, Process, Stores
from deploy.servers import Server
from kit.errors import Problem
from kit.eventlog import EventLog, Message, open_eventlog
from kit.olap import open_olap
from services.telemetry import events
from services.telemetry.columnstore import Tables
from services.telemetry.service import GROUP
from tests import real_servers
from tests.telemetry.factories import NOW_MS, History, envelope, random_batch
from tests.telemetry.test_crashes import samples_found

pytestmark = pytest.mark.cluster

#: By hand also 3: every event for each writer, so often. Without it each writer meets one of them.
ROUNDS = int(os.environ.get("LATEBIND_TEST_WRITER_ROUNDS", "0"))
SESSION_S = 3
#: Longer than a producer keeps a batch that has nowhere to go: that is what leaves a gap (docs/adr/0187).
BROKER_AWAY_S = 4.0
#: A killed member is missed after its session; the one that is left, or comes back, then has the rest to write.
GOES_ON_S = 60.0
POISON_EVERY = 25
#: Installs; their batches go to all partitions.
KEYS = 32
Event = Callable[[Process], None]
PAUSE_S = 0.01


@dataclass
class Sender:
    """A fleet that sends each batch until it was accepted, and some once more although it was."""

    eventlog: EventLog
    rng: random.Random
    history: History = field(default_factory=History)
    poison: set[bytes] = field(default_factory=set)
    accepted: int = 0

    async def run(self) -> None:
        while True:
            number = self.accepted
            install = f"install-{number % KEYS}"
            if number % POISON_EVERY == POISON_EVERY - 1:
                value = envelope(b"\xff poison %d" % number, install=install)
                self.poison.add(value)
            else:
                sent = random_batch(self.rng)
                sent.batch_id = self.rng.randbytes(16)
                self.history.add(install, sent)
                value = envelope(sent, install=install, received_ms=NOW_MS + number)
            for _ in range(2 if number % 10 == 0 else 1):
                await self._append(Message(f"acme/{install}", value, {"event-id": f"e{number}"}))
            self.accepted += 1
            await asyncio.sleep(PAUSE_S)

    async def _append(self, message: Message) -> None:
        while True:
            try:
                await self.eventlog.append(events.RECEIVED, [message])
                return
            except Problem:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def sending(sender: Sender) -> AsyncIterator[None]:
    """Send inside the block; what is begun at its end is finished, so that the sender knows what was accepted."""
    task = asyncio.create_task(sender.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def written(eventlog: EventLog, cluster: Cluster, sender: Sender) -> float:
    """Wait until something new was accepted and all that is in the log then was written; returns the seconds that it took."""
    began, before = time.monotonic(), sender.accepted
    while sender.accepted < before + KEYS:
        assert time.monotonic() < began + GOES_ON_S, "no more batches are accepted"
        await asyncio.sleep(0.02)
    goals = {partition: head for partition, (_, head) in (await eventlog.progress(GROUP, events.RECEIVED)).items()}
    while True:
        progress = await eventlog.progress(GROUP, events.RECEIVED)
        behind = {partition: progress[partition] for partition, goal in goals.items() if progress[partition][0] < goal}
        if not behind:
            return time.monotonic() - began
        if time.monotonic() > began + GOES_ON_S:
            tails = "\n".join(f"{one.name}: {one.readiness()}\n{one.log_tail()}" for one in cluster.processes("writer"))
            pytest.fail(f"stands still: behind in {behind} of {goals}\n{tails}")
        await asyncio.sleep(0.1)


def stopped(writer: Process) -> None:
    writer.stop()


def killed(writer: Process) -> None:
    writer.kill()


def left_at_once(writer: Process) -> None:
    """It joins and leaves again in the middle of the other's rebalance."""
    writer.restart()
    writer.stop()


EVENTS = (stopped, killed, left_at_once)


def plan(cluster: Cluster, rng: random.Random) -> list[tuple[Process, Event]]:
    """What happens to whom."""
    one, two = cluster.processes("writer")
    if not ROUNDS:
        return [(one, killed), (two, stopped)]
    return [(writer, event) for _ in range(ROUNDS) for writer in (one, two) for event in rng.sample(EVENTS, len(EVENTS))]


async def test_writers_that_come_and_go_leave_nothing_unwritten(
    own_cluster: Callable[..., Cluster], own_server: Callable[[str], Server]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    broker = own_server("kafka")
    log = real_servers.with_query(broker.url, partitions="4", session_s=str(SESSION_S))
    stores = replace(real_servers.stores(), eventlog=log)
    cluster = own_cluster(
        stores=stores,
        replicas=dict.fromkeys(("registry", "packager", "deployer", "telemetry", "gateway"), 0) | {"writer": 2},
        environment={
            "LATEBIND_TELEMETRY_LINGER_S": "0.05",
            "LATEBIND_TELEMETRY_MAX_RECORDS": "50",
        },
    )
    await asyncio.to_thread(cluster.start)
    async with open_eventlog(stores.eventlog) as eventlog:
        sender = Sender(eventlog, rng)
        async with sending(sender):
            await written(eventlog, cluster, sender)
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(BROKER_AWAY_S)
            await asyncio.to_thread(broker.start)
            print(f"broker killed: all goes on after {await written(eventlog, cluster, sender):.1f} s")
            for writer, event in plan(cluster, rng):
                await asyncio.sleep(rng.uniform(0, 1))
                await asyncio.to_thread(event, writer)
                alone = await written(eventlog, cluster, sender)
                await asyncio.to_thread(writer.start)
                both = await written(eventlog, cluster, sender)
                print(f"{writer.name} {event.__name__}: the other after {alone:.1f} s, both after {both:.1f} s")
            await written(eventlog, cluster, sender)
        async with asyncio.timeout(GOES_ON_S):
            while await eventlog.lag(GROUP, events.RECEIVED):
                await asyncio.sleep(0.1)
        await compare(stores, eventlog, sender)


async def compare(stores: Stores, eventlog: EventLog, sender: Sender) -> None:
    """Every accepted sample is there once, and every poisoned batch is among the dead letters."""
    expected = Counter(
        (run.at_ms // 1000, run.phase, np.float32(run.value_us).item(), run.weight, run.dims["model"], run.dims["version"])
        for run in sender.history.runs
    )
    async with open_olap(stores.olap) as olap:
        rows = await Tables(olap).query(
            "SELECT toString(at) AS at, phase, value_us, weight, model, version FROM samples FINAL WHERE account = {account:String}",
            {"account": "acme"},
        )
    print(f"{sender.accepted} batches accepted, {len(sender.poison)} of them poison; {expected.total()} samples, {len(rows)} rows")
    assert samples_found([row | {"at": f"{row['at']}+00:00"} for row in rows]) == expected
    letters = {record.value async for records in eventlog.read(events.REJECTED) for record in records}
    assert letters == sender.poison
