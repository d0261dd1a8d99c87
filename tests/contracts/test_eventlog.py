"""What every event log promises (kit.eventlog)."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kit.eventlog import SCHEMES, Batch, Consumer, EventLog, LogFull, Message, PartitionLost, Record, open_eventlog
from kit.eventlog.local_groups import LocalConsumer
from tests import real_servers

URLS = {
    "local": lambda folder: f"local:{folder}/log.db?partitions=4&full_wait_s=0.1",
    "kafka": lambda _folder: real_servers.kafka(partitions="4", session_s="6"),
}
CASES = [name if name == "local" else pytest.param(name, marks=pytest.mark.cluster) for name in URLS]
TOPIC = "things.happened"


def test_every_adapter_has_cases() -> None:
    assert set(URLS) == set(SCHEMES)


@pytest.fixture(params=CASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return URLS[request.param](tmp_path)


@pytest.fixture
async def eventlog(url: str) -> AsyncIterator[EventLog]:
    async with open_eventlog(url) as opened:
        yield opened


def numbered(count: int, keys: int = 7) -> list[Message]:
    return [Message(f"key{number % keys}", str(number).encode(), {"event-id": f"e{number}"}) for number in range(count)]


async def take(consumer: Consumer, **limits: Any) -> Batch:
    return await consumer.batch(**{"max_records": 1000, "max_bytes": 1 << 20, "max_wait_s": 1.0} | limits)


async def take_all(consumer: Consumer, **limits: Any) -> list[Record]:
    """Everything that is there now."""
    found: list[Record] = []
    # A log of another machine may take a moment to hand out the first records.
    while (batch := await take(consumer, max_wait_s=0.05 if isinstance(consumer, LocalConsumer) else 0.7, **limits)).records:
        found += batch.records
    return found


def values(records: list[Record] | tuple[Record, ...]) -> list[int]:
    return sorted(int(record.value) for record in records)


async def test_what_was_appended_is_read_as_it_was(eventlog: EventLog) -> None:
    message = Message("acme/ü", b"\x00\xff value", {"event-id": "e1", "account": "acme", "ü": ""})
    await eventlog.append(TOPIC, [message])
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        (record,) = (await take(consumer)).records
    assert (record.topic, record.key, record.value, dict(record.headers)) == (TOPIC, message.key, message.value, message.headers)
    assert record.offset == 0
    assert record.timestamp_ms > 1_700_000_000_000


async def test_records_of_a_key_keep_their_order_and_their_partition(eventlog: EventLog) -> None:
    for start in range(0, 200, 10):
        await eventlog.append(TOPIC, numbered(200)[start : start + 10])
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        records = await take_all(consumer, max_records=17)
    assert values(records) == list(range(200))
    of_key, places = defaultdict(list), defaultdict(set)
    for record in records:
        of_key[record.key].append(int(record.value))
        places[record.key].add(record.partition)
    assert all(numbers == sorted(numbers) for numbers in of_key.values())
    assert all(len(partitions) == 1 for partitions in places.values())


async def test_offsets_rise_by_one_within_a_partition(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, numbered(60))
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        records = await take_all(consumer)
    of_partition = defaultdict(list)
    for record in records:
        of_partition[record.partition].append(record.offset)
    assert len(of_partition) > 1
    for offsets in of_partition.values():
        assert offsets[0] == 0
        assert all(later == earlier + 1 for earlier, later in pairwise(offsets))


async def test_many_writers_at_once_lose_and_double_nothing(eventlog: EventLog) -> None:
    async def write(writer: int) -> None:
        for number in range(20):
            await eventlog.append(TOPIC, [Message(f"writer{writer}", str(writer * 100 + number).encode())])

    await asyncio.gather(*(write(writer) for writer in range(50)))
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        records = await take_all(consumer)
    assert values(records) == sorted(writer * 100 + number for writer in range(50) for number in range(20))
    of_key = defaultdict(list)
    for record in records:
        of_key[record.key].append(int(record.value))
    assert all(numbers == sorted(numbers) for numbers in of_key.values())


async def test_append_takes_all_messages_or_none(eventlog: EventLog) -> None:
    broken = Message("k", b"2", {"event-id": 7})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        await eventlog.append(TOPIC, [*numbered(20), broken])
    await eventlog.append(TOPIC, [])
    assert await eventlog.lag("readers", TOPIC) == 0


async def test_a_batch_keeps_its_limits(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, [Message("k", b"x" * 1000) for _ in range(50)])
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        assert len((await take(consumer, max_records=3)).records) == 3
        assert len((await take(consumer, max_bytes=5000)).records) == 5
        assert len((await take(consumer, max_bytes=1)).records) == 1, "one record comes however big it is"


async def test_waiting_ends_with_the_first_record_or_empty(eventlog: EventLog) -> None:
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        assert (await take(consumer, max_wait_s=0.01)).records == ()
        waiting = asyncio.create_task(take(consumer, max_wait_s=30))
        await asyncio.sleep(0.01)
        await eventlog.append(TOPIC, numbered(1))
        async with asyncio.timeout(5):
            assert values((await waiting).records) == [0]


async def test_a_cancelled_wait_takes_nothing_away(eventlog: EventLog) -> None:
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        waiting = asyncio.create_task(take(consumer, max_wait_s=30))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventlog.append(TOPIC, numbered(3))
        assert values(await take_all(consumer)) == [0, 1, 2]


async def test_what_was_not_committed_comes_again(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, numbered(30))
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        first = await take(consumer, max_records=10)
        await consumer.commit(first.next_offsets())
        await take_all(consumer)
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        again = await take_all(consumer)
    assert sorted([*values(first.records), *values(again)]) == list(range(30))


async def test_each_batch_goes_on_behind_the_one_before_and_rewind_goes_back(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, numbered(20))
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        done = await take(consumer, max_records=5)
        await consumer.commit(done.next_offsets())
        seen = await take_all(consumer)
        assert len(seen) == 15
        await consumer.rewind()
        assert values(await take_all(consumer)) == values(seen)


async def test_a_commit_survives_a_restart(url: str) -> None:
    async with open_eventlog(url) as eventlog:
        await eventlog.append(TOPIC, numbered(25))
        async with eventlog.consumer("readers", [TOPIC]) as consumer:
            done = await take(consumer, max_records=10)
            await consumer.commit(done.next_offsets())
    async with open_eventlog(url) as eventlog:
        assert await eventlog.lag("readers", TOPIC) == 15
        await eventlog.append(TOPIC, [Message("key0", b"25")])
        async with eventlog.consumer("readers", [TOPIC]) as consumer:
            rest = await take_all(consumer)
    assert sorted([*values(done.records), *values(rest)]) == list(range(26))


async def test_groups_do_not_disturb_each_other(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, numbered(10))
    async with eventlog.consumer("a", [TOPIC]) as one, eventlog.consumer("b", [TOPIC]) as two:
        batch = await take(one)
        await one.commit(batch.next_offsets())
        assert values(await take_all(two)) == list(range(10))
    assert await eventlog.lag("a", TOPIC) == 0
    assert await eventlog.lag("b", TOPIC) == 10


async def test_a_consumer_of_several_topics_reads_only_those(eventlog: EventLog) -> None:
    for topic in ("one.a", "two.b", "three.c"):
        await eventlog.append(topic, numbered(3))
    async with eventlog.consumer("readers", ["one.a", "two.b"]) as consumer:
        records = await take_all(consumer)
    assert Counter(record.topic for record in records) == {"one.a": 3, "two.b": 3}


async def test_two_consumers_share_the_partitions_of_a_group(eventlog: EventLog) -> None:
    async with eventlog.consumer("readers", [TOPIC]) as one, eventlog.consumer("readers", [TOPIC]) as two:
        await eventlog.append(TOPIC, numbered(200, keys=50))
        first, second = await take_all(one), await take_all(two)
        assert first
        assert second
        assert {record.partition for record in first}.isdisjoint(record.partition for record in second)
        assert sorted([*values(first), *values(second)]) == list(range(200))


async def test_who_joins_takes_over_what_was_not_committed(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, numbered(100, keys=50))
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(eventlog.consumer("readers", [TOPIC]))
        batch = await take(one)
        assert len(batch.records) == 100
        two = await stack.enter_async_context(eventlog.consumer("readers", [TOPIC]))
        with pytest.raises(PartitionLost):
            await one.commit(batch.next_offsets())
        await one.rewind()
        first, second = await take_all(one), await take_all(two)
        assert sorted([*values(first), *values(second)]) == list(range(100)), "nothing was committed, so everything comes again"
        await one.commit(Batch(tuple(first)).next_offsets())
        await two.commit(Batch(tuple(second)).next_offsets())
    assert await eventlog.lag("readers", TOPIC) == 0


async def test_who_leaves_hands_over_to_the_others(eventlog: EventLog) -> None:
    async with eventlog.consumer("readers", [TOPIC]) as stays:
        async with eventlog.consumer("readers", [TOPIC]) as leaves:
            await eventlog.append(TOPIC, numbered(100, keys=50))
            mine = await take(stays)
            await stays.commit(mine.next_offsets())
            theirs = await take(leaves)
        # The others hear of it with their next heartbeat.
        first = await take(stays, max_wait_s=15)
        assert sorted([*values(first.records), *values(await take_all(stays))]) == values(theirs.records)


async def test_a_commit_of_what_was_never_handed_out_is_refused(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, numbered(10))
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        with pytest.raises(PartitionLost):
            await consumer.commit({(TOPIC, 0): 999})
        with pytest.raises(PartitionLost):
            await consumer.commit({("other.topic", 0): 0})


async def test_lag_counts_what_is_not_committed(eventlog: EventLog) -> None:
    assert await eventlog.lag("readers", TOPIC) == 0
    await eventlog.append(TOPIC, numbered(8))
    assert await eventlog.lag("readers", TOPIC) == 8
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        batch = await take(consumer)
        assert await eventlog.lag("readers", TOPIC) == 8
        await consumer.commit(batch.next_offsets())
        assert await eventlog.lag("readers", TOPIC) == 0


async def read_all(eventlog: EventLog, topic: str = TOPIC) -> list[Record]:
    return [record async for records in eventlog.read(topic) for record in records]


async def test_a_topic_can_be_read_without_a_group(eventlog: EventLog) -> None:
    assert await read_all(eventlog) == []
    await eventlog.append(TOPIC, numbered(1200))
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        taken = await take_all(consumer)
        for _ in range(2):  # again and again the same, whatever a group does
            found = await read_all(eventlog)
            assert sorted(found, key=lambda one: (one.partition, one.offset)) == sorted(taken, key=lambda one: (one.partition, one.offset))
            of_partition = defaultdict(list)
            for record in found:
                of_partition[record.partition].append(record.offset)
            assert all(offsets == sorted(offsets) for offsets in of_partition.values())
            await consumer.commit(Batch(tuple(taken)).next_offsets())


async def test_progress_says_how_far_a_group_is_in_each_partition(eventlog: EventLog) -> None:
    await eventlog.append(TOPIC, numbered(60))
    places = Counter(record.partition for record in await read_all(eventlog))
    assert await eventlog.progress("readers", TOPIC) == {partition: (0, places[partition]) for partition in range(4)}
    async with eventlog.consumer("readers", [TOPIC]) as consumer:
        batch = await take(consumer, max_records=20)
        await consumer.commit(batch.next_offsets())
    done = {partition: offset for (_, partition), offset in batch.next_offsets().items()}
    assert await eventlog.progress("readers", TOPIC) == {number: (done.get(number, 0), places[number]) for number in range(4)}


async def partitions_of(eventlog: EventLog, topic: str) -> set[int]:
    """The partitions that many different keys reach."""
    await eventlog.append(topic, [Message(f"key-{number}", b"") for number in range(400)])
    async with eventlog.consumer(f"counting-{topic}", [topic]) as consumer:
        return {record.partition for record in await take_all(consumer)}


async def test_topics_can_be_made_ahead_with_their_partitions(eventlog: EventLog) -> None:
    await eventlog.make_topics({"few.made": 1, "more.made": 9, "usual.made": None})
    assert await partitions_of(eventlog, "few.made") == {0}
    assert await partitions_of(eventlog, "more.made") == set(range(9))
    assert await partitions_of(eventlog, "usual.made") == await partitions_of(eventlog, "never.made") == set(range(4))


async def test_making_a_topic_again_changes_nothing(url: str) -> None:
    async with open_eventlog(url) as eventlog:
        await eventlog.make_topics({TOPIC: 2})
        await eventlog.append(TOPIC, numbered(20))
    async with open_eventlog(url) as eventlog:
        await eventlog.make_topics({TOPIC: 7, "other.happened": None})
        await eventlog.make_topics({})
        async with eventlog.consumer("readers", [TOPIC]) as consumer:
            assert values(await take_all(consumer)) == list(range(20))
        assert await partitions_of(eventlog, TOPIC) == {0, 1}


@pytest.mark.parametrize("topics", [{"a b": 1}, {TOPIC: 0}, {TOPIC: -1}, {TOPIC: 100_000}])
async def test_a_topic_that_cannot_be_is_refused(eventlog: EventLog, topics: dict[str, int | None]) -> None:
    with pytest.raises(ValueError, match=r"topic|partitions"):
        await eventlog.make_topics(topics)


async def test_ping_answers(eventlog: EventLog) -> None:
    await eventlog.ping()


async def test_a_full_local_log_refuses_and_loses_nothing(tmp_path: Path) -> None:
    url = f"local:{tmp_path}/full.db?partitions=1&max_bytes=200000&full_wait_s=0.1"
    async with open_eventlog(url) as eventlog, eventlog.consumer("readers", [TOPIC]) as consumer:
        accepted = 0
        with pytest.raises(LogFull) as refused:
            for _ in range(1000):
                await eventlog.append(TOPIC, [Message("k", b"x" * 5000, {"number": str(accepted)})])
                accepted += 1
        assert refused.value.status == 503
        assert refused.value.retry_after_s
        assert 10 < accepted < 50
        waiting = asyncio.create_task(eventlog.append(TOPIC, [Message("k", b"x" * 5000, {"number": str(accepted)})]))
        records = await take_all(consumer)
        assert [record.headers["number"] for record in records] == [str(number) for number in range(accepted)]
        await consumer.commit(Batch(tuple(records)).next_offsets())
        await waiting
        assert [record.headers["number"] for record in await take_all(consumer)] == [str(accepted)], "room came in time"


APPENDING = """
    import asyncio, sys
    from kit.eventlog import Message, open_eventlog
    from kit.logs import configure_logging

    async def write(eventlog, writer):
        for number in range(100000):
            await eventlog.append("things.happened", [Message(f"w{writer}", f"{writer}-{number}-{part}".encode()) for part in range(2)])
            print(f"{writer}-{number}", flush=True)

    async def main():
        async with open_eventlog(sys.argv[1]) as eventlog:
            await asyncio.gather(*(write(eventlog, writer) for writer in range(5)))

    configure_logging()
    asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40, 150])
