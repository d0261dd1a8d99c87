"""What the job routes answer."""

from __future__ import annotations

from datetime import datetime

from kit.clock import rfc3339
from kit.web import Model
from services.packager.domain import Job, Line
from services.packager.service import JobDetails


class JobProblem(Model):
    """Why a job did not succeed. `code` is stable, `detail` is for the model's owner."""

    type: str
    title: str
    code: str
    detail: str


class PackageSummary(Model):
    """One package of a result: `digest` is its id (SHA-256 of the manifest), `size` the sum of its files in bytes."""

    variant: str
    digest: str
    size: int


class JobResult(Model):
    """What a job that succeeded made, in the version's order of preference."""

    packages: list[PackageSummary]


class JobLine(Model):
    """One line of a job's log; also the data of the SSE event `progress`."""

    position: int
    at: str
    state: str
    progress: float
    step: str
    text: str


class JobSummary(Model):
    """A job in a list. `state`: queued, running, succeeded, failed, cancelled; `progress` from 0 to 1, `step` in words."""

    job_id: str
    model_id: str
    version: int
    state: str
    progress: float
    step: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    problem: JobProblem | None


class JobDocument(JobSummary):
    """A job: with its result once it succeeded, and its log."""

    result: JobResult | None
    log: list[JobLine]


def summary(job: Job) -> JobSummary:
    """Describe a job in a list."""
    return JobSummary(
        job_id=job.job_id,
        model_id=job.model_id,
        version=job.version,
        state=job.state,
        progress=job.progress,
        step=job.step,
        created_at=rfc3339(job.created_at),
        started_at=_moment(job.started_at),
        finished_at=_moment(job.finished_at),
        problem=_problem(job),
    )


def document(details: JobDetails) -> JobDocument:
    """Describe a job with everything."""
    packages = [PackageSummary(variant=one.variant, digest=one.digest, size=one.size) for one in details.packages]
    return JobDocument(
        **summary(details.job).model_dump(exclude={"problem"}),
        problem=_problem(details.job),
        result=JobResult(packages=packages) if packages else None,
        log=[line(one) for one in details.lines],
    )


def line(one: Line) -> JobLine:
    """Describe a line of a job's log."""
    note = one.note
    state = note.step if note.step in {"queued", "failed", "cancelled"} else "succeeded" if note.step == "done" else "running"
    return JobLine(position=one.position, at=rfc3339(note.at), state=state, progress=note.progress, step=note.step, text=note.text)


def _moment(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)


def _problem(job: Job) -> JobProblem | None:
    if job.code is None:
        return None
    kind = job.code.lower().replace("_", "-")
    return JobProblem(
        type=f"urn:latebind:error:{kind}", title=job.code.replace("_", " ").capitalize(), code=job.code, detail=job.detail or ""
    )
