"""Every query of the packager: rows in, dataclasses out. It decides nothing and opens no transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, func, select, update

from kit.db import Reader, Transaction
from services.packager.domain import Claim, Job, JobState, Line, Note, Package
from services.packager.tables import JOB_LINES, JOBS, PACKAGES, RESULTS

_OTHER = JOBS.alias("other")
_RUNNABLE = JOBS.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value])


async def add_job(tx: Transaction, job: Job, declaration: bytes) -> None:
    """Insert a queued job."""
    await tx.execute(
        JOBS.insert().values(
            account=job.account,
            job_id=job.job_id,
            model_id=job.model_id,
            version=job.version,
            version_created_at=job.version_created_at,
            declaration=declaration,
            state=job.state.value,
            progress=job.progress,
            step=job.step,
            created_at=job.created_at,
            not_before=job.created_at,
            attempt=0,
        )
    )


async def find_job(reader: Reader, account: str, job_id: str) -> Job | None:
    """Return a job of the account."""
    row = await reader.first(select(JOBS).where(JOBS.c.account == account, JOBS.c.job_id == job_id))
    return None if row is None else _job(row)


async def list_jobs(reader: Reader, account: str, *, before: str | None, limit: int, model_id: str | None, state: str | None) -> list[Job]:
    """Return jobs of the account, newest first, behind the id `before`."""
    query = select(JOBS).where(JOBS.c.account == account).order_by(JOBS.c.job_id.desc()).limit(limit)
    if before is not None:
        query = query.where(JOBS.c.job_id < before)
    if model_id is not None:
        query = query.where(JOBS.c.model_id == model_id)
    if state is not None:
        query = query.where(JOBS.c.state == state)
    return [_job(row) for row in await reader.all(query)]


async def any_runnable(reader: Reader, now: datetime, most: int) -> bool:
    """Whether `claim_next` would find a job: asked first, so that looking costs no write."""
    return await reader.first(select(JOBS.c.job_id).where(*_claimable(now, most)).limit(1)) is not None


async def count_queued(reader: Reader, account: str | None = None) -> int:
    """Return how many jobs wait, of one account or of all."""
    query = select(func.count()).select_from(JOBS).where(JOBS.c.state == JobState.QUEUED.value)
    return int(await reader.scalar(query if account is None else query.where(JOBS.c.account == account)))


async def claim_next(tx: Transaction, holder: str, now: datetime, until: datetime, most: int) -> Claim | None:
    """Take the job that waits longest: a queued one whose time has come, or a running one whose holder has let go.

    Accounts that have `most` jobs running are passed over; of the others the one with fewer running comes first.
    """
    running = _running(now).where(_OTHER.c.account == JOBS.c.account).scalar_subquery()
    query = select(JOBS).where(*_claimable(now, most)).order_by(running, JOBS.c.created_at, JOBS.c.job_id).limit(1)
    row = await tx.first(query.with_for_update(skip_locked=True))
    if row is None:
        return None
    await tx.execute(
        update(JOBS)
        .where(JOBS.c.account == row.account, JOBS.c.job_id == row.job_id)
        .values(
            state=JobState.RUNNING.value,
            holder=holder,
            attempt=row.attempt + 1,
            not_before=until,
            started_at=row.started_at or now,
        )
    )
    return Claim(_job(row), row.declaration, holder, row.attempt + 1)


async def free_jobs_of(tx: Transaction, holder: str, now: datetime) -> int:
    """Let go of running jobs that an earlier life of this holder left behind. Returns how many."""
    result = await tx.execute(
        update(JOBS).where(JOBS.c.state == JobState.RUNNING.value, JOBS.c.holder == holder).values(holder=None, not_before=now)
    )
    return result.rowcount


async def still_held(reader: Reader, claim: Claim) -> bool:
    """Whether the claim still counts; inside a transaction that stays so until its end."""
    query = select(JOBS.c.job_id).where(_held(claim))
    return await reader.first(query.with_for_update() if isinstance(reader, Transaction) else query) is not None


async def report(tx: Transaction, claim: Claim, *, progress: float, step: str, until: datetime) -> None:
    """Store how far the job is and keep holding it."""
    await tx.execute(update(JOBS).where(_held(claim)).values(progress=progress, step=step, not_before=until))


async def hold_on(tx: Transaction, claim: Claim, until: datetime) -> None:
    """Keep holding the job."""
    await tx.execute(update(JOBS).where(_held(claim)).values(not_before=until))


async def requeue(tx: Transaction, claim: Claim, not_before: datetime) -> None:
    """Give the job back."""
    values = {"state": JobState.QUEUED.value, "holder": None, "not_before": not_before, "progress": 0.0, "step": "queued"}
    await tx.execute(update(JOBS).where(_held(claim)).values(**values))


async def end_job(
    tx: Transaction,
    account: str,
    job_id: str,
    state: JobState,
    now: datetime,
    *,
    step: str,
    code: str | None = None,
    detail: str | None = None,
) -> None:
    """Store the final state; success is progress 1."""
    values: dict[str, Any] = {"state": state.value, "step": step, "code": code, "detail": detail, "finished_at": now, "holder": None}
    if state is JobState.SUCCEEDED:
        values["progress"] = 1.0
    await tx.execute(update(JOBS).where(JOBS.c.account == account, JOBS.c.job_id == job_id).values(**values))


async def count_lines(reader: Reader, account: str, job_id: str) -> int:
    """Return how many lines the job's log has."""
    query = select(func.count()).select_from(JOB_LINES).where(JOB_LINES.c.account == account, JOB_LINES.c.job_id == job_id)
    return int(await reader.scalar(query))


