"""What an operator alerts on is measured while the process runs: pools, outboxes, lag, dependencies, workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.clock import FakeClock
from kit.db.migrate import migrate
from kit.eventlog import Message
from kit.metrics import PrometheusMetrics
from kit.ports import Ports, PortSettings, open_ports
from kit.watch import watch
from kit.workers import Periodic, Stop, Worker, consume, running


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics()


@pytest.fixture
async def ports(tmp_path: Path, clock: FakeClock, metrics: PrometheusMetrics) -> AsyncIterator[Ports]:
    async with open_ports(PortSettings(data_dir=tmp_path), ["deployer"], clock=clock, metrics=metrics) as opened:
        await migrate(opened["deployer"].database, "services.deployer")
        yield opened["deployer"]


async def looked_once(ports: Ports, metrics: PrometheusMetrics, *workers: Worker) -> str:
    async with running([], metrics=metrics) as group:
        worker = watch({"deployer": ports}, group, workers, metrics)
        assert isinstance(worker, Periodic)
        await worker._action()
    return metrics.render().decode()


async def test_what_waits_is_counted(ports: Ports, clock: FakeClock, metrics: PrometheusMetrics) -> None:
    async def never(_batch: object) -> None:
        raise AssertionError

    async with ports.database.begin() as tx:
        await tx.emit("things.happened", key="a", account="acme", value=b"1")
        await tx.emit("things.happened", key="a", account="acme", value=b"2")
    await ports.eventlog.append("things.happened", [Message("a", b"3", {"event-id": "e3"})])
    clock.advance(90)
    async with ports.database.read():
        shown = await looked_once(ports, metrics, consume(ports.eventlog, "readers", ["things.happened"], never))
    assert 'latebind_outbox_events{service="deployer"} 2.0' in shown
    assert 'latebind_outbox_oldest_seconds{service="deployer"} 90.0' in shown
    assert 'latebind_log_lag_records{group="readers",topic="things.happened"} 1.0' in shown
    assert 'latebind_database_connections{service="deployer",state="in_use",use="read"} 1.0' in shown
    assert 'latebind_dependency_up{dependency="database deployer"} 1.0' in shown


async def test_what_is_down_is_said_and_the_rest_is_still_looked_at(ports: Ports, metrics: PrometheusMetrics, tmp_path: Path) -> None:
    (tmp_path / "blobs" / ".tmp").rmdir()
    shown = await looked_once(ports, metrics)
    assert 'latebind_dependency_up{dependency="blob store"} 0.0' in shown
    assert 'latebind_dependency_up{dependency="event log"} 1.0' in shown
    assert 'latebind_outbox_events{service="deployer"} 0.0' in shown


class _Broken(Worker):
    name = "broken"

    async def run(self, stop: Stop) -> None:
        await stop.wait()

    def problem(self) -> str | None:
        return "does nothing"


async def test_workers_are_shown_without_anybody_asking_for_readiness(ports: Ports, metrics: PrometheusMetrics) -> None:
    async with running([_Broken()], metrics=metrics) as group:
        worker = watch({"deployer": ports}, group, [], metrics)
        assert isinstance(worker, Periodic)
        await worker._action()
    assert 'latebind_worker_healthy{worker="broken"} 0.0' in metrics.render().decode()
