"""The consumer side of the Kafka adapter when its broker goes away: whoever reads is told, and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.chaos import Fault, FaultProxy
from deploy.servers import Server
from kit.errors import Unavailable
from kit.eventlog import Batch, Message, open_eventlog
from kit.workers import consume, running
from tests.e2e.world import eventually

pytestmark = pytest.mark.cluster
TOPIC = "things.happened"


async def test_who_leaves_while_the_broker_is_away_is_not_cancelled_and_reads_again(tmp_path: Path) -> None:
    """The library's fetcher waits for its next attempt then, and lets the end of that wait out of `stop`."""
    found: list[bytes] = []

    async def handle(batch: Batch) -> None:
        found.extend(record.value for record in batch.records)

    with FaultProxy(lambda: kafka.ports["broker"]) as proxy:
        kafka = Server("kafka", tmp_path / "kafka", advertised=proxy.port)
        with kafka:
            async with open_eventlog(f"kafka://127.0.0.1:{proxy.port}?partitions=1") as log:
                await log.append(TOPIC, [Message("key", b"before")])
                with pytest.raises(Unavailable):
                    async with log.consumer("leavers", [TOPIC]) as consumer:
                        assert await consumer.batch(max_records=1, max_bytes=1 << 20, max_wait_s=20)
                        proxy.set(Fault.DOWN)
                        await consumer.commit({(TOPIC, 0): 1})
                proxy.set(Fault.NONE)
                async with running([consume(log, "leavers", [TOPIC], handle, max_wait_s=1)]):
                    await asyncio.to_thread(eventually, lambda: found == [b"before"], within_s=60)
                assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
