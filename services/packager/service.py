"""The packager's use cases; each is one transaction. It knows neither HTTP nor how a model is examined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from kit.clock import Clock, timestamp_ms
from kit.db import Database, Transaction
from kit.ids import id_time_ms
from services.packager import events, store
from services.packager.domain import Claim, Job, JobState, Line, Note, Package, Packed, Quota, surplus_results
from services.packager.errors import JobFinished, JobNotFound, Reason
from services.packager.events import Committed
from services.packager.signing import ROLE, Signer

#: A claim holds this long without a word from its holder.
CLAIM = timedelta(seconds=20)
#: After so many attempts that ended without an answer the job is given up.
MAX_ATTEMPTS = 12
MAX_LINES = 400
#: So many results are kept per account.
MAX_RESULTS = 500

_CONSUMER = "packager"
_YOUNG_MS = 10_000
_PATIENCE_S = 2.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class JobDetails:
    """A job with its log and, once it succeeded, its packages."""

    job: Job
    lines: Sequence[Line]
    packages: Sequence[Package]


class ClaimLost(Exception):
    """The job was cancelled, or belongs to another process now: stop working on it."""


class Bell:
    """Wakes who waits for a change of jobs in this process; changes made by other processes are found by looking now and then."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everybody."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, clock: Clock, seconds: float) -> None:
        """Return at the next ring, or after `seconds`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        pause = asyncio.ensure_future(clock.sleep(seconds))
        try:
            await asyncio.wait({future, pause}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            self._waiting.discard(future)
            future.cancel()


class PackagerService:
    """Jobs: made from commits, claimed by runners, watched and cancelled by people."""

    def __init__(self, database: Database, signer: Signer, clock: Clock, quota: Quota) -> None:
        self._database = database
        self._quota = quota
        self._signer = signer
        self._clock = clock
        #: Rings at every change that this process makes.
        self.bell = Bell()

    # --- what the log tells us --------------------------------------------------------------------------------------------------

    async def announce_key(self, event_id: str, account: str) -> None:
        """Tell which key signs the packages of a new account."""
        async with self._database.begin() as tx:
            if await tx.first_time(_CONSUMER, event_id):
                value = events.key_announced(account, ROLE, self._signer.key_id(account), self._signer.public_key(account))
                await tx.emit(events.SIGNING_KEY_ANNOUNCED, key=account, account=account, value=value)

    async def start_job(self, event_id: str, committed: Committed) -> None:
        """Queue the job of a committed version. The same event again changes nothing."""
        async with self._database.begin() as tx:
            if not await tx.first_time(_CONSUMER, event_id):
                return
            if await store.find_job(tx, committed.account, committed.job_id) is not None:
                return
            now = self._clock.now()
            job = Job(
                committed.account, committed.job_id, committed.model_id, committed.version, JobState.QUEUED, 0.0, "queued",
                None, None, now, None, None, committed.created_at,
            )  # fmt: skip
            await store.add_job(tx, job, committed.declaration)
            await store.add_lines(tx, job.account, job.job_id, [Line(1, Note(now, "queued", 0.0, "queued"))])
            if (full := await self._full(tx, job.account)) is not None:
                await self._fail(tx, job, JobState.FAILED, *full)
        self.bell.ring()

    async def _full(self, tx: Transaction, account: str) -> tuple[Reason, str] | None:
        """Say whether the job that was just added is one too many."""
        quota = self._quota
        if await store.count_queued(tx, account) > quota.queued_per_account:
            return Reason.ACCOUNT_QUEUE_FULL, (
                f"{quota.queued_per_account} jobs of this account wait already. Wait until some have ended, then commit again."
            )
        if await store.count_queued(tx) > quota.queued:
            return Reason.QUEUE_FULL, f"{quota.queued} jobs wait on this server already. Commit again later."
        return None

    # --- what people ask --------------------------------------------------------------------------------------------------------

    async def job(self, account: str, job_id: str) -> Job:
        """Return a job. One whose id is seconds old may still be on its way through the log, so it is waited for briefly.

        Raises `JobNotFound`.
        """
        until = self._clock.monotonic() + (_PATIENCE_S if self._is_young(job_id) else 0.0)
        while True:
            async with self._database.read() as reader:
                job = await store.find_job(reader, account, job_id)
            if job is not None:
                return job
            left = until - self._clock.monotonic()
            if left <= 0:
                raise JobNotFound(f"there is no job {job_id[:80]}")
            await self.bell.wait(self._clock, min(left, _POLL_S / 5))

    async def details(self, account: str, job_id: str) -> JobDetails:
        """Return a job with log and packages. Raises `JobNotFound`."""
        await self.job(account, job_id)
        async with self._database.read() as reader:
            job = await store.find_job(reader, account, job_id)
            assert job is not None  # jobs are never deleted
            lines = await store.list_lines(reader, account, job_id, after=0, limit=MAX_LINES + 1)
            packages = await store.list_packages(reader, account, job_id)
        return JobDetails(job, lines, packages)

    async def jobs(
        self, account: str, *, before: str | None, limit: int, model_id: str | None = None, state: str | None = None
    ) -> list[Job]:
        """Return jobs of the account, newest first, behind the id `before`."""
        async with self._database.read() as reader:
            return await store.list_jobs(reader, account, before=before, limit=limit, model_id=model_id, state=state)

    async def watch(self, account: str, job_id: str, after: int) -> AsyncIterator[Line | Job]:
        """Yield the log lines behind a position as they come, and the job itself once it has ended."""
        while True:
            async with self._database.read() as reader:
                # The job first: lines that come later belong to a state that is not final.
                job = await store.find_job(reader, account, job_id)
                lines = await store.list_lines(reader, account, job_id, after=after, limit=MAX_LINES + 1)
            for line in lines:
                after = line.position
                yield line
            if job is None:
                return
            if job.state.final:
                yield job
                return
            await self.bell.wait(self._clock, _POLL_S)

    async def cancel(self, account: str, job_id: str) -> Job:
        """End a job that waits or runs; its child is killed by whoever runs it. Raises `JobNotFound`, `JobFinished`."""
        await self.job(account, job_id)
        async with self._database.begin() as tx:
            job = await store.find_job(tx, account, job_id)
            assert job is not None
            if job.state is JobState.CANCELLED:
                return job
            if job.state.final:
                raise JobFinished(f"the job has {job.state} already")
            await self._fail(tx, job, JobState.CANCELLED, Reason.JOB_CANCELLED, "The job was cancelled. Commit a new version to try again.")
        self.bell.ring()
        return await self.job(account, job_id)

    # --- what runners do --------------------------------------------------------------------------------------------------------

    async def take_over(self, holder: str) -> int:
        """Let go of jobs that this holder ran before it was restarted. Returns how many."""
        async with self._database.begin() as tx:
            return await store.free_jobs_of(tx, holder, self._clock.now())

    async def claim(self, holder: str) -> Claim | None:
        """Take the next job; None when there is nothing to do. A job that never ends in an answer is given up here."""
        async with self._database.read() as reader:
            if not await store.any_runnable(reader, self._clock.now(), self._quota.running_per_account):
                return None
        async with self._database.begin() as tx:
            now = self._clock.now()
            claim = await store.claim_next(tx, holder, now, now + CLAIM, self._quota.running_per_account)
            if claim is None or claim.attempt <= MAX_ATTEMPTS:
                return claim
            await self._fail(
                tx, claim.job, JobState.FAILED, Reason.JOB_ABANDONED,
                f"Packaging was started {MAX_ATTEMPTS} times and never finished. Tell the operator; the server's log says why.",
            )  # fmt: skip
        self.bell.ring()
        return await self.claim(holder)

    async def queued(self) -> int:
        """Return how many jobs wait."""
        async with self._database.read() as reader:
            return await store.count_queued(reader)

    async def find_result(self, account: str, key: str) -> bytes | None:
        """Return what the account's same work came to before; None when it is not known (any more)."""
        async with self._database.begin() as tx:
            return await store.find_result(tx, account, key, self._clock.now())

    async def keep_result(self, account: str, key: str, value: bytes, size: int = 0) -> Sequence[tuple[str, bytes]]:
        """Keep what the account's work came to, with files of `size` bytes. Return (key, value) of what has to go.

        Each account has `MAX_RESULTS`, and files of `Quota.result_bytes` in all; what was of no use for the longest time goes.
        """
        async with self._database.begin() as tx:
            await store.keep_result(tx, account, key, value, size=size, now=self._clock.now())
            surplus = surplus_results(await store.list_results(tx, account), MAX_RESULTS, self._quota.result_bytes)
            return await store.read_results(tx, account, surplus) if surplus else ()

    async def forget_results(self, account: str, keys: Sequence[str]) -> None:
        """Forget what the account's work came to."""
        if keys:
            async with self._database.begin() as tx:
                await store.delete_results(tx, account, keys)

    async def check(self, claim: Claim) -> None:
        """Raise `ClaimLost` when the claim does not count any more."""
        async with self._database.read() as reader:
            if not await store.still_held(reader, claim):
                raise ClaimLost

    async def report(self, claim: Claim, notes: Sequence[Note]) -> None:
        """Add notes to the log and keep the claim. Raises `ClaimLost`."""
        async with self._database.begin() as tx:
            if not await store.still_held(tx, claim):
                raise ClaimLost
            until = self._clock.now() + CLAIM
            if notes:
                await store.report(tx, claim, progress=notes[-1].progress, step=notes[-1].step, until=until)
                await self._log(tx, claim.job, notes)
            else:
                await store.hold_on(tx, claim, until)
        if notes:
            self.bell.ring()

    async def succeed(self, claim: Claim, packed: Packed) -> None:
        """Store the packages and tell the registry. Raises `ClaimLost`."""
        job = claim.job
        async with self._database.begin() as tx:
            if not await store.still_held(tx, claim):
                raise ClaimLost
            packages = packed.packages
            await store.add_packages(tx, job.account, job.job_id, packages)
            now = self._clock.now()
            done = [Note(now, "done", 1.0, f"package {one.variant}: sha256 {one.digest}, {one.size} bytes") for one in packages]
            await self._log(tx, job, done, last=True)
            await store.end_job(tx, job.account, job.job_id, JobState.SUCCEEDED, now, step="done")
            value = events.built(job, packages, packed.report)
            await tx.emit(events.PACKAGE_BUILT, key=events.key_of(job), account=job.account, value=value)
        self.bell.ring()

    async def fail(self, claim: Claim, reason: Reason, detail: str, report: bytes = b"") -> None:
        """End the job as failed and tell the registry, with what was found until then. Raises `ClaimLost`."""
        async with self._database.begin() as tx:
            if not await store.still_held(tx, claim):
                raise ClaimLost
            job = await store.find_job(tx, claim.job.account, claim.job.job_id)
            assert job is not None
            await self._fail(tx, job, JobState.FAILED, reason, detail, report=report)
        self.bell.ring()

    async def release(self, claim: Claim, pause_s: float, text: str) -> None:
        """Give the job back, to be tried again after a pause. A lost claim is fine."""
        async with self._database.begin() as tx:
            if await store.still_held(tx, claim):
                now = self._clock.now()
                await store.requeue(tx, claim, now + timedelta(seconds=pause_s))
                await self._log(tx, claim.job, [Note(now, "queued", 0.0, text)])
        self.bell.ring()

    async def _fail(self, tx: Transaction, job: Job, state: JobState, reason: Reason, detail: str, *, report: bytes = b"") -> None:
        now = self._clock.now()
        await self._log(tx, job, [Note(now, state.value, job.progress, f"{reason}: {detail}")], last=True)
        await store.end_job(tx, job.account, job.job_id, state, now, step=state.value, code=reason, detail=detail)
        await tx.emit(events.PACKAGE_FAILED, key=events.key_of(job), account=job.account, value=events.failed(job, reason, detail, report))

    async def _log(self, tx: Transaction, job: Job, notes: Sequence[Note], *, last: bool = False) -> None:
        """Append to the job's log, which is bounded: beyond the cap only the last words of a job are kept."""
        have = await store.count_lines(tx, job.account, job.job_id)
        kept = notes if last else notes[: max(0, MAX_LINES - have)]
        if kept:
            await store.add_lines(tx, job.account, job.job_id, [Line(have + number, note) for number, note in enumerate(kept, 1)])

    def _is_young(self, job_id: str) -> bool:
        try:
            return abs(timestamp_ms(self._clock.now()) - id_time_ms(job_id)) < _YOUNG_MS
        except ValueError:
            return False
