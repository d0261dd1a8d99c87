"""The packager as it runs: real database, blobs, log and children in one folder; the test plays the registry."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from kit.clock import SystemClock
from kit.db.migrate import migrate
from kit.db.outbox import outbox_relay
from kit.eventlog import Message, Record
from kit.identity import PRINCIPAL_HEADER, Kind, Principal, Scope, granted
from kit.ids import new_id
from kit.metrics import KIT_METRICS, PrometheusMetrics
from kit.ports import Part, Ports, PortSettings, open_ports
from kit.workers import running
from latebind_proto import events_pb2
from services.packager.app import create_part
from services.packager.settings import PackagerSettings

TOPICS = ("package.built", "package.failed", "signing-key.announced")


@dataclass
class Packaging:
    """A packager that runs, what it wrote to the log, and the registry's side of the conversation."""

    ports: Ports
    part: Part
    heard: list[Record] = field(default_factory=list)

    def client(self, account: str = "acme", *scopes: Scope) -> httpx2.AsyncClient:
        principal = Principal(Kind.USER, "key1", account, granted(frozenset(scopes or {Scope.ADMIN})))
        return httpx2.AsyncClient(
            transport=httpx2.ASGITransport(self.part.app),
            base_url="http://packager",
            headers={PRINCIPAL_HEADER.decode(): self.ports.seal.seal(principal).decode()},
            timeout=60,
        )

    async def put(self, path: str, data: bytes, *, account: str = "acme", role: str | None = None) -> dict[str, Any]:
        """Store a blob and return its entry for a declaration."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        info = await self.ports.blobs.put(account, chunks())
        return {"path": path, "sha256": info.sha256, "size": info.size, **({"role": role} if role else {})}

    async def commit(
        self,
        declaration: Any,
        *,
        account: str = "acme",
        model_id: str = "m",
        version: int = 1,
        job_id: str | None = None,
        event_id: str = "",
    ) -> str:
        """Append `version.committed` as the registry's relay does, and return the job's id."""
        job_id = job_id or new_id("job")
        body = declaration if isinstance(declaration, bytes) else json.dumps(declaration).encode()
        value = events_pb2.VersionCommitted(
            account=account,
            model_id=model_id,
            version=version,
            job_id=job_id,
            created_at="2026-11-22T10:00:00Z",
            declaration_json=body,
        ).SerializeToString()
        headers = {"event-id": event_id or new_id("e"), "account": account}
        await self.ports.eventlog.append("version.committed", [Message(f"{account}/{model_id}", value, headers)])
        return job_id

    async def ended(self, job_id: str, *, account: str = "acme") -> dict[str, Any]:
        """Wait until the job has ended and return it; on a busy machine it may still be on its way through the log."""
        async with self.client(account) as client:
            until = time.monotonic() + 60
            while True:
                job: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).json()
                if job.get("state") in {"succeeded", "failed", "cancelled"}:
                    return job
                assert "state" in job or time.monotonic() < until, job
                await asyncio.sleep(0.05)

    async def told(self, job_id: str) -> list[Record]:
        """What the registry heard of a job; waits for the first word, then a moment for a second one that must not come."""
        await until(lambda: bool(self.of(job_id)))
        await asyncio.sleep(0.3)
        return self.of(job_id)

    def of(self, job_id: str) -> list[Record]:
        kinds = {"package.built": events_pb2.PackageBuilt, "package.failed": events_pb2.PackageFailed}
        return [one for one in self.heard if one.topic in kinds and kinds[one.topic].FromString(one.value).job_id == job_id]


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[Packaging]:
    """The packager's ports and part, without its workers."""
    metrics = PrometheusMetrics(*KIT_METRICS)
    async with open_ports(PortSettings(data_dir=folder), ["packager"], clock=SystemClock(), metrics=metrics) as ports:
        own = ports["packager"]
        await migrate(own.database, "services.packager")
        yield Packaging(own, create_part(PackagerSettings(scratch_dir=folder / "scratch", **settings), own))


@asynccontextmanager
async def packaging(folder: Path, **settings: Any) -> AsyncIterator[Packaging]:
    """The whole packager, workers and relay included."""
    async with opened(folder, **settings) as one:
        own = one.ports
        workers = [*one.part.background, outbox_relay("packager", own.database, own.eventlog, own.lease, own.clock)]
        async with running(workers, metrics=own.metrics), own.eventlog.consumer("test", TOPICS) as consumer:

            async def hear() -> None:
                while True:
                    batch = await consumer.batch(max_records=100, max_bytes=1 << 24, max_wait_s=5)
                    one.heard += batch.records

            ear = asyncio.create_task(hear())
            try:
                yield one
            finally:
                ear.cancel()
                await asyncio.gather(ear, return_exceptions=True)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
