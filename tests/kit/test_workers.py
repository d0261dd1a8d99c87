"""Workers: started together, restarted after a crash, stopped without losing what they began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kit.clock import FakeClock
from kit.context import request_id
from kit.eventlog import Batch, EventLog, Message, open_eventlog
from kit.metrics import PrometheusMetrics
from kit.workers import LONGEST_PAUSE_S, STEADY_S, UNHEALTHY_AFTER, Backoff, Periodic, Stop, Worker, Workers, consume, running

TOPIC = "things.happened"


class Job(Worker):
    """A worker whose runs a test decides."""

    def __init__(self, name: str = "job", crashes: int = 0, error: BaseException | None = None) -> None:
        self.name = name
        self.crashes = crashes
        self.error = error or RuntimeError("broken")
        self.runs = 0
        self.ended = False

    async def run(self, stop: Stop) -> None:
        self.runs += 1
        if self.runs <= self.crashes:
            raise self.error
        await stop.wait()
        await asyncio.sleep(0)
        self.ended = True


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_workers_run_while_the_block_runs_and_end_by_themselves() -> None:
    jobs = [Job("a"), Job("b")]
    async with running(jobs) as workers:
        await until(lambda: all(job.runs for job in jobs))
        assert workers.health() == {"a": None, "b": None}
        assert workers.problems() == []
    assert all(job.ended for job in jobs)


async def test_a_crashed_worker_turns_readiness_red_and_is_started_again(clock: FakeClock) -> None:
    job, other = Job(crashes=2), Job("other")
    metrics = PrometheusMetrics()
    async with running([job, other], clock=clock, metrics=metrics) as workers:
        await until(lambda: job.runs == 1)
        await turns()
        assert workers.health() == {"job": "crashed (RuntimeError)", "other": None}
        assert workers.problems() == ["worker job: crashed (RuntimeError)"]
        clock.advance(LONGEST_PAUSE_S)
        await until(lambda: job.runs == 2)
        await turns()
        clock.advance(LONGEST_PAUSE_S)
        await until(lambda: job.runs == 3)
        await turns()
        assert workers.problems(), "it has only just begun"
        clock.advance(STEADY_S)
        await until(lambda: not workers.problems())
    assert job.ended
    assert 'latebind_worker_crashes_total{worker="job"} 2.0' in metrics.render().decode()


async def test_a_cancellation_that_nobody_asked_for_is_a_crash(clock: FakeClock) -> None:
    """A library that awaits tasks which it has cancelled lets their end out."""
    job = Job(crashes=1, error=asyncio.CancelledError())
    async with running([job], clock=clock) as workers:
        await until(lambda: job.runs == 1)
        await turns()
        assert workers.health() == {"job": "crashed (CancelledError)"}
        clock.advance(LONGEST_PAUSE_S)
        await until(lambda: job.runs == 2)
    assert job.ended


async def test_a_worker_that_waits_for_its_restart_stops_at_once(clock: FakeClock) -> None:
    job = Job(crashes=99)
    async with asyncio.timeout(5), running([job], clock=clock):
        await until(lambda: job.runs == 1)


async def test_a_worker_that_has_nothing_more_to_do_is_healthy() -> None:
    class Once(Worker):
        name = "once"

        async def run(self, stop: Stop) -> None:
            return

    async with running([Once()]) as workers:
        await turns()
        assert workers.problems() == []


async def test_who_does_not_stop_in_time_is_cancelled() -> None:
    cancelled = asyncio.Event()

    class Stuck(Worker):
        name = "stuck"

        async def run(self, stop: Stop) -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    async with asyncio.timeout(5), running([Stuck()], grace_s=0.01):
        await turns()
    assert cancelled.is_set()


async def test_two_workers_of_one_name_are_a_mistake(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="same name"):
        Workers([Job("a"), Job("a")], clock, PrometheusMetrics())


async def test_an_error_in_the_block_stops_the_workers_too() -> None:
    job = Job()
    with pytest.raises(LookupError):
        async with running([job]):
            await until(lambda: job.runs)
            raise LookupError
    assert job.ended


async def test_stop_ends_a_wait_and_cancels_what_it_waited_for(clock: FakeClock) -> None:
    stop = Stop()
    cancelled = asyncio.Event()

    async def slow() -> int:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 1

    waiting = asyncio.create_task(stop.unless(slow()))
    sleeping = asyncio.create_task(stop.sleep(clock, 100))
    await turns()
    stop.request()
    assert await waiting is None
    assert cancelled.is_set()
    assert await sleeping is False

    async def quick() -> int:
        return 5

    assert await Stop().unless(quick()) == 5
    assert await Stop().sleep(clock, 0) is True


def test_pauses_grow_up_to_a_limit_and_start_again() -> None:
    backoff = Backoff(1.0, 10.0)
    pauses = [backoff.next_pause() for _ in range(100)]
    for pause, longest in zip(pauses, [1, 2, 4, 8, *[10] * 96], strict=True):
        assert longest / 2 <= pause <= longest
    backoff.reset()
    assert backoff.next_pause() <= 1


async def test_periodic_work_is_done_at_once_and_then_again_and_again(clock: FakeClock) -> None:
    done: list[float] = []

    async def act() -> None:
        done.append(clock.monotonic())

    async with running([Periodic("sweep", 60, act, clock=clock)], clock=clock):
        await until(lambda: len(done) == 1 and clock.sleepers)
        clock.advance(50)
        await turns()
        assert len(done) == 1
        for expected in (2, 3):
            await until(lambda: clock.sleepers)
            clock.advance(66)
            await until(lambda expected=expected: len(done) == expected)


async def test_periodic_work_can_be_woken(clock: FakeClock) -> None:
    done = 0

    async def act() -> None:
        nonlocal done
        done += 1

    worker = Periodic("sweep", 60, act, clock=clock)
    async with running([worker], clock=clock):
        await until(lambda: done == 1 and clock.sleepers)
        worker.wake()
        await until(lambda: done == 2)


async def test_periodic_work_that_fails_is_tried_sooner_and_shows(clock: FakeClock) -> None:
    failing = True
    tries = 0

    async def act() -> None:
        nonlocal tries
        tries += 1
        if failing:
            raise RuntimeError("broken")

    async with running([Periodic("sweep", 3600, act, clock=clock)], clock=clock) as workers:
        for expected in range(1, UNHEALTHY_AFTER + 1):
            await until(lambda expected=expected: tries == expected and clock.sleepers)
            clock.advance(LONGEST_PAUSE_S)
        await until(lambda: tries > UNHEALTHY_AFTER)
        assert "failed" in workers.problems()[0]
        failing = False
        await until(lambda: clock.sleepers)
        clock.advance(3600)
        await until(lambda: not workers.problems())


@pytest.fixture
async def eventlog(tmp_path: Path) -> AsyncIterator[EventLog]:
    async with open_eventlog(f"local:{tmp_path}/log.db?partitions=2") as opened:
        yield opened


def messages(*numbers: int) -> list[Message]:
    return [Message(f"k{number}", str(number).encode(), {"request-id": f"r{number}"}) for number in numbers]


async def test_consume_commits_what_was_handled(eventlog: EventLog) -> None:
    seen: list[int] = []

    async def handle(batch: Batch) -> None:
        seen.extend(int(record.value) for record in batch.records)

    metrics = PrometheusMetrics()
    async with running([consume(eventlog, "readers", [TOPIC], handle, metrics=metrics)]):
        await eventlog.append(TOPIC, messages(*range(10)))
        await until(lambda: len(seen) == 10)
        await eventlog.append(TOPIC, messages(10))
        await until(lambda: len(seen) == 11)
    assert sorted(seen) == list(range(11))
    assert await eventlog.lag("readers", TOPIC) == 0
    assert 'latebind_log_records_total{group="readers"} 11.0' in metrics.render().decode()


async def test_what_could_not_be_handled_comes_again(eventlog: EventLog, clock: FakeClock) -> None:
    broken = UNHEALTHY_AFTER + 1
    tries = 0
    seen: list[int] = []

    async def handle(batch: Batch) -> None:
        nonlocal tries
        tries += 1
        if tries <= broken:
            raise RuntimeError("broken")
        seen.extend(int(record.value) for record in batch.records)

    async with running([consume(eventlog, "readers", [TOPIC], handle, clock=clock)], clock=clock) as workers:
        await eventlog.append(TOPIC, messages(1, 2, 3))
        for expected in range(1, broken + 1):
            await until(lambda expected=expected: tries == expected and clock.sleepers)
            assert bool(workers.problems()) == (expected >= UNHEALTHY_AFTER)
            clock.advance(LONGEST_PAUSE_S)
        await until(lambda: len(seen) >= 3)
        await until(lambda: not workers.problems())
    assert sorted(seen) == [1, 2, 3]
    assert await eventlog.lag("readers", TOPIC) == 0


async def test_the_batch_in_hand_is_finished_at_the_stop(eventlog: EventLog) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def handle(batch: Batch) -> None:
        begun.set()
        await finish.wait()

    async with running([consume(eventlog, "readers", [TOPIC], handle)]) as workers:
        await eventlog.append(TOPIC, messages(1))
        await begun.wait()
        workers.stop.request()
        await turns()
        finish.set()
    assert await eventlog.lag("readers", TOPIC) == 0


async def test_a_partition_that_moved_away_is_dropped_and_handled_elsewhere(eventlog: EventLog) -> None:
    handled: list[int] = []
    begun, finish = asyncio.Event(), asyncio.Event()
    first_time = True

    async def handle(batch: Batch) -> None:
        nonlocal first_time
        if first_time:
            first_time = False
            begun.set()
            await finish.wait()
        handled.extend(int(record.value) for record in batch.records)

    await eventlog.append(TOPIC, messages(*range(20)))
    async with running([consume(eventlog, "readers", [TOPIC], handle)]) as workers:
        await begun.wait()
        async with running([consume(eventlog, "readers", [TOPIC], handle, name="second")]):
            await turns()
            finish.set()
            async with asyncio.timeout(5):
                while await eventlog.lag("readers", TOPIC):
                    await asyncio.sleep(0.01)
        assert workers.problems() == []
    assert set(handled) == set(range(20))


async def test_lingering_makes_bigger_batches(eventlog: EventLog, clock: FakeClock) -> None:
    sizes: list[int] = []

    async def handle(batch: Batch) -> None:
        sizes.append(len(batch.records))

    async def append_slowly() -> None:
        for number in range(10):
            await eventlog.append(TOPIC, messages(number))
            await asyncio.sleep(0.001)

    async with running([consume(eventlog, "readers", [TOPIC], handle, linger_s=0.3, max_records=10)]):
        await append_slowly()
        await until(lambda: sum(sizes) == 10)
    assert sizes == [10], "the limit ends the waiting"


async def test_what_was_gathered_is_handled_at_the_stop(eventlog: EventLog) -> None:
    seen: list[int] = []

    async def handle(batch: Batch) -> None:
        seen.extend(int(record.value) for record in batch.records)

    await eventlog.append(TOPIC, messages(1, 2, 3))
    async with asyncio.timeout(10), running([consume(eventlog, "readers", [TOPIC], handle, linger_s=3600)]):
        await asyncio.sleep(0.15)
        await eventlog.append(TOPIC, messages(4))
        await asyncio.sleep(0.15)
        assert seen == []
    assert sorted(seen) == [1, 2, 3, 4]
    assert await eventlog.lag("readers", TOPIC) == 0


async def test_the_request_id_of_a_record_is_known_while_it_is_handled(eventlog: EventLog) -> None:
    ids: list[str] = []

    async def handle(batch: Batch) -> None:
        ids.append(request_id.get())

    async with running([consume(eventlog, "readers", [TOPIC], handle, max_records=1)]):
        await eventlog.append(TOPIC, messages(7))
        await until(lambda: ids)
    assert ids == ["r7"]
