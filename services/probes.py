"""Probes and metrics of a process: what `/livez`, `/readyz` and `/startupz` say on the public and on the internal port.

Knows no service: `services.launch` says what there is to look at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from gateway.upstreams import HttpUpstream
from kit import http
from kit.db.migrate import revisions
from kit.errors import NotFound, NotMigrated
from kit.metrics import CONTENT_TYPE, Metrics
from kit.ports import Part, Ports
from kit.watch import dependencies, trouble
from kit.workers import Workers


class Front(Protocol):
    """What answers probes: the gateway, or the front of one service."""

    started: bool
    draining: bool

    async def health(self, path: str, send: http.Send) -> None:
        """Answer a probe."""


class ServiceFront:
    """One service on its own port: the same probes as the gateway, everything else to the service once it can answer.

    Without a service: nothing but probes.
    """

    def __init__(self, part: Part | None, ready: http.Readiness) -> None:
        self._part = part
        self._readiness = ready
        self.started = False
        self.draining = False

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Serve one request (ASGI)."""
        if self.draining:
            send = http.last_answer(send)
        if scope["type"] == "http" and scope["path"] in http.PROBES:
            await self.health(scope["path"], send)
        elif self._part is None:
            if scope["type"] == "http":
                await http.send_problem(send, NotFound("this process runs workers; it serves nothing but probes"))
        elif problem := self._part.unready():
            await http.send_bytes(send, 503, http.problem_body(problem), [*http.problem_headers(problem), (http.NOT_READY, b"1")])
        else:
            await self._part.app(scope, receive, send)

    async def health(self, path: str, send: http.Send) -> None:
        """Answer a probe."""
        await http.send_health(path, send, self._readiness, started=self.started, draining=self.draining)


def internal_app(app: Front, metrics: Metrics) -> http.ASGIApp:
    """Probes and `/metrics`, on a port that is not public."""

    async def internal(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/metrics":
            await http.send_bytes(send, 200, metrics.render(), [(b"content-type", CONTENT_TYPE.encode())])
        elif scope["path"] in http.PROBES:
            await app.health(scope["path"], send)
        else:
            await http.send_bytes(send, 404, b"")

    return internal


def readiness(
    parts: Mapping[str, Part], ports: Mapping[str, Ports], workers: Workers, upstreams: Mapping[str, HttpUpstream], *, only_workers: bool
) -> http.Readiness:
    """Return a look at what this process opened, at its workers and at the services behind it, each within a second or two.

    Where workers are all that runs, everything they need is needed; elsewhere what the parts name.
    """
    migrated: set[str] = set()
    behind: set[str] = set()

    async def tables(service: str) -> None:
        if service in migrated:
            return
        have, newest = await revisions(ports[service].database, f"services.{service}")
        if have is None or have < newest:
            behind.add(service)
            raise NotMigrated.of(service, f" (revision {have or 'none'}, needed is {newest})")
        behind.discard(service)
        migrated.add(service)

    async def ready() -> http.Health:
        checks = dependencies(ports)
        answers = await asyncio.gather(*(trouble(check) for check in checks.values()))
        troubles = dict(zip(checks, answers, strict=True))
        for service, part in parts.items():
            database = f"database {service}"
            if troubles[database] is None:
                troubles[database] = await trouble(partial(tables, service))
            problem = part.unready()
            troubles[service] = None if problem is None else problem.detail
        troubles |= {f"worker {name}": problem for name, problem in workers.health().items()}
        needed = {f"{need} {service}" if need == "database" else need for service, part in parts.items() for need in part.needs}
        needed |= {f"database {service}" for service in behind}  # only somebody's hand helps, so it must be seen
        away = await _upstreams(upstreams)
        if away and None not in away.values() and all(away[name] == _SILENT for name in away):
            needed |= away.keys()  # it is this process that is cut off
        troubles |= away
        facts = {f"worker {name}": fact for name, fact in workers.facts().items()}
        return http.Health(troubles, troubles.keys() if only_workers else needed | parts.keys(), facts)

    return ready


_SILENT = "does not answer"


async def _upstreams(upstreams: Mapping[str, HttpUpstream]) -> dict[str, str | None]:
    """Return what is wrong with each service behind a gateway."""
    answers = await asyncio.gather(*(upstream.alive() for upstream in upstreams.values()))
    found: dict[str, str | None] = {}
    for service, alive in zip(upstreams, answers, strict=True):
        answering = sum(alive.values())
        trouble = None if answering == len(alive) else f"{answering} of {len(alive)} addresses answer" if answering else _SILENT
        found[f"upstream {service}"] = trouble
    return found
