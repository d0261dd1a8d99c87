"""The composition root: opens ports, builds the chosen services, serves, and undoes all of it in reverse.

The only place that knows which services exist. `latebindd` (`services/__main__.py`) is its only caller besides tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import uvicorn
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
from kit.db.lease import leased
from kit.db.migrate import migrate
from kit.db.outbox import forget_seen, outbox_relay
from kit.identity import PrincipalSeal
from kit.metrics import CONTENT_TYPE, KIT_METRICS, Metrics, PrometheusMetrics
from kit.ports import Part, Ports, PortSettings, open_ports
from kit.tracing import traced_app, tracing
from kit.watch import dependencies, trouble, watch
from kit.workers import Worker, Workers, running
from services.deployer.app import create_part as create_deployer
from services.deployer.settings import DeployerSettings
from services.packager.app import create_part as create_packager
from services.packager.settings import PackagerSettings
from services.registry.accounts.bootstrap import ensure_operator_key
from services.registry.app import create_part as create_registry
from services.registry.settings import RegistrySettings
from services.telemetry.app import create_part as create_telemetry
from services.telemetry.settings import TelemetrySettings

log = get_logger(__name__)

SERVICES = ("registry", "packager", "deployer", "telemetry")
Only = Literal["all", "api", "workers"]

_CLEAN_UP_S = 3600.0
_DRAIN_S = 20


class AlreadyRunning(Exception):
    """Another process works on this data folder."""


class AddressInUse(Exception):
    """Another program listens on the address."""


class LaunchSettings(PortSettings):
    """What to serve, and where. Environment prefix `LATEBIND_`."""

    host: str = "127.0.0.1"
    port: int = 8080
    internal_host: str = "127.0.0.1"
    internal_port: int = 8081
    drain_s: float = 0.0
    traces_url: str = ""
    traces_share: float = Field(default=1.0, ge=0, le=1)
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Started:
    """What runs, for the caller that prints it: addresses as served, and the operator key when this start made it."""

    url: str
    internal_url: str
    operator_key: str | None
    operator_key_file: Path


OnStarted = Callable[[Started], None]


def _create_part(service: str, ports: Ports) -> Part:
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

    Raises `AlreadyRunning` or `AddressInUse` with a text for the operator.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with launched(settings, services=services, with_gateway=with_gateway, only=only) as started:
        on_started(started)
        await stop.wait()
        log.info("stopping")


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
        if services and not settings.database_url:
            stack.enter_context(_one_process(settings.data_dir))
        sockets = [_bind(settings.host, settings.port), _bind(settings.internal_host, settings.internal_port)]
        ports = await stack.enter_async_context(open_ports(settings, services, clock=clock, metrics=metrics))
        for service, one in ports.items():  # one after the other: Alembic keeps its context in globals
            await migrate(one.database, f"services.{service}")
        parts = {service: _traced(service, _create_part(service, one)) for service, one in ports.items()}
        operator_key = None
        if "registry" in ports:
            operator_key = await ensure_operator_key(ports["registry"], settings.data_dir / "operator.key")
        working = _workers(parts, ports, only)
        workers = await stack.enter_async_context(running(working, clock=clock, metrics=metrics))
        await stack.enter_async_context(running([watch(ports, workers, working, metrics)], clock=clock, metrics=metrics))
        readiness = _readiness(ports, workers)
        app = await _public_app(stack, parts, ports, metrics, readiness, with_gateway=with_gateway, settings=settings)
        internal = _internal_app(app, metrics)
        front = traced_app("gateway", app, template=_template, from_outside=True) if with_gateway else app
        for served, bound in ((front, sockets[0]), (internal, sockets[1])):
            await stack.enter_async_context(_serving(served, bound))
        app.started = True
        try:
            yield Started(_url(sockets[0]), _url(sockets[1]), operator_key, settings.data_dir / "operator.key")
        finally:
            app.draining = True
            await asyncio.sleep(settings.drain_s)


def _traced(service: str, part: Part) -> Part:
    return replace(part, app=traced_app(service, part.app, template=_template))


def _template(path: str) -> str:
    """Name a path in traces by its route, without the ids in it."""
    route = route_of(path)
    return route.prefix if route else "/internal" if path.startswith("/internal/") else "other"


async def migrate_all(settings: LaunchSettings, services: Sequence[str]) -> None:
    """Bring the databases of these services to the newest revision (`latebindd migrate`)."""
    async with open_ports(settings, services, clock=SystemClock(), metrics=PrometheusMetrics(*KIT_METRICS)) as ports:
        for service, one in ports.items():
            await migrate(one.database, f"services.{service}")
            log.info("migrated", service=service)


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

    return forget


async def _public_app(
    stack: AsyncExitStack,
    parts: Mapping[str, Part],
    ports: Mapping[str, Ports],
    metrics: Metrics,
    readiness: Callable[[], Awaitable[Mapping[str, str | None]]],
    *,
    with_gateway: bool,
    settings: LaunchSettings,
) -> Gateway | ServiceFront:
    """Return the gateway before the services that run here and the remote ones, or one service alone."""
    if not with_gateway:
        (part,) = parts.values()
        return ServiceFront(part.app, readiness)
    gateway_settings = GatewaySettings()
    upstreams: dict[str, http.ASGIApp] = {service: part.app for service, part in parts.items()}
    for service in SERVICES:
        if service not in upstreams:
            url = getattr(gateway_settings, f"{service}_url")
            if not url:
                raise ValueError(f"the gateway needs LATEBIND_GATEWAY_{service.upper()}_URL, the address of the {service} service")
            remote = HttpUpstream(url)
            stack.push_async_callback(remote.close)
            upstreams[service] = remote
    secrets = settings.secrets
    blobs: BlobStore | None = next((one.blobs for one in ports.values()), None)
    if blobs is None:
        blobs = await stack.enter_async_context(open_blobs(settings.blobs, link_secret=secrets.key("links")))
    upstreams["links"] = create_links_app(blobs, link_secret=secrets.key("links"))
    gateway = create_app(gateway_settings, upstreams, seal=PrincipalSeal(secrets.key("gateway")), metrics=metrics, readiness=readiness)
    if parts:
        await gateway.check()
    return gateway


class ServiceFront:
    """One service on its own port: the same probes as the gateway, everything else to the service."""

    def __init__(self, app: http.ASGIApp, readiness: Callable[[], Awaitable[Mapping[str, str | None]]]) -> None:
        self._app = app
        self._readiness = readiness
        self.started = False
        self.draining = False

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http" and scope["path"] in {"/livez", "/readyz", "/startupz"}:
            await self.health(scope["path"], send)
        else:
            await self._app(scope, receive, send)

    async def health(self, path: str, send: http.Send) -> None:
        """Answer a probe."""
        await http.send_health(path, send, self._readiness, started=self.started, draining=self.draining)


def _internal_app(app: Gateway | ServiceFront, metrics: Metrics) -> http.ASGIApp:
    """Probes and `/metrics`, on a port that is not public."""

    async def internal(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/metrics":
            await http.send_bytes(send, 200, metrics.render(), [(b"content-type", CONTENT_TYPE.encode())])
        elif scope["path"] in {"/livez", "/readyz", "/startupz"}:
            await app.health(scope["path"], send)
        else:
            await http.send_bytes(send, 404, b"")

    return internal


def _readiness(ports: Mapping[str, Ports], workers: Workers) -> Callable[[], Awaitable[Mapping[str, str | None]]]:
    """Return a check that pings what this process opened, each within a second, and asks the workers."""

    async def ready() -> Mapping[str, str | None]:
        checks = dependencies(ports)
        answers = await asyncio.gather(*(trouble(check) for check in checks.values()))
        return {**dict(zip(checks, answers, strict=True)), **{f"worker {name}": problem for name, problem in workers.health().items()}}

    return ready


class _Server(uvicorn.Server):
    """Leaves signals to `run`: uvicorn would raise SIGTERM again after its own stop, and the flush would never run."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _serving(app: Any, bound: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=_DRAIN_S,
        backlog=2048,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]), name=f"server {_url(bound)}")
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task
        bound.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL}:
            raise AddressInUse(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host and --port") from error
        raise
    return bound


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


def default_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where it runs, else None for asyncio's own."""
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 - not there on every platform

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
