"""Probes and metrics of a process: what `/livez`, `/readyz` and `/startupz` say on the public and on the internal port.

Knows no service: `services.launch` says what there is to look at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from kit import http
from kit.metrics import CONTENT_TYPE, Metrics
from kit.ports import Ports
from kit.watch import dependencies, trouble
from kit.workers import Workers

PROBES = frozenset({"/livez", "/readyz", "/startupz"})
Readiness = Callable[[], Awaitable[Mapping[str, str | None]]]


class Front(Protocol):
    """What answers probes: the gateway, or the front of one service."""

    started: bool
    draining: bool

    async def health(self, path: str, send: http.Send) -> None:
        """Answer a probe."""


class ServiceFront:
    """One service on its own port: the same probes as the gateway, everything else to the service."""

    def __init__(self, app: http.ASGIApp, ready: Readiness) -> None:
        self._app = app
        self._readiness = ready
        self.started = False
        self.draining = False

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http" and scope["path"] in PROBES:
            await self.health(scope["path"], send)
        else:
            await self._app(scope, receive, send)

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
        elif scope["path"] in PROBES:
            await app.health(scope["path"], send)
        else:
            await http.send_bytes(send, 404, b"")

    return internal


def readiness(ports: Mapping[str, Ports], workers: Workers) -> Readiness:
    """Return a check that pings what this process opened, each within a second, and asks the workers."""

    async def ready() -> Mapping[str, str | None]:
        checks = dependencies(ports)
        answers = await asyncio.gather(*(trouble(check) for check in checks.values()))
        facts = {name: http.Fact(fact) for name, fact in workers.facts().items()}
        working = {f"worker {name}": problem or facts.get(name) for name, problem in workers.health().items()}
        return {**dict(zip(checks, answers, strict=True)), **working}

    return ready
