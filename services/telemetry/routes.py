"""HTTP of analytics: a query in, one question, an answer out. What devices call is `device.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request

from kit.identity import Access, Principal
from kit.web import requires
from services.telemetry.queries import Analytics, Rows
from services.telemetry.schemas import (
    ActiveInstallsAnswer,
    ActiveInstallsQuery,
    AdoptionAnswer,
    AdoptionQuery,
    CompareAnswer,
    CompareQuery,
    DeviceFilters,
    FailuresAnswer,
    FailuresQuery,
    InferencesAnswer,
    InferencesQuery,
    LatencyAnswer,
    LatencyQuery,
)
from services.telemetry.selection import Selection
from services.telemetry.service import Telemetry

router = APIRouter(prefix="/v1/analytics", tags=["analytics"])

Reader = Annotated[Principal, requires(Access.READ)]
Found = TypeVar("Found", bound=Rows)


async def _ask(
    request: Request, caller: Principal, query: DeviceFilters, question: Callable[[Analytics, Selection], Awaitable[Found]]
) -> tuple[Found, dict[str, Any]]:
    """Ask about the caller's own account; return the rows, and what every answer says."""
    telemetry: Telemetry = request.app.state.telemetry
    selection = query.selection(caller.tenant, telemetry.now())
    fresh = await telemetry.ask(lambda analytics: question(analytics, selection))
    return fresh.answer, {
        "items": fresh.answer.items,
        "truncated": fresh.answer.truncated,
        "since": selection.since,
        "until": selection.until,
        "as_of": fresh.as_of,
        "pending_batches": fresh.pending_batches,
    }


@router.get("/active-installs", response_model_exclude_unset=True)
async def active_installs(request: Request, caller: Reader, query: Annotated[ActiveInstallsQuery, Query()]) -> ActiveInstallsAnswer:
    """Distinct installs that were active, per `interval` (day, month)."""
    _, members = await _ask(request, caller, query, lambda a, selection: a.active_installs(selection, interval=query.interval))
    return ActiveInstallsAnswer.model_validate(members)


@router.get("/inferences", response_model_exclude_unset=True)
async def inferences(request: Request, caller: Reader, query: Annotated[InferencesQuery, Query()]) -> InferencesAnswer:
    """Number of inferences by group; over time with `interval` (hour, day, month)."""
    found, members = await _ask(request, caller, query, lambda a, selection: a.inferences(selection, interval=query.interval))
    return InferencesAnswer.model_validate({**members, "dropped_samples": found.dropped_samples})


@router.get("/latency", response_model_exclude_unset=True)
async def latency(request: Request, caller: Reader, query: Annotated[LatencyQuery, Query()]) -> LatencyAnswer:
    """Count, mean and percentiles by group and phase (load, first, steady)."""
    _, members = await _ask(request, caller, query, lambda a, selection: a.latency(selection, phases=query.phase))
    return LatencyAnswer.model_validate(members)


@router.get("/adoption", response_model_exclude_unset=True)
async def adoption(request: Request, caller: Reader, query: Annotated[AdoptionQuery, Query()]) -> AdoptionAnswer:
    """Installs per version over time."""
    _, members = await _ask(request, caller, query, lambda a, selection: a.adoption(selection, interval=query.interval))
    return AdoptionAnswer.model_validate(members)


@router.get("/failures", response_model_exclude_unset=True)
async def failures(request: Request, caller: Reader, query: Annotated[FailuresQuery, Query()]) -> FailuresAnswer:
    """Failures by phase (resolve, download, verify, load, run) and code."""
    _, members = await _ask(request, caller, query, lambda a, selection: a.failures(selection, phases=query.phase, code=query.code))
    return FailuresAnswer.model_validate(members)


@router.get("/compare", response_model_exclude_unset=True)
async def compare(request: Request, caller: Reader, query: Annotated[CompareQuery, Query()]) -> CompareAnswer:
    """Two versions of a model side by side: `version` is the baseline, `to` the candidate."""
    found, members = await _ask(
        request, caller, query, lambda a, selection: a.compare(selection, model=query.model, baseline=query.version, candidate=query.to)
    )
    baseline, candidate = found.sides
    return CompareAnswer.model_validate({**members, "model": query.model, "baseline": baseline, "candidate": candidate})
