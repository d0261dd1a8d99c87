"""Jobs over HTTP: list, look, watch, cancel. Reads the request, calls the service once, writes the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from kit.identity import Access, Principal
from kit.web import Page, PageQuery, decode_page_token, encode_page_token, page_query, requires
from services.packager.domain import Job, JobState
from services.packager.schemas import JobDocument, JobSummary, document, line, summary
from services.packager.service import PackagerService

router = APIRouter(tags=["jobs"])

Reading = Annotated[Principal, requires(Access.READ)]


def _service(request: Request) -> PackagerService:
    service: PackagerService = request.app.state.packager
    return service


Service = Annotated[PackagerService, Depends(_service)]


@router.get("/v1/jobs", summary="List packaging jobs, newest first")
async def list_jobs(
    caller: Reading,
    service: Service,
    page: Annotated[PageQuery, Depends(page_query)],
    model_id: str | None = None,
    state: JobState | None = None,
) -> Page[JobSummary]:
    """List packaging jobs of the account, newest first; of one model or in one state when asked."""
    token = decode_page_token(page.token, kinds=(str,))
    found = await service.jobs(
        caller.tenant, before=token[0] if token else None, limit=page.size + 1, model_id=model_id, state=state.value if state else None
    )
    more = encode_page_token(found[page.size - 1].job_id) if len(found) > page.size else None
    return Page(items=[summary(job) for job in found[: page.size]], next_page_token=more)


@router.get("/v1/jobs/{job_id}", summary="Look at a job")
async def get_job(caller: Reading, service: Service, job_id: str) -> JobDocument:
    """Look at a job: state, progress, log, and its problem or its packages. Right after a commit this may wait up to 2 s for it."""
    return document(await service.details(caller.tenant, job_id))


async def _visible(caller: Reading, service: Service, job_id: str) -> Job:
    """Look the job up before a stream begins, so that an unknown one is a 404."""
    return await service.job(caller.tenant, job_id)


@router.get("/v1/jobs/{job_id}/events", response_class=EventSourceResponse, summary="Watch a job")
async def watch_job(
    caller: Reading,
    service: Service,
    job: Annotated[Job, Depends(_visible)],
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Watch a job as server-sent events: `progress` for each line of its log, then `done` with the whole job, then the stream ends.

    `Last-Event-ID` resumes behind that line.
    """
    after = int(last_event_id) if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else 0
    async for news in service.watch(caller.tenant, job.job_id, min(after, 1_000_000)):
        if isinstance(news, Job):
            whole = document(await service.details(caller.tenant, job.job_id))
            yield ServerSentEvent(event="done", data=whole)
        else:
            yield ServerSentEvent(event="progress", id=str(news.position), data=line(news))


@router.post("/v1/jobs/{job_id}:cancel", summary="Cancel a job")
async def cancel_job(caller: Annotated[Principal, requires(Access.PUBLISH)], service: Service, job_id: str) -> JobDocument:
    """End a job that waits or runs; its version becomes `failed`. A job that has ended already is `JOB_FINISHED`."""
    await service.cancel(caller.tenant, job_id)
    return document(await service.details(caller.tenant, job_id))
