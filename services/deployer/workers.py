"""The deployer's work beside answering: what memory holds, what the log brings, what is written in bulk."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from kit.clock import Clock
from kit.db import DatabaseUnavailable
from kit.db.lease import Lease, leased
from kit.eventlog import EventLog
from kit.metrics import Metrics
from kit.workers import Periodic, Stop, Worker, consume
from services.deployer import events
from services.deployer.fleet import FleetService
from services.deployer.freshness import Freshness
from services.deployer.loader import CONSUMER, Loader
from services.deployer.snapshot import Snapshot

DEVICES = "deployer-devices"
_LINGER_S = 0.2
_CLEAN_UP_S = 3600.0
_PRESENCE_S = 60.0
_SAVE_S = 1.0


class SnapshotWorker(Worker):
    """Loads the rules at the start, then looks all the time for what other processes changed."""

    name = "deployer-snapshot"

    def __init__(self, freshness: Freshness, snapshot: Snapshot, clock: Clock, every_s: float) -> None:
        self._freshness, self._snapshot, self._clock, self._every_s = freshness, snapshot, clock, every_s

    def problem(self) -> str | None:
        """Say that the rules are not loaded yet."""
        return None if self._snapshot.complete else self._freshness.waits_for.detail

    async def run(self, stop: Stop) -> None:
        """Load, then look again and again. An error is a crash: what is in memory stays."""
        await self._freshness.look()
        while await stop.sleep(self._clock, self._every_s):
            await self._freshness.look()
        await self._freshness.save()
        with contextlib.suppress(DatabaseUnavailable):  # then the name runs out by itself
            await self._freshness.leave()


class SightingsWorker(Periodic):
    """Writes who polled, every few seconds and once more at the stop."""

    def __init__(self, fleet: FleetService, every_s: float, clock: Clock) -> None:
        super().__init__("deployer-last-seen", every_s, fleet.write_sightings, clock=clock)
        self._fleet = fleet

    async def run(self, stop: Stop) -> None:
        """Write until the stop, then what is left."""
        await super().run(stop)
        await self._fleet.write_sightings()


def beside_api(
    freshness: Freshness,
    fleet: FleetService,
    snapshot: Snapshot,
    *,
    clock: Clock,
    look_every_s: float,
    last_seen_every_s: float,
) -> Sequence[Worker]:
    """Return what runs in every process that answers devices."""
    return (
        SnapshotWorker(freshness, snapshot, clock, look_every_s),
        SightingsWorker(fleet, last_seen_every_s, clock),
        Periodic("deployer-snapshot-file", _SAVE_S, freshness.save, clock=clock),
        Periodic("deployer-presence", _PRESENCE_S, freshness.be_present, clock=clock),
    )


def background(
    lease: Lease, loader: Loader, fleet: FleetService, *, eventlog: EventLog, clock: Clock, metrics: Metrics
) -> Sequence[Worker]:
    """Return what runs once or more anywhere."""
    return (
        consume(eventlog, CONSUMER, events.CATALOGUE_TOPICS, loader.apply, max_records=100, clock=clock, metrics=metrics),
        consume(eventlog, DEVICES, events.DEVICE_TOPICS, fleet.keep, max_records=1_000, linger_s=_LINGER_S, clock=clock, metrics=metrics),
        leased(lease, "deployer-clean-up", _CLEAN_UP_S, fleet.forget, clock=clock),
    )
