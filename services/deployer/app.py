"""Puts the deployer together from settings and ports. Opens nothing."""

from __future__ import annotations

from datetime import timedelta

from kit import http
from kit.db.lease import Lease
from kit.ports import Part, Ports
from kit.signing import DerivedSigner
from kit.web import create_api
from services.deployer.bundles import BundleService
from services.deployer.device import RAW_OPERATIONS, DeviceApp
from services.deployer.events import ROLE
from services.deployer.fleet import FleetService
from services.deployer.freshness import Freshness
from services.deployer.loader import PRESENT, Loader
from services.deployer.resolver import Resolver
from services.deployer.routes import bundles_router, collections_router, devices_router
from services.deployer.service import CollectionService
from services.deployer.settings import DeployerSettings
from services.deployer.sightings import Sightings
from services.deployer.snapshot import Snapshot
from services.deployer.workers import background, beside_api

#: A killed process is waited for, in each publish, until its name runs out.
_PRESENT = timedelta(hours=1)
_LONGEST_NAME = 64


def create_part(settings: DeployerSettings, ports: Ports) -> Part:
    """Return the deployer: devices are answered by `device.py`, everything else by FastAPI."""
    snapshot, sightings = Snapshot(), Sightings()
    signer = DerivedSigner(ports.secrets.key(ROLE), ROLE)
    loader = Loader(ports.database, snapshot, signer=signer, clock=ports.clock, holder=ports.holder)
    name = PRESENT + ports.holder[-_LONGEST_NAME:]
    present = Lease(ports.database, ports.clock, name=name, holder=ports.holder, ttl=_PRESENT)
    file = ports.data_dir / "deployer-rules.snapshot"
    freshness = Freshness(loader, snapshot, present, ports.clock, metrics=ports.metrics, file=file, place=ports.database.place)
    fleet = FleetService(ports.database, sightings, ports.clock, history_days=settings.history_days, ready_wait_s=settings.ready_wait_s)
    resolver = Resolver(
        snapshot,
        sightings,
        eventlog=ports.eventlog,
        signer=signer,
        clock=ports.clock,
        poll_after_s=settings.poll_after_s,
        poll_spread_s=settings.poll_spread_s,
        assignment_lifetime_s=settings.assignment_lifetime_s,
    )
    api = create_api(
        "Latebind deployer",
        [collections_router, bundles_router, devices_router],
        seal=ports.seal,
        database=ports.database,
        raw=RAW_OPERATIONS,
    )
    collections = CollectionService(ports.database, loader, ports.clock, ready_wait_s=settings.ready_wait_s)
    api.state.collections = collections
    api.state.bundles = BundleService(ports.database, collections, signer=signer, clock=ports.clock)
    api.state.fleet = fleet
    devices = DeviceApp(resolver, freshness, eventlog=ports.eventlog, seal=ports.seal, clock=ports.clock)

    async def app(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/device/"):
            await devices(scope, receive, send)
        else:
            await api(scope, receive, send)

    return Part(
        app=app,
        beside_api=beside_api(
            freshness,
            fleet,
            snapshot,
            clock=ports.clock,
            look_every_s=settings.look_every_s,
            last_seen_every_s=settings.last_seen_every_s,
        ),
        unready=lambda: None if snapshot.complete else freshness.waits_for,
        background=background(ports.lease, loader, fleet, eventlog=ports.eventlog, clock=ports.clock, metrics=ports.metrics),
    )
