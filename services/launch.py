"""The composition root: opens ports, builds the chosen services, serves, and undoes all of it in reverse.

The only place that knows which services exist. `latebindd` (`services/__main__.py`) is its only caller besides tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field
from structlog import get_logger

from gateway.app import Gateway, create_app
from gateway.routes import route_of
from gateway.settings import GatewaySettings
from gateway.upstreams import HttpUpstream
from kit import http
from kit.blobs import BlobStore, open_blobs
from kit.blobs.links import create_links_app
from kit.clock import Clock, SystemClock
from kit.db.idempotency import forget_answers
from kit.db.lease import forget_leases, leased
from kit.db.migrate import migrate
from kit.db.outbox import forget_seen, outbox_relay
from kit.identity import PrincipalSeal
from kit.metrics import KIT_METRICS, Metrics, PrometheusMetrics
from kit.olap.migrate import migrate as migrate_olap
from kit.ports import Part, Ports, PortSettings, open_ports
from kit.tracing import traced_app, tracing
from kit.watch import watch
from kit.workers import Worker, running
from services.deployer.app import create_part as create_deployer
from services.deployer.settings import DeployerSettings
from services.packager.app import create_part as create_packager
from services.packager.settings import PackagerSettings
from services.probes import ServiceFront, internal_app, readiness
from services.registry.accounts.bootstrap import ensure_operator_key
from services.registry.app import create_part as create_registry
from services.registry.settings import RegistrySettings
from services.serving import bind, inherited_socket, serving, url_of
from services.telemetry.app import create_part as create_telemetry
from services.telemetry.columnstore import SCHEMA
from services.telemetry.settings import TelemetrySettings
from services.topics import TOPICS

log = get_logger(__name__)

SERVICES = ("registry", "packager", "deployer", "telemetry")
Only = Literal["all", "api", "workers"]

_CLEAN_UP_S = 3600.0
#: A stop takes at most 30 s: `drain_s` (10 at most), requests in flight, workers, and what closing takes.
_FINISH_S = 10
_GRACE_S = 7.0
_WATCH_GRACE_S = 1.0
_STOP_S = 29.5
#: A start waits so long for what it answers from.
_LOAD_S = 3.0


class AlreadyRunning(Exception):
    """Another process works on this data folder."""


class LaunchSettings(PortSettings):
    """What to serve, and where. Environment prefix `LATEBIND_`."""

    host: str = "127.0.0.1"
    port: int = 8080
    internal_host: str = "127.0.0.1"
    internal_port: int = 8081
    drain_s: float = Field(default=0.0, ge=0, le=10)
    traces_url: str = ""
    traces_share: float = Field(default=1.0, ge=0, le=1)
    log_level: str = "info"

    @property
    def operator_key_file(self) -> Path:
        """Where the operator key is put when it is made."""
        return self.data_dir / "operator.key"


@dataclass(frozen=True, slots=True)
class Started:
    """What runs, for the caller that prints it: addresses as served, and the operator key when this start made it."""

    url: str
    internal_url: str
    operator_key: str | None
    operator_key_file: Path


OnStarted = Callable[[Started], None]


def create_part(service: str, ports: Ports) -> Part:
    """Build one service from its own settings (environment)."""
    match service:
        case "registry":
            return create_registry(RegistrySettings(), ports)
        case "packager":
            return create_packager(PackagerSettings(), ports)
        case "deployer":
            return create_deployer(DeployerSettings(), ports)
        case "telemetry":
            return create_telemetry(TelemetrySettings(), ports)
    raise ValueError(f"there is no service {service!r}: choose from {', '.join(SERVICES)}")


async def run(settings: LaunchSettings, *, services: Sequence[str], with_gateway: bool, only: Only, on_started: OnStarted) -> None:
    """Serve until SIGTERM or SIGINT. `services` empty: the gateway alone, in front of the upstreams of its settings.

    Raises `AlreadyRunning`, `AddressInUse` or `CannotStart` with a text for the operator.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with launched(settings, services=services, with_gateway=with_gateway, only=only) as started:
        on_started(started)
        await stop.wait()
        log.info("stopping")
        giving_up = threading.Timer(_STOP_S, _give_up)
        giving_up.daemon = True
        giving_up.start()
    giving_up.cancel()


def _give_up() -> None:
    """End the process although something does not close, a driver that waits for a silent server perhaps.

    Whatever was acknowledged is safe, as in a crash.
    """
    log.error("the stop takes too long and is cut short", after_s=_STOP_S)
    os._exit(1)