async def add_lines(tx: Transaction, account: str, job_id: str, lines: Sequence[Line]) -> None:
    """Append to the job's log."""
    rows = [
        {"account": account, "job_id": job_id, "position": one.position, "at": one.note.at, "step": one.note.step,
         "progress": one.note.progress, "text": one.note.text}
        for one in lines
    ]  # fmt: skip
    await tx.execute(JOB_LINES.insert(), rows)


async def list_lines(reader: Reader, account: str, job_id: str, *, after: int, limit: int) -> list[Line]:
    """Return log lines behind a position, in order."""
    query = (
        select(JOB_LINES)
        .where(JOB_LINES.c.account == account, JOB_LINES.c.job_id == job_id, JOB_LINES.c.position > after)
        .order_by(JOB_LINES.c.position)
        .limit(limit)
    )
    return [Line(row.position, Note(row.at, row.step, row.progress, row.text)) for row in await reader.all(query)]


async def add_packages(tx: Transaction, account: str, job_id: str, packages: Sequence[Package]) -> None:
    """Insert the packages of a job, in order."""
    rows = [
        {"account": account, "job_id": job_id, "position": position, "variant": one.variant, "digest": one.digest,
         "manifest": one.manifest, "envelope": one.envelope, "size": one.size}
        for position, one in enumerate(packages)
    ]  # fmt: skip
    await tx.execute(PACKAGES.insert(), rows)


async def list_packages(reader: Reader, account: str, job_id: str) -> list[Package]:
    """Return the packages of a job, in order."""
    query = select(PACKAGES).where(PACKAGES.c.account == account, PACKAGES.c.job_id == job_id).order_by(PACKAGES.c.position)
    return [Package(row.variant, row.digest, row.manifest, row.envelope, row.size) for row in await reader.all(query)]


async def find_result(tx: Transaction, account: str, key: str, now: datetime) -> bytes | None:
    """Return what was kept of the account under a key, and remember that it was of use."""
    mine = and_(RESULTS.c.account == account, RESULTS.c.key == key)
    row = await tx.first(select(RESULTS.c.value).where(mine))
    if row is None:
        return None
    await tx.execute(update(RESULTS).where(mine).values(used_at=now))
    value: bytes = row.value
    return value


async def keep_result(tx: Transaction, account: str, key: str, value: bytes, *, size: int, now: datetime) -> None:
    """Keep a value of the account, with files of `size` bytes, under a key."""
    await tx.execute(RESULTS.delete().where(RESULTS.c.account == account, RESULTS.c.key == key))
    await tx.execute(RESULTS.insert().values(account=account, key=key, value=value, size=size, used_at=now))


async def list_results(reader: Reader, account: str) -> list[tuple[str, int]]:
    """Return (key, size) of all that the account has, the one that was of use last first."""
    query = select(RESULTS.c.key, RESULTS.c.size).where(RESULTS.c.account == account)
    return [(row.key, row.size) for row in await reader.all(query.order_by(RESULTS.c.used_at.desc(), RESULTS.c.key))]


async def read_results(reader: Reader, account: str, keys: Sequence[str]) -> list[tuple[str, bytes]]:
    """Return (key, value) of some."""
    query = select(RESULTS.c.key, RESULTS.c.value).where(RESULTS.c.account == account, RESULTS.c.key.in_(keys))
    return [(row.key, row.value) for row in await reader.all(query)]


async def delete_results(tx: Transaction, account: str, keys: Sequence[str]) -> None:
    """Forget some."""
    await tx.execute(RESULTS.delete().where(RESULTS.c.account == account, RESULTS.c.key.in_(keys)))


def _claimable(now: datetime, most: int) -> tuple[Any, ...]:
    running = _running(now).where(_OTHER.c.account == JOBS.c.account).scalar_subquery()
    return (_RUNNABLE, JOBS.c.not_before <= now, running < most)


def _running(now: datetime) -> Any:
    """Count running jobs that somebody holds now."""
    return select(func.count()).select_from(_OTHER).where(_OTHER.c.state == JobState.RUNNING.value, _OTHER.c.not_before > now)


def _held(claim: Claim) -> Any:
    return and_(
        JOBS.c.account == claim.job.account,
        JOBS.c.job_id == claim.job.job_id,
        JOBS.c.state == JobState.RUNNING.value,
        JOBS.c.holder == claim.holder,
        JOBS.c.attempt == claim.attempt,
    )


def _job(row: Row[Any]) -> Job:
    return Job(
        row.account,
        row.job_id,
        row.model_id,
        row.version,
        JobState(row.state),
        row.progress,
        row.step,
        row.code,
        row.detail,
        row.created_at,
        row.started_at,
        row.finished_at,
        row.version_created_at,
    )
