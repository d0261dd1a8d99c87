"""Servers are killed under two telemetry writers, one of which comes and goes; then every sample is compared with the sender's history."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from deploy.servers import Server
from kit.clock import SystemClock
from kit.errors import Problem
from kit.eventlog import Message
from kit.identity import PrincipalSeal
from kit.ports import PortSettings
from kit.workers import Workers, running
from services.telemetry import events
from services.telemetry.rollup import Rollup
from services.telemetry.selection import Selection
from services.telemetry.service import GROUP
from tests import real_servers
from tests.telemetry.factories import NOW, NOW_MS, History, envelope, random_batch
from tests.telemetry.stores import Stores, open_stores
from tests.telemetry.test_crashes import samples_found

pytestmark = pytest.mark.cluster

#: Seconds that each server is away; by hand also 30.
AWAY_S = float(os.environ.get("TELEMETRY_AWAY_S", "4"))
_GOES_ON_S = 240
POISON_EVERY = 25


class Sender:
    """A fleet that sends each batch until it was accepted, and some once more although it was."""

    def __init__(self, stores: Stores, seed: int) -> None:
        self._stores, self._rng = stores, random.Random(seed)
        self.history, self.poison, self.accepted, self.refused = History(), set[bytes](), 0, 0
        self.stop = False

    async def run(self) -> None:
        while not self.stop:
            number = self.accepted
            install = f"install-{number % 8}"
            if number % POISON_EVERY == POISON_EVERY - 1:
                value = envelope(b"\xff poison %d" % number, install=install)
                self.poison.add(value)
            else:
                sent = random_batch(self._rng)
                sent.batch_id = self._rng.randbytes(16)
                self.history.add(install, sent)
                value = envelope(sent, install=install, received_ms=NOW_MS + number)
            await self._accepted(Message(f"acme/{install}", value, {"event-id": f"e{number}"}))
            if number % 10 == 0:
                await self._accepted(Message(f"acme/{install}", value, {"event-id": f"e{number}"}))
            self.accepted += 1

    async def _accepted(self, message: Message) -> None:
        while True:
            try:
                await self._stores.eventlog.append(events.RECEIVED, [message])
                return
            except Problem:
                self.refused += 1
                await asyncio.sleep(0.1)


async def come_and_go(stores: Stores) -> None:
    """A second writer, which leaves the group now and then in the middle of its work."""
    while True:
        async with running([stores.writer(linger_s=0.05, max_records=20)]):
            await asyncio.sleep(10)
        await asyncio.sleep(5)


async def until_written(stores: Stores, workers: Workers) -> None:
    """Wait until all that is in the log now was written, and the writer says that it is well."""
    async with asyncio.timeout(_GOES_ON_S):
        goals: dict[int, int] | None = None
        while True:
            try:
                progress = await stores.eventlog.progress(GROUP, events.RECEIVED)
                goals = goals or {partition: head for partition, (_, head) in progress.items()}
                if all(progress[partition][0] >= goal for partition, goal in goals.items()) and not workers.problems():
                    return
            except Problem:
                pass
            await asyncio.sleep(0.2)


async def test_no_accepted_sample_is_lost_or_counted_twice(own_server: Callable[[str], Server], tmp_path: Path) -> None:
    servers = {kind: own_server(kind) for kind in ("postgres", "kafka", "clickhouse")}
    at = PortSettings(
        data_dir=tmp_path,
        database_url=servers["postgres"].url,
        eventlog_url=real_servers.with_query(servers["kafka"].url, partitions="4", session_s="6"),
        olap_url=servers["clickhouse"].url,
    )
    clock, seal = SystemClock(), PrincipalSeal(b"s" * 32)
    async with open_stores(at, clock, seal) as one, open_stores(at, clock, seal) as two:
        sender = Sender(one, seed=4)
        async with running([one.writer(linger_s=0.05, max_records=50)]) as workers:
            tasks = [asyncio.create_task(sender.run()), asyncio.create_task(come_and_go(two))]
            await until_written(one, workers)
            for kind, server in servers.items():
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(AWAY_S)
                await asyncio.to_thread(server.start)
                await until_written(one, workers)
                print(f"{kind} was away for {AWAY_S:.0f} s; accepted until now: {sender.accepted}, refused: {sender.refused}")
                assert not any(task.done() for task in tasks)
            sender.stop = True
            await tasks[0]
            tasks[1].cancel()
            await asyncio.gather(tasks[1], return_exceptions=True)
            await until_written(one, workers)
        await compare(one, sender)
        await Rollup(database=one.database, tables=one.tables, clock=clock).turn()
        await compare(one, sender)


async def compare(stores: Stores, sender: Sender) -> None:
    history, by = sender.history, ("soc", "version")
    rows = await stores.tables.query(
        "SELECT toString(at) AS at, phase, value_us, weight, model, version FROM samples FINAL WHERE account = {account:String}",
        {"account": "acme"},
    )
    expected = Counter(
        (run.at_ms // 1000, run.phase, np.float32(run.value_us).item(), run.weight, run.dims["model"], run.dims["version"])
        for run in history.runs
    )
    found = samples_found([row | {"at": f"{row['at']}+00:00"} for row in rows])
    print(f"{sender.accepted} batches accepted, {len(sender.poison)} of them poison; {sum(expected.values())} rows, {len(rows)} found")
    assert found == expected
    selection = Selection("acme", NOW - timedelta(days=30), NOW + timedelta(days=1), group_by=by)
    everything = Selection("acme", selection.since, selection.until)
    inferences = (await stores.analytics.inferences(selection)).items
    assert {tuple(row[name] for name in by): row["inferences"] for row in inferences} == history.inferences(*by)
    latency = {(*(row[name] for name in by), row["phase"]): row for row in (await stores.analytics.latency(selection)).items}
    for key, figures in history.latency(*by).items():
        assert latency[key]["count"] == figures["count"]
        assert latency[key]["p99_ms"] == pytest.approx(figures["p99_ms"], rel=0.0101)
    failures = (await stores.analytics.failures(everything)).items
    assert {(row["phase"], row["code"]): row["count"] for row in failures} == history.failed()
    active = (await stores.analytics.active_installs(everything)).items
    assert {row["start"].date().isoformat(): row["active_installs"] for row in active if row["active_installs"]} == history.actives()
    letters = [record async for records in stores.eventlog.read(events.REJECTED) for record in records]
    assert {letter.value for letter in letters} == sender.poison