@asynccontextmanager
async def launched(
    settings: LaunchSettings,
    *,
    services: Sequence[str] = SERVICES,
    with_gateway: bool = True,
    only: Only = "all",
    clock: Clock | None = None,
) -> AsyncIterator[Started]:
    """Everything that `run` serves, as a context; leaving it drains, flushes and closes in that order."""
    clock = clock or SystemClock()
    metrics = PrometheusMetrics(*KIT_METRICS)
    async with AsyncExitStack() as stack:
        stack.enter_context(tracing(settings.traces_url, instance=settings.holder, share=settings.traces_share))
        embedded = bool(services) and not settings.database_url
        if embedded:
            stack.enter_context(_one_process(settings.data_dir))
        sockets = [inherited_socket() or bind(settings.host, settings.port), bind(settings.internal_host, settings.internal_port)]
        ports = await stack.enter_async_context(open_ports(settings, services, clock=clock, metrics=metrics))
        operator_key = await _prepare(settings, ports) if embedded else None  # elsewhere `latebindd migrate` has done it
        parts = {service: _traced(service, create_part(service, one)) for service, one in ports.items()}
        working = _workers(parts, ports, only)
        for worker in working:
            await worker.prepare()
        workers = await stack.enter_async_context(running(working, clock=clock, metrics=metrics, grace_s=_GRACE_S))
        await stack.enter_async_context(
            running([watch(ports, workers, working, metrics)], clock=clock, metrics=metrics, grace_s=_WATCH_GRACE_S)
        )
        remotes = _remotes(stack, parts) if with_gateway else {}
        ready = readiness(parts, ports, workers, remotes, only_workers=only == "workers")
        if with_gateway:
            app: Gateway | ServiceFront = await _gateway(
                stack, settings, parts=parts, ports=ports, remotes=remotes, metrics=metrics, ready=ready
            )
            front = traced_app("gateway", app, template=_template, from_outside=True)
        else:
            app = front = ServiceFront(None if only == "workers" else next(iter(parts.values())), ready)
        # The public port closes first; probes and metrics are there to the end.
        await stack.enter_async_context(serving(internal_app(app, metrics), sockets[1], finish_s=_FINISH_S))
        if only != "workers":
            await _loaded(parts.values())
        await stack.enter_async_context(serving(front, sockets[0], finish_s=_FINISH_S))
        app.started = True
        try:
            yield Started(url_of(sockets[0]), url_of(sockets[1]), operator_key, settings.operator_key_file)
        finally:
            app.draining = True
            await asyncio.sleep(settings.drain_s)


async def _loaded(parts: Collection[Part]) -> None:
    """Wait a moment for what services answer from, so that devices do not notice a restart; without it they say that they are not ready."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LOAD_S):
            while any(part.unready() for part in parts):  # noqa: ASYNC110 - it is polled once, at the start
                await asyncio.sleep(0.01)


def _traced(service: str, part: Part) -> Part:
    return replace(part, app=traced_app(service, part.app, template=_template))


def _template(path: str) -> str:
    """Name a path in traces by its route, without the ids in it."""
    route = route_of(path)
    return route.prefix if route else "/internal" if path.startswith("/internal/") else "other"


async def migrate_all(settings: LaunchSettings, services: Sequence[str]) -> str | None:
    """Bring the stores of these services to the newest revision (`latebindd migrate`); returns the operator key when this made it.

    Several may run at once: one works, the others look and find it done.
    """
    async with open_ports(settings, services, clock=SystemClock(), metrics=PrometheusMetrics(*KIT_METRICS)) as ports:
        operator_key = await _prepare(settings, ports)
        await next(iter(ports.values())).eventlog.make_topics(dict.fromkeys(TOPICS))
        if "telemetry" in ports:
            own = ports["telemetry"]
            async with own.database.begin():  # the column store has no locks; writers of a database take turns
                await migrate_olap(own.olap, SCHEMA)
    log.info("migrated", services=list(services))
    return operator_key


async def _prepare(settings: LaunchSettings, ports: Mapping[str, Ports]) -> str | None:
    for service, one in ports.items():  # one after the other: Alembic keeps its context in globals
        await migrate(one.database, f"services.{service}")
    return await ensure_operator_key(ports["registry"], settings.operator_key_file) if "registry" in ports else None


def _workers(parts: Mapping[str, Part], ports: Mapping[str, Ports], only: Only) -> list[Worker]:
    workers: list[Worker] = []
    for service, part in parts.items():
        own = ports[service]
        if only != "workers":
            workers += part.beside_api
        if only != "api":
            workers += part.background
            workers.append(outbox_relay(service, own.database, own.eventlog, own.lease, own.clock))
            workers.append(leased(own.lease, f"{service}-forget-seen", _CLEAN_UP_S, _clean_up(own), clock=own.clock))
    return workers


def _clean_up(own: Ports) -> Callable[[], Awaitable[object]]:
    async def forget() -> None:
        await forget_seen(own.database, own.clock)
        await forget_answers(own.database, own.clock)
        await forget_leases(own.database)

    return forget


def _remotes(stack: AsyncExitStack, parts: Mapping[str, Part]) -> dict[str, HttpUpstream]:
    """Return the services that run elsewhere. Raises `ValueError` for one whose address is not set."""
    settings = GatewaySettings()
    remotes: dict[str, HttpUpstream] = {}
    for service in SERVICES:
        if service in parts:
            continue
        urls = getattr(settings, f"{service}_url")
        if not urls:
            raise ValueError(f"the gateway needs LATEBIND_GATEWAY_{service.upper()}_URL, the address of the {service} service")
        remotes[service] = HttpUpstream(urls)
        stack.push_async_callback(remotes[service].close)
    return remotes


async def _gateway(
    stack: AsyncExitStack,
    settings: LaunchSettings,
    *,
    parts: Mapping[str, Part],
    ports: Mapping[str, Ports],
    remotes: Mapping[str, HttpUpstream],
    metrics: Metrics,
    ready: http.Readiness,
) -> Gateway:
    """Return the gateway before the services that run here and those that run elsewhere."""
    secrets = settings.secrets
    blobs: BlobStore | None = next((one.blobs for one in ports.values()), None)
    if blobs is None:
        blobs = await stack.enter_async_context(open_blobs(settings.blobs, link_secret=secrets.key("links")))
    links = create_links_app(blobs, link_secret=secrets.key("links"))
    upstreams: dict[str, http.ASGIApp] = {service: part.app for service, part in parts.items()} | dict(remotes) | {"links": links}
    gateway = create_app(GatewaySettings(), upstreams, seal=PrincipalSeal(secrets.key("gateway")), metrics=metrics, readiness=ready)
    if parts:
        await gateway.check()
    return gateway


@contextmanager
def _one_process(data_dir: Path) -> Iterator[None]:
    """Hold the data folder's lock: embedded stores take one process. Raises `AlreadyRunning`."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise AlreadyRunning(
                f"another latebindd (process {other}) works on {data_dir}; stop it, or choose another --data-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
