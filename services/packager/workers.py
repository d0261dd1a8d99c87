"""The packager's background work: reads what was committed, and runs jobs a few at a time, each in children of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from structlog import get_logger

from kit.blobs import BlobStore
from kit.clock import Clock
from kit.errors import Unavailable
from kit.eventlog import Batch, EventLog
from kit.metrics import Metric, Metrics
from kit.workers import Stop, Worker, consume
from services.packager import events
from services.packager.domain import Claim, Note, Packed
from services.packager.environments import Environments
from services.packager.errors import ModelRejected
from services.packager.isolation.cage import Level
from services.packager.manifest import Identity
from services.packager.packing import Packer
from services.packager.results import Results
from services.packager.sandbox import Limits, open_sandbox
from services.packager.service import CLAIM, ClaimLost, PackagerService
from services.packager.signing import Signer

PACKAGER_METRICS = (
    Metric("latebind_packager_jobs_total", "counter", "Jobs that ended here.", ("outcome",)),
    Metric("latebind_packager_job_seconds", "histogram", "Time from a claim to the end of the job."),
    Metric("latebind_packager_running_jobs", "gauge", "Jobs that run now."),
    Metric("latebind_packager_queued_jobs", "gauge", "Jobs that wait, of all accounts."),
    Metric("latebind_packager_warm_parents", "gauge", "Processes that hold a runtime's libraries ready for children."),
)

_LOOK_S = 1.0
_RENEW_S = CLAIM.total_seconds() / 4
_FLUSH_S = 0.2
_STOP_GRACE_S = 5.0

#: What a job says while it works; None ends it.
_Told = asyncio.Queue[Note | None]

log = get_logger(__name__)


def commits(eventlog: EventLog, service: PackagerService, clock: Clock, metrics: Metrics) -> Worker:
    """Return the worker that turns commits into jobs and new accounts into announced keys."""

    async def handle(batch: Batch) -> None:
        for record in batch.records:
            event_id = record.headers.get("event-id", "")
            try:
                if record.topic == events.ACCOUNT_CREATED:
                    account = events.read_account(record.value)
                    committed = None
                else:
                    committed = events.read_committed(record.value)
                    account = committed.account
            except events.UNREADABLE as error:
                # Only the registry writes here; one record that nobody can read must not stop all later versions.
                log.error("an event cannot be read and is skipped", topic=record.topic, event_id=event_id, error=str(error))
                continue
            if committed is None:
                await service.announce_key(event_id, account)
            else:
                await service.start_job(event_id, committed)

    topics = [events.VERSION_COMMITTED, events.ACCOUNT_CREATED]
    return consume(eventlog, "packager", topics, handle, name="packager-commits", clock=clock, metrics=metrics)


def _engines() -> dict[str, str]:
    """Name the engines that examine models, with their versions: with another one a result may be another one."""
    found = {}
    for name in ("onnxruntime", "ai-edge-litert", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class JobRunner(Worker):
    """Runs up to `at_once` jobs. Several of it, in several processes, share the work; a job belongs to one of them at a time."""

    name = "packager-jobs"

    def __init__(
        self,
        service: PackagerService,
        blobs: BlobStore,
        signer: Signer,
        clock: Clock,
        metrics: Metrics,
        *,
        holder: str,
        scratch: Path,
        limits: Limits,
        environments: Environments,
        levels: Sequence[Level],
        warm_s: float,
        at_once: int,
        tool_version: str,
    ) -> None:
        metrics.register(*PACKAGER_METRICS)
        self._service, self._blobs, self._signer, self._clock, self._metrics = service, blobs, signer, clock, metrics
        self._holder, self._scratch, self._limits, self._at_once, self._tool_version = holder, scratch, limits, at_once, tool_version
        self._environments, self._levels, self._warm_s = environments, levels, warm_s
        self._level: Level | None = None

    async def prepare(self) -> None:
        """Find a sandbox that holds on this machine. Raises `NoSandbox`."""
        async with open_sandbox(self._scratch, self._limits, self._environments, self._levels) as sandbox:
            self._level = sandbox.level

    def fact(self) -> str | None:
        """Say how strong the sandbox is, once that is known."""
        return None if self._level is None else f"sandbox: {self._level}"

    async def run(self, stop: Stop) -> None:
        """Claim and run jobs until the stop; those that do not end soon after it go back to the queue."""
        await self._service.take_over(self._holder)
        async with open_sandbox(self._scratch, self._limits, self._environments, self._levels, warm_s=self._warm_s) as sandbox:
            self._level = sandbox.level
            results = Results(self._service, self._blobs, {"latebind-server": self._tool_version, **_engines()})
            packer = Packer(self._blobs, self._signer, sandbox, results, self._tool_version)
            running: set[asyncio.Task[None]] = set()
            try:
                while not stop.requested:
                    running = {task for task in running if not task.done()}
                    claim = await self._service.claim(self._holder) if len(running) < self._at_once else None
                    if claim is not None:
                        running.add(asyncio.create_task(self._run_job(packer, claim), name=f"job {claim.job.job_id}"))
                    else:
                        await stop.unless(self._next(running))
                    self._metrics.gauge("latebind_packager_running_jobs", len(running))
                    self._metrics.gauge("latebind_packager_queued_jobs", await self._service.queued())
                    self._metrics.gauge("latebind_packager_warm_parents", sandbox.warm_parents)
                if running:
                    await asyncio.wait(running, timeout=_STOP_GRACE_S)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _next(self, running: set[asyncio.Task[None]]) -> None:
        """Return when there may be something to do: a change of jobs, the end of one, or time for a look."""
        waits: set[asyncio.Future[None]] = {asyncio.ensure_future(self._service.bell.wait(self._clock, _LOOK_S)), *running}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits - running:
                wait.cancel()

    async def _run_job(self, packer: Packer, claim: Claim) -> None:
        """Run one job to its end. It never raises: what goes wrong is the job's failure, or the job's next attempt."""
        job = claim.job
        started = self._clock.monotonic()
        told: _Told = asyncio.Queue()

        def report(step: str, progress: float, text: str) -> None:
            told.put_nowait(Note(self._clock.now(), step, progress, text))

        identity = Identity(job.account, job.model_id, job.version, job.job_id, job.version_created_at)
        work = asyncio.create_task(packer.pack(identity, claim.declaration, report))
        keeper = asyncio.create_task(self._keep(claim, told))
        outcome = "error"
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                keeper.result()  # says what ended it
            told.put_nowait(None)
            await keeper
            outcome = await self._end(claim, work)
        except ClaimLost:
            outcome = "lost"
        except asyncio.CancelledError:
            outcome = "released"
            await asyncio.shield(self._give_back(claim, work, keeper, told))
            raise
        except Exception as error:
            log.exception("a job attempt failed", job=job.job_id, attempt=claim.attempt)
            await self._try_later(claim, error)
        finally:
            work.cancel()
            told.put_nowait(None)
            await asyncio.gather(work, keeper, return_exceptions=True)
            self._metrics.count("latebind_packager_jobs_total", outcome=outcome)
            self._metrics.observe("latebind_packager_job_seconds", self._clock.monotonic() - started)

    async def _end(self, claim: Claim, work: asyncio.Task[Packed]) -> str:
        """Store how the work ended. Raises `ClaimLost`, and what is neither success nor the model's fault."""
        try:
            packed = work.result()
        except ModelRejected as rejected:
            await self._service.fail(claim, rejected.reason, rejected.detail, rejected.report)
            log.info("a version cannot be packaged", job=claim.job.job_id, reason=rejected.reason)
            return "failed"
        await self._service.succeed(claim, packed)
        return "succeeded"

    async def _keep(self, claim: Claim, told: _Told) -> None:
        """Write down what is told, a few lines at a time, and renew the claim in between, until told None. Raises `ClaimLost`."""
        renew_at = self._clock.monotonic() + _RENEW_S
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    notes = [await told.get()]
            except TimeoutError:
                if self._clock.monotonic() < renew_at:
                    await self._service.check(claim)
                    continue
                notes = []
            # A few at a time; the end does not wait for more.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S if notes else 0):
                    while None not in notes:
                        notes.append(await told.get())
            await self._service.report(claim, [note for note in notes if note is not None])
            renew_at = self._clock.monotonic() + _RENEW_S
            if None in notes:
                return

    async def _give_back(self, claim: Claim, work: asyncio.Task[Packed], keeper: asyncio.Task[None], told: _Told) -> None:
        """Stop working on a job because the server stops. The keeper is told, not cancelled: it may be inside a transaction."""
        work.cancel()
        told.put_nowait(None)
        await asyncio.gather(work, keeper, return_exceptions=True)
        await self._service.release(claim, 0.0, "the server stops; the job goes on when it is back")

    async def _try_later(self, claim: Claim, error: Exception) -> None:
        pause = min(60.0, 0.5 * 2.0 ** min(claim.attempt, 10))
        words = "a store cannot be reached" if isinstance(error, Unavailable) else "the server had a fault"
        try:
            await self._service.release(claim, pause, f"{words}; the job is tried again")
        except Exception:
            # The claim runs out by itself.
            log.exception("a job could not be given back", job=claim.job.job_id)
