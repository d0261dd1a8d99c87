"""Puts telemetry together from settings and ports. Opens nothing."""

from __future__ import annotations

from kit import http
from kit.ports import Part, Ports
from kit.web import create_api
from services.telemetry.columnstore import Tables
from services.telemetry.device import OPERATION, DeviceApp
from services.telemetry.queries import Analytics
from services.telemetry.replay import Replay
from services.telemetry.rollup import rollup
from services.telemetry.routes import router
from services.telemetry.service import Telemetry
from services.telemetry.settings import TelemetrySettings
from services.telemetry.workers import retention
from services.telemetry.writer import Writer, WriterOptions


def create_part(settings: TelemetrySettings, ports: Ports) -> Part:
    """Return telemetry: batches are taken in by `device.py`, analytics are served by FastAPI."""
    tables = Tables(ports.olap)
    telemetry = Telemetry(
        eventlog=ports.eventlog, database=ports.database, analytics=Analytics(tables, ports.database, ports.clock), clock=ports.clock
    )
    api = create_api("Latebind telemetry", [router], seal=ports.seal, database=ports.database, raw=[OPERATION])
    api.state.telemetry = telemetry
    device = DeviceApp(telemetry, ports.seal)

    async def app(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/device/"):
            await device(scope, receive, send)
        else:
            await api(scope, receive, send)

    writer = _writer(settings, ports, tables)
    periodic = [
        rollup(ports.lease, ports.database, tables, ports.clock),
        retention(ports.lease, ports.database, tables, ports.clock, days=settings.retention_days),
    ]
    return Part(app=app, background=[writer, *periodic], needs=("event log",))


def create_replay(settings: TelemetrySettings, ports: Ports) -> Replay:
    """Return what `latebindd telemetry replay` works with."""
    writer = _writer(settings, ports, Tables(ports.olap))
    return Replay(eventlog=ports.eventlog, database=ports.database, writer=writer, clock=ports.clock)


def _writer(settings: TelemetrySettings, ports: Ports, tables: Tables) -> Writer:
    options = WriterOptions(settings.linger_s, settings.max_records, settings.max_bytes, settings.max_rejects_in_row)
    return Writer(
        eventlog=ports.eventlog, database=ports.database, tables=tables, clock=ports.clock, metrics=ports.metrics, options=options
    )
