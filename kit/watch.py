"""Looks every few seconds at what an operator alerts on and nobody else counts: pools, outboxes, lag, dependencies, workers.

The figures are gauges (docs/metrics.md). It decides nothing: readiness asks for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from kit.db.outbox import waiting
from kit.errors import Problem
from kit.metrics import Metrics
from kit.ports import Ports
from kit.workers import Periodic, Worker, Workers

EVERY_S = 10.0
_ANSWER_S = 1.0


def dependencies(ports: Mapping[str, Ports]) -> dict[str, Callable[[], Awaitable[None]]]:
    """Return name -> ping of everything that the services of this process need; only telemetry needs the column store."""
    checks: dict[str, Callable[[], Awaitable[None]]] = {f"database {service}": own.database.ping for service, own in ports.items()}
    for own in ports.values():
        checks["blob store"] = own.blobs.ping
        checks["event log"] = own.eventlog.ping
    if "telemetry" in ports:
        checks["column store"] = ports["telemetry"].olap.ping
    return checks


async def trouble(check: Callable[[], Awaitable[object]]) -> str | None:
    """Return what is wrong with a dependency, or None when it answers within a second."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            await check()
    except TimeoutError:
        return f"does not answer within {_ANSWER_S:.0f} s"
    except Problem as problem:
        return problem.detail
    return None


def watch(ports: Mapping[str, Ports], workers: Workers, read: Sequence[Worker], metrics: Metrics) -> Worker:
    """Return the worker that keeps the gauges. `read` are the workers whose groups' lag is of interest."""

    async def look() -> None:
        workers.health()  # sets the workers' gauge
        for service, own in ports.items():
            for use, (in_use, idle) in own.database.connections().items():
                metrics.gauge("latebind_database_connections", in_use, service=service, use=use, state="in_use")
                metrics.gauge("latebind_database_connections", idle, service=service, use=use, state="idle")
        checks = dependencies(ports)
        wrong = await asyncio.gather(*(trouble(check) for check in checks.values()))
        for name, problem in zip(checks, wrong, strict=True):
            metrics.gauge("latebind_dependency_up", 0 if problem else 1, dependency=name)
        if ports:
            await asyncio.gather(_outboxes(ports, metrics), _lags(next(iter(ports.values())), read, metrics))

    return Periodic("watch", EVERY_S, look)


async def _outboxes(ports: Mapping[str, Ports], metrics: Metrics) -> None:
    for service, own in ports.items():

        async def measure(service: str = service, own: Ports = own) -> None:
            events, oldest_s = await waiting(own.database, own.clock)
            metrics.gauge("latebind_outbox_events", events, service=service)
            metrics.gauge("latebind_outbox_oldest_seconds", oldest_s, service=service)

        await _if_possible(measure)


async def _lags(own: Ports, read: Sequence[Worker], metrics: Metrics) -> None:
    for group, topic in sorted({place for worker in read for place in worker.reads}):

        async def measure(group: str = group, topic: str = topic) -> None:
            metrics.gauge("latebind_log_lag_records", await own.eventlog.lag(group, topic), group=group, topic=topic)

        await _if_possible(measure)


async def _if_possible(measure: Callable[[], Awaitable[None]]) -> None:
    """Leave the gauge as it was when the dependency is down, which `latebind_dependency_up` says."""
    with contextlib.suppress(Problem, TimeoutError):
        async with asyncio.timeout(EVERY_S):
            await measure()
