"""Puts the packager together. It opens nothing: the sandbox is opened by the worker that uses it."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from kit.ports import Part, Ports
from kit.web import create_api
from services.packager.domain import Quota
from services.packager.environments import Environments
from services.packager.isolation.cage import Level
from services.packager.routes import router
from services.packager.sandbox import SAFE, Limits
from services.packager.service import PackagerService
from services.packager.settings import PackagerSettings
from services.packager.signing import open_signer
from services.packager.workers import JobRunner, commits


def create_part(settings: PackagerSettings, ports: Ports) -> Part:
    """Return the packager's application and workers."""
    signer = open_signer(settings.signer_url, own_key=ports.secrets.folder / "package.key")
    service = PackagerService(
        ports.database,
        signer,
        ports.clock,
        Quota(settings.queue_length, settings.account_queue_length, settings.account_jobs_at_once, settings.account_results_mb * 2**20),
    )
    app = create_api("Packager", [router], seal=ports.seal, database=ports.database)
    app.state.packager = service
    limits = Limits(
        seconds=settings.job_seconds,
        memory_bytes=settings.child_memory_mb * 2**20,
        disk_bytes=settings.child_disk_mb * 2**20,
    )
    runner = JobRunner(
        service,
        ports.blobs,
        signer,
        ports.clock,
        ports.metrics,
        holder=ports.holder,
        scratch=settings.scratch_dir or _own_scratch(),
        limits=limits,
        environments=Environments(settings.environments, settings.wheels_dir),
        levels=[*SAFE, Level.UNSAFE] if settings.unsafe_without_sandbox else SAFE,
        warm_s=settings.warm_seconds,
        at_once=settings.jobs_at_once,
        tool_version=version("latebind-server"),
    )
    return Part(app, background=[commits(ports.eventlog, service, ports.clock, ports.metrics), runner], needs=("database",))


def _own_scratch() -> Path:
    """Return the scratch folder below the system's temporary folder, one per user, so that users do not meet in it."""
    return Path(tempfile.gettempdir()) / f"latebind-packager-{os.getuid()}"
