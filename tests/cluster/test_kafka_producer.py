"""The producer side of the Kafka adapter: a batch that the brokers never took must not close its partition for those behind it.

The library numbers a batch when it takes it in hand. One that is refused or given up leaves a gap in the numbers, and the broker refuses
everything behind a gap (aio-libs/aiokafka#1017).
"""

from __future__ import annotations

import asyncio
import os

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from kit.errors import TooLarge
from kit.eventlog import EventLog, Message, open_eventlog
from kit.eventlog.kafka import KafkaLog
from tests import real_servers

pytestmark = pytest.mark.cluster
TOPIC = "things.happened"


def message(number: int) -> Message:
    return Message(f"key{number % 8}", b"%d" % number)


async def values(eventlog: EventLog) -> list[int]:
    return [int(record.value) async for records in eventlog.read(TOPIC) for record in records]


async def test_a_record_that_the_broker_refuses_does_not_close_its_partition() -> None:
    async with open_eventlog(real_servers.kafka(partitions="1")) as eventlog:
        await eventlog.append(TOPIC, [message(0)])
        assert isinstance(eventlog, KafkaLog)
        await limit(eventlog, "1000")
        with pytest.raises(TooLarge):
            await eventlog.append(TOPIC, [Message("key1", os.urandom(100_000))])
        await asyncio.gather(*(eventlog.append(TOPIC, [message(number), message(number + 100)]) for number in range(2, 12)))
        found = await values(eventlog)
    assert sorted(found) == [0, *range(2, 12), *range(102, 112)]
    assert all(found.index(number) < found.index(number + 100) for number in range(2, 12)), "the records of a key keep their order"


async def limit(eventlog: KafkaLog, max_bytes: str) -> None:
    """Let the brokers take less than we send, as an operator can."""
    admin = AIOKafkaAdminClient(bootstrap_servers=eventlog.servers)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, eventlog.name_of(TOPIC), {"max.message.bytes": max_bytes})])
    finally:
        await admin.close()
