"""Puts the registry together: one application, its device front, and its workers. Opens nothing."""

from __future__ import annotations

from datetime import timedelta

from kit.ports import Part, Ports
from kit.web import create_api
from services.registry import routes
from services.registry.accounts import routes as accounts_routes
from services.registry.accounts.domain import SecretHasher
from services.registry.accounts.enrolment import routes as enrolment_routes
from services.registry.accounts.enrolment.proofs import Challenges
from services.registry.accounts.enrolment.service import EnrolmentService
from services.registry.accounts.enrolment.tokens import DeviceTokens
from services.registry.accounts.service import AccountService
from services.registry.catalogue import routes as catalogue_routes
from services.registry.catalogue.service import CatalogueService
from services.registry.device import OPERATIONS, DeviceFront
from services.registry.service import ModelService
from services.registry.settings import RegistrySettings
from services.registry.uploads import routes as uploads_routes
from services.registry.uploads.service import UploadLimits, UploadService
from services.registry.versions import routes as versions_routes
from services.registry.versions.service import VersionService
from services.registry.workers import news_consumer, periodic_workers

_ROUTERS = (
    accounts_routes.router,
    accounts_routes.internal,
    enrolment_routes.router,
    enrolment_routes.internal,
    routes.router,
    versions_routes.router,
    uploads_routes.router,
    catalogue_routes.router,
)


def create_part(settings: RegistrySettings, ports: Ports) -> Part:
    """Build the registry on its ports."""
    database, clock = ports.database, ports.clock
    hasher = SecretHasher(ports.secrets.key("api-keys"))
    token_master = ports.secrets.key("device-tokens")
    accounts = AccountService(database, clock, hasher)
    enrolment = EnrolmentService(
        database,
        clock,
        hasher=hasher,
        challenges=Challenges(token_master),
        tokens=DeviceTokens(token_master, timedelta(seconds=settings.device_token_lifetime_s)),
    )
    models = ModelService(database, clock)
    versions = VersionService(database, ports.blobs, clock, models)
    limits = UploadLimits(settings.max_upload_bytes, settings.upload_part_bytes, timedelta(hours=settings.upload_lifetime_h))
    uploads = UploadService(database, ports.blobs, clock, limits)
    catalogue = CatalogueService(database, ports.blobs, clock, models, versions, max_file_bytes=settings.max_upload_bytes)

    api = create_api("Latebind registry", _ROUTERS, seal=ports.seal, database=database, raw=OPERATIONS)
    api.state.accounts = accounts
    api.state.enrolment = enrolment
    api.state.models = models
    api.state.versions = versions
    api.state.uploads = uploads
    api.state.catalogue = catalogue
    news = news_consumer(database, ports.eventlog, accounts, versions, clock=clock, metrics=ports.metrics)
    refresh_s = settings.catalogue_refresh_s
    return Part(
        DeviceFront(api, versions, seal=ports.seal, cache_bytes=settings.package_cache_bytes),
        background=[news, *periodic_workers(ports.lease, enrolment, uploads, catalogue, clock=clock, refresh_s=refresh_s)],
        needs=("database",),
    )
