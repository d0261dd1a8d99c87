"""Work beside requests: news from the packager and the deployer, and clearing away what has expired."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from kit.clock import Clock
from kit.db import Database, Transaction
from kit.db.lease import Lease, leased
from kit.eventlog import Batch, EventLog, Record
from kit.metrics import Metrics
from kit.workers import Worker, consume
from services.registry.accounts.enrolment.service import EnrolmentService
from services.registry.accounts.events import SIGNING_KEY_ANNOUNCED
from services.registry.accounts.service import AccountService
from services.registry.catalogue.service import CatalogueService
from services.registry.uploads.service import UploadService
from services.registry.versions.events import COLLECTION_PUBLISHED, PACKAGE_BUILT, PACKAGE_FAILED
from services.registry.versions.service import VersionService

GROUP = "registry"
_NONCES_S = 60.0
_UPLOADS_S = 600.0

Take = Callable[[Transaction, Record], Awaitable[None]]


def news_consumer(
    database: Database, eventlog: EventLog, accounts: AccountService, versions: VersionService, *, clock: Clock, metrics: Metrics
) -> Worker:
    """Return the worker that takes in what other services tell. Each record has its effect once, in one transaction with its seen row."""
    take: Mapping[str, Take] = {
        PACKAGE_BUILT: versions.take_built,
        PACKAGE_FAILED: versions.take_failed,
        COLLECTION_PUBLISHED: versions.take_published,
        SIGNING_KEY_ANNOUNCED: accounts.learn_signing_key,
    }

    async def handle(batch: Batch) -> None:
        for record in batch.records:
            async with database.begin() as tx:
                if await tx.first_time(GROUP, record.headers["event-id"]):
                    await take[record.topic](tx, record)

    return consume(eventlog, GROUP, sorted(take), handle, name="registry-news", clock=clock, metrics=metrics)


def periodic_workers(
    lease: Lease, enrolment: EnrolmentService, uploads: UploadService, catalogue: CatalogueService, *, clock: Clock, refresh_s: float
) -> list[Worker]:
    """Return the work that is done now and then, by one process at a time."""
    return [
        leased(lease, "registry-nonces", _NONCES_S, enrolment.forget_nonces, clock=clock),
        leased(lease, "registry-uploads", _UPLOADS_S, uploads.clear_expired, clock=clock),
        leased(lease, "registry-catalogue", refresh_s, catalogue.refresh, clock=clock),
    ]