async def test_what_append_returned_for_survives_kill(url: str, victim: Callable[..., Any], lines: int) -> None:
    acknowledged = victim(APPENDING, url).kill_after(lines)
    async with open_eventlog(url) as eventlog, eventlog.consumer("readers", [TOPIC]) as consumer:
        found = Counter(record.value.decode() for record in await take_all(consumer))
        assert set(found.values()) == {1}, found
        appended = {name.rpartition("-")[0] for name in found}
        assert set(acknowledged) <= appended
        assert all(f"{one}-0" in found and f"{one}-1" in found for one in acknowledged)
        await eventlog.append(TOPIC, [Message("w1", b"after")])
        assert [record.value for record in await take_all(consumer)] == [b"after"]


CONSUMING = """
    import asyncio, sys
    from kit.eventlog import open_eventlog
    from kit.logs import configure_logging

    async def main():
        async with open_eventlog(sys.argv[1]) as eventlog, eventlog.consumer("readers", ["things.happened"]) as consumer:
            while True:
                batch = await consumer.batch(max_records=5, max_bytes=1 << 20, max_wait_s=5)
                await consumer.commit(batch.next_offsets())
                for record in batch.records:
                    print(record.value.decode(), flush=True)

    configure_logging()
    asyncio.run(main())
"""


async def test_what_a_killed_consumer_committed_does_not_come_again_and_the_rest_does(url: str, victim: Callable[..., Any]) -> None:
    async with open_eventlog(url) as eventlog:
        await eventlog.append(TOPIC, numbered(1000))
    committed = {int(line) for line in victim(CONSUMING, url).kill_after(60)}
    async with open_eventlog(url) as eventlog, eventlog.consumer("readers", [TOPIC]) as consumer:
        rest = set(values(await take_all(consumer)))
    assert committed.isdisjoint(rest)
    # At most one batch was committed and not yet printed.
    assert len(committed | rest) >= 995
