"""Background work as contexts: started together, restarted when it crashes, stopped without losing what it began.

`running()` looks after workers, `consume()` and `Periodic` are the two kinds that services need. It starts no processes and catches
no signals; what the work is, is the service's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from kit.clock import Clock, SystemClock
from kit.context import request_id
from kit.errors import Unavailable
from kit.eventlog import Batch, Consumer, ConsumerStoodStill, EventLog, PartitionLost
from kit.logs import get_logger, log_context
from kit.metrics import Metrics, NullMetrics
from kit.tracing import Attributes, handling

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
#: A worker that ran this long since its last crash counts as recovered.
STEADY_S = 20.0
#: So many failures of one handler in a row turn readiness red; the worker goes on trying.
UNHEALTHY_AFTER = 5
_LOOK_S = 0.1

log = get_logger(__name__)

T = TypeVar("T")


class Stop:
    """Says once that work must end. Workers wait on it wherever they wait for anything else."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def request(self) -> None:
        """Ask for the end; asking again changes nothing."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Return when the end is asked for."""
        await self._event.wait()

    async def sleep(self, clock: Clock, seconds: float) -> bool:
        """Wait that long or until the end is asked for. Return whether to go on."""
        await self.unless(clock.sleep(seconds))
        return not self.requested

    async def unless(self, work: Awaitable[T]) -> T | None:
        """Return the result of `work`, or None when the end is asked for before it is there; then `work` is cancelled."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            stopped.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


class Backoff:
    """Growing pauses with jitter: doubled after each failure, from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`."""

    def __init__(self, first_s: float = FIRST_PAUSE_S, longest_s: float = LONGEST_PAUSE_S) -> None:
        self.failures = 0
        self._first_s, self._longest_s = first_s, longest_s

    def next_pause(self) -> float:
        """Count a failure and return the seconds to wait: between half and all of the doubled pause."""
        pause = min(self._longest_s, self._first_s * float(2 ** min(self.failures, 32)))
        self.failures += 1
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, guards nothing

    def reset(self) -> None:
        """Start small again."""
        self.failures = 0


def told(error: BaseException) -> dict[str, object]:
    """Return what to log of an error: the words of one that passes by itself or that an operator ends, the traceback of any other."""
    return {"error": f"{error.code}: {error.detail}"} if isinstance(error, Unavailable) else {"exc_info": error}


class CannotStart(Exception):
    """This machine or its settings do not let a worker do its job; the text is for the operator."""


class Worker(ABC):
    """Runs until asked to stop: takes no more, finishes what it has, commits, closes, returns."""

    name: str
    #: (group, topic) of the event log that it reads; its lag is measured.
    reads: tuple[tuple[str, str], ...] = ()

    async def prepare(self) -> None:  # noqa: B027 - most have nothing to find out
        """Find out, before anything of the process starts, whether this machine lets it work. Raises `CannotStart`."""

    @abstractmethod
    async def run(self, stop: Stop) -> None:
        """Work until `stop`. An exception is a crash: `running` starts it again. Returning early means there is nothing more to do."""

    def problem(self) -> str | None:
        """Say why it cannot do its job now; None when it can."""
        return None

    def fact(self) -> str | None:
        """Say what operators should know of how it works here, for readiness; None: nothing."""
        return None


class Workers:
    """Workers that run. `health()` is for readiness."""

    def __init__(self, workers: Sequence[Worker], clock: Clock, metrics: Metrics) -> None:
        names = [worker.name for worker in workers]
        if len(set(names)) != len(names):
            raise ValueError(f"two workers have the same name: {sorted(names)}")
        self.stop = Stop()
        self._workers = tuple(workers)
        self._clock, self._metrics = clock, metrics
        self._crashes: dict[str, str] = {}

    def health(self) -> dict[str, str | None]:
        """Return per worker what is wrong with it; None: nothing."""
        report = {worker.name: self._crashes.get(worker.name) or worker.problem() for worker in self._workers}
        for name, trouble in report.items():
            self._metrics.gauge("latebind_worker_healthy", 0 if trouble else 1, worker=name)
        return report

    def facts(self) -> dict[str, str]:
        """Return what to know of workers that say something about themselves."""
        return {worker.name: fact for worker in self._workers if (fact := worker.fact()) is not None}

    def problems(self) -> list[str]:
        """Return one sentence per worker that cannot do its job."""
        return [f"worker {name}: {trouble}" for name, trouble in self.health().items() if trouble]

    async def keep_alive(self, worker: Worker) -> None:
        """Run one worker; start it again after each crash, with growing pauses, until the stop."""
        backoff = Backoff()
        with log_context(worker=worker.name):
            while not self.stop.requested:
                recovery = asyncio.create_task(self._recover(worker, backoff))
                try:
                    await worker.run(self.stop)
                    self._crashes.pop(worker.name, None)
                    return
                except (Exception, asyncio.CancelledError) as error:
                    if _told_to_end(error):
                        raise
                    pause = backoff.next_pause()
                    self._crashes[worker.name] = f"crashed ({type(error).__name__})"
                    self._metrics.count("latebind_worker_crashes_total", worker=worker.name)
                    log.error("worker crashed", restart_in_s=round(pause, 2), **told(error))
                finally:
                    recovery.cancel()
                await self.stop.sleep(self._clock, pause)

    async def _recover(self, worker: Worker, backoff: Backoff) -> None:
        if worker.name not in self._crashes:
            return
        # Green after having run twice as long as the last pause; small pauses again only after a steady while.
        green_s = min(STEADY_S, FIRST_PAUSE_S * 2**backoff.failures)
        await self._clock.sleep(green_s)
        self._crashes.pop(worker.name, None)
        await self._clock.sleep(STEADY_S - green_s)
        backoff.reset()


def _told_to_end(error: BaseException) -> bool:
    """Whether this task is being cancelled. A library may let the end of a task of its own out as `CancelledError`: that is a crash."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


@asynccontextmanager
async def running(
    workers: Sequence[Worker], *, clock: Clock | None = None, metrics: Metrics | None = None, grace_s: float = 20.0
) -> AsyncIterator[Workers]:
    """Run the workers while the block runs. On exit all are asked to stop; who has not ended after `grace_s` is cancelled.

    What was cancelled was not committed, so the next start does it again.
    """
    group = Workers(workers, clock or SystemClock(), metrics or NullMetrics())
    tasks = {asyncio.create_task(group.keep_alive(worker), name=f"worker {worker.name}"): worker for worker in workers}
    try:
        yield group
    finally:
        group.stop.request()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                log.error("worker did not stop in time and is cancelled", worker=tasks[task].name, grace_s=grace_s)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Periodic(Worker):
    """Does `action` every `every_s` seconds, plus or minus a tenth, the first time at once. An error is logged and shown in health."""

    def __init__(
        self, name: str, every_s: float, action: Callable[[], Awaitable[object]], *, clock: Clock | None = None, jitter: float = 0.1
    ) -> None:
        self.name = name
        self._every_s, self._action, self._jitter = every_s, action, jitter
        self._clock = clock or SystemClock()
        self._failures = 0
        self._wake = asyncio.Event()

    def problem(self) -> str | None:
        """Say that it failed several times in a row."""
        return f"failed {self._failures} times in a row" if self._failures >= UNHEALTHY_AFTER else None

    def wake(self) -> None:
        """Do the action as soon as possible instead of waiting for the next turn."""
        self._wake.set()

    async def run(self, stop: Stop) -> None:
        """Act, wait, act …; the action that runs at the stop is finished."""
        backoff = Backoff(longest_s=max(self._every_s, FIRST_PAUSE_S))
        while not stop.requested:
            self._wake.clear()
            pause = self._every_s * random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311 - spreads load, guards nothing
            try:
                await self._action()
                self._failures = 0
                backoff.reset()
            except Exception as error:
                self._failures += 1
                pause = min(pause, backoff.next_pause())
                log.error("periodic work failed", work=self.name, failures=self._failures, **told(error))
            await stop.unless(self._next_turn(pause))

    async def _next_turn(self, pause: float) -> None:
        waits = {asyncio.ensure_future(self._clock.sleep(pause)), asyncio.ensure_future(self._wake.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


Handle = Callable[[Batch], Awaitable[None]]


class _Consume(Worker):
    """What `consume` returns."""

    def __init__(
        self,
        eventlog: EventLog,
        group: str,
        topics: Sequence[str],
        handle: Handle,
        *,
        name: str,
        max_records: int,
        max_bytes: int,
        max_wait_s: float,
        linger_s: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self._log, self._group, self._topics, self._handle = eventlog, group, tuple(topics), handle
        self.reads = tuple((group, topic) for topic in topics)
        self._max_records, self._max_bytes, self._max_wait_s, self._linger_s = max_records, max_bytes, max_wait_s, linger_s
        self._clock, self._metrics = clock, metrics
        self._failures = 0
        self._last_error = ""
        self._stood_still = ""

    def problem(self) -> str | None:
        """Say that handling failed several times in a row, or that there is no consumer that reads."""
        if self._stood_still or self._failures < UNHEALTHY_AFTER:
            return self._stood_still or None
        return f"failed {self._failures} times in a row ({self._last_error})"

    async def run(self, stop: Stop) -> None:
        """Batch → handle → commit, until the stop. The batch in hand is finished; nothing is taken afterwards."""
        backoff = Backoff()
        async with self._log.consumer(self._group, self._topics) as consumer:
            self._stood_still = ""
            while not stop.requested:
                try:
                    batch = await self._gather(consumer, stop)
                    if not batch.records:
                        continue
                    await self._finish(consumer, batch)
                    self._failures = 0
                    backoff.reset()
                except PartitionLost:
                    log.info("a partition moved to another consumer; its batch is dropped here", group=self._group)
                    await consumer.rewind()
                except ConsumerStoodStill as error:
                    self._stood_still = str(error)
                    self._metrics.count("latebind_log_stalls_total", group=self._group)
                    raise  # this run ends as crashed, and the next one joins anew
                except Exception as error:
                    self._failures += 1
                    self._last_error = type(error).__name__
                    self._metrics.count("latebind_log_failures_total", group=self._group)
                    pause = backoff.next_pause()
                    facts = {"group": self._group, "failures": self._failures, "pause_s": round(pause, 2)} | told(error)
                    log.error("handling a batch failed; it is read again", **facts)
                    await stop.sleep(self._clock, pause)
                    await consumer.rewind()

    async def _finish(self, consumer: Consumer, batch: Batch) -> None:
        start = self._clock.monotonic()
        origins = {record.headers.get("request-id", "") for record in batch.records}
        token = request_id.set(origins.pop() if len(origins) == 1 else "")
        attributes: Attributes = {"messaging.consumer.group.name": self._group, "messaging.batch.message_count": len(batch.records)}
        try:
            with handling("log", f"handle {self._group}", (record.headers for record in batch.records), attributes=attributes):
                await self._handle(batch)
        finally:
            request_id.reset(token)
        await consumer.commit(batch.next_offsets())
        self._metrics.observe("latebind_log_batch_seconds", self._clock.monotonic() - start, group=self._group)
        self._metrics.count("latebind_log_records_total", len(batch.records), group=self._group)

    async def _gather(self, consumer: Consumer, stop: Stop) -> Batch:
        """One batch; with `linger_s`, what arrives within that time of the first record, up to the limits or the stop."""
        first = await stop.unless(consumer.batch(max_records=self._max_records, max_bytes=self._max_bytes, max_wait_s=self._max_wait_s))
        if first is None:
            return Batch(())
        if self._linger_s <= 0 or not first.records:
            return first
        loop = asyncio.get_running_loop()
        until = loop.time() + self._linger_s
        records = list(first.records)
        size = sum(len(record.value) for record in records)
        while not stop.requested and len(records) < self._max_records and size < self._max_bytes:
            left = until - loop.time()
            if left <= 0:
                break
            # Looks now and then instead of at every record: reading a few at a time costs more than it brings.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_S)):
                    await stop.wait()
            more = await consumer.batch(max_records=self._max_records - len(records), max_bytes=self._max_bytes - size, max_wait_s=0)
            records += more.records
            size += sum(len(record.value) for record in more.records)
        return Batch(tuple(records))


def consume(
    eventlog: EventLog,
    group: str,
    topics: Sequence[str],
    handle: Handle,
    *,
    name: str | None = None,
    max_records: int = 500,
    max_bytes: int = 4 << 20,
    max_wait_s: float = 5.0,
    linger_s: float = 0.0,
    clock: Clock | None = None,
    metrics: Metrics | None = None,
) -> Worker:
    """Return a worker that reads `topics` as `group`: batch → `await handle(batch)` → commit.

    `handle` must bear to see a record again: after an error the batch is read again behind growing pauses (readiness turns red
    after `UNHEALTHY_AFTER` in a row), and what was handled but not committed when the process died comes once more.
    `linger_s` makes bigger batches: after the first record it waits that long for others, or until a limit is reached; at the stop
    what was gathered is handled. Waiting is in real seconds; `clock` times the pauses.
    """
    return _Consume(
        eventlog,
        group,
        topics,
        handle,
        name=name or group,
        max_records=max_records,
        max_bytes=max_bytes,
        max_wait_s=max_wait_s,
        linger_s=linger_s,
        clock=clock or SystemClock(),
        metrics=metrics or NullMetrics(),
    )
