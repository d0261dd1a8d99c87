"""A process that takes batches in and writes them, and dies where it is told to: `python -m tests.telemetry.crash_child …`.

    send FOLDER FIRST LAST STEP COUNT   send the batches FIRST … LAST, write; die when STEP is reached for the COUNTth time
    read FOLDER                         write what is left, print all that can be asked as one line of JSON

The file `history` in the folder is what the sender knows: `try N` before a batch is handed over, `ok N` after it was accepted.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from kit.clock import SystemClock
from kit.db import Database, Transaction
from kit.eventlog import Batch, Consumer, EventLog, Message
from kit.identity import PrincipalSeal
from kit.olap import Columns
from kit.workers import running
from latebind_proto.telemetry_pb2 import TelemetryBatch
from services.telemetry import events
from services.telemetry.columnstore import Tables
from services.telemetry.selection import Selection
from services.telemetry.service import GROUP
from services.telemetry.writer import Writer
from tests.telemetry.factories import NOW, NOW_MS, envelope, random_batch
from tests.telemetry.stores import Stores, open_stores

INSTALLS = 5
#: Every so many batches is none.
POISON_EVERY = 9


def batch_number(number: int) -> tuple[str, TelemetryBatch | None, bytes]:
    """The install, the batch (None: poison) and the record of a number; the same for every process."""
    install = f"install-{number % INSTALLS}"
    if number % POISON_EVERY == POISON_EVERY - 1:
        return install, None, envelope(b"poison %d" % number, install=install)
    rng = random.Random(number)
    sent = random_batch(rng)
    sent.batch_id = rng.randbytes(16)
    return install, sent, envelope(sent, install=install, received_ms=NOW_MS + number)


class Nemesis:
    """Kills this process at a step."""

    def __init__(self, step: str, count: int) -> None:
        self._step, self._left = step, count

    def reach(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class MortalConsumer:
    """A consumer whose process may die around a commit."""

    def __init__(self, real: Consumer, nemesis: Nemesis) -> None:
        self._real, self._nemesis = real, nemesis

    async def batch(self, *, max_records: int, max_bytes: int, max_wait_s: float) -> Batch:
        return await self._real.batch(max_records=max_records, max_bytes=max_bytes, max_wait_s=max_wait_s)

    async def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        self._nemesis.reach("before commit")
        await self._real.commit(offsets)
        self._nemesis.reach("after commit")

    async def rewind(self) -> None:
        await self._real.rewind()


class MortalLog:
    """A log whose process may die around an append."""

    def __init__(self, real: EventLog, nemesis: Nemesis) -> None:
        self._real, self._nemesis = real, nemesis

    async def append(self, topic: str, messages: Sequence[Message]) -> None:
        self._nemesis.reach(f"before append {topic}")
        await self._real.append(topic, messages)
        self._nemesis.reach(f"after append {topic}")

    @asynccontextmanager
    async def consumer(self, group: str, topics: Sequence[str]) -> AsyncIterator[Consumer]:
        async with self._real.consumer(group, topics) as real:
            yield MortalConsumer(real, self._nemesis)

    async def lag(self, group: str, topic: str) -> int:
        return await self._real.lag(group, topic)

    async def ping(self) -> None:
        await self._real.ping()


class MortalTables(Tables):
    """Tables whose process may die around an insert."""

    def __init__(self, stores: Stores, nemesis: Nemesis) -> None:
        super().__init__(stores.olap)
        self._nemesis = nemesis

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        self._nemesis.reach(f"before insert {table}")
        await super().insert(table, columns, token=token)
        self._nemesis.reach(f"after insert {table}")


class MortalDatabase(Database):
    """A database whose process may die around a commit."""

    nemesis: Nemesis

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Transaction]:
        async with super().begin() as transaction:
            yield transaction
        self.nemesis.reach("after transaction")


async def send(stores: Stores, first: int, last: int) -> None:
    """Hand over batches, unanswered ones again, and now and then one that was answered already."""
    history = stores.folder / "history"
    told = [line.split() for line in history.read_text().splitlines()] if history.exists() else []
    tried, answered = ({int(number) for word, number in told if word == kind} for kind in ("try", "ok"))
    again = random.Random(first).sample(sorted(answered), min(3, len(answered)))
    descriptor = os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in [*sorted(tried - answered), *again, *range(first, last + 1)]:
        os.write(descriptor, f"try {number}\n".encode())
        install, _, record = batch_number(number)
        await stores.eventlog.append(events.RECEIVED, [Message(f"acme/{install}", record, {"event-id": f"e{number}"})])
        os.write(descriptor, f"ok {number}\n".encode())
        await asyncio.sleep(0.002)
    os.close(descriptor)


async def send_and_write(folder: Path, first: int, last: int, step: str, count: int) -> None:
    nemesis = Nemesis(step, count)
    async with open_stores(folder, SystemClock(), PrincipalSeal(b"s" * 32)) as stores:
        stores.eventlog = MortalLog(stores.eventlog, nemesis)
        stores.tables = MortalTables(stores, nemesis)
        stores.database.__class__ = MortalDatabase
        stores.database.nemesis = nemesis  # type: ignore[attr-defined]
        async with running([stores.writer(linger_s=0.02, max_records=17)]):
            await send(stores, first, last)
            print("sent", flush=True)
            while True:  # the nemesis, or who started us, ends this
                await asyncio.sleep(0.05)
                if step == "-" and not await stores.eventlog.lag(GROUP, events.RECEIVED):
                    return


async def read(folder: Path) -> dict[str, Any]:
    async with open_stores(folder, SystemClock(), PrincipalSeal(b"s" * 32)) as stores:
        writer: Writer = stores.writer()
        await stores.write_all(writer)
        analytics, everything = stores.analytics, Selection("acme", NOW - timedelta(days=30), NOW + timedelta(days=1))
        by_soc = Selection("acme", NOW - timedelta(days=30), NOW + timedelta(days=1), group_by=("soc", "version"))
        letters = await stores.dead_letters()
        return {
            "rows": await stores.tables.query(
                "SELECT at, phase, value_us, weight, model, version, variant FROM samples FINAL WHERE account = {account:String}",
                {"account": "acme"},
            ),
            "latency": (await analytics.latency(by_soc)).items,
            "inferences": (await analytics.inferences(by_soc)).items,
            "dropped": (await analytics.inferences(everything)).dropped_samples,
            "failures": (await analytics.failures(everything)).items,
            "active": (await analytics.active_installs(everything)).items,
            "adoption": (await analytics.adoption(everything)).items,
            "letters": [[dict(letter.headers), letter.value.hex()] for letter in letters],
        }


def main() -> None:
    what, folder, *rest = sys.argv[1:]
    if what == "send":
        first, last, step, count = rest
        asyncio.run(send_and_write(Path(folder), int(first), int(last), step, int(count)))
    else:
        answer = asyncio.run(read(Path(folder)))
        print(json.dumps(answer, default=lambda value: value.isoformat() if isinstance(value, datetime) else str(value)))


if __name__ == "__main__":
    main()
