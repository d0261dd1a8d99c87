"""The real deployer on a SQLite file, a local log and a clock that stands still; the registry is played by its events."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kit.clock import Clock, FakeClock, SystemClock
from kit.db import open_database
from kit.db.migrate import migrate
from kit.db.outbox import relay_once
from kit.eventlog import Batch, Message, open_eventlog
from kit.identity import COUNTRY_HEADER, PRINCIPAL_HEADER, Kind, Principal, PrincipalSeal, Scope, granted
from kit.ids import new_id
from kit.metrics import NullMetrics
from kit.ports import Part, Ports, PortSettings, Secrets
from latebind_proto import events_pb2
from services.deployer import events
from services.deployer.app import create_part
from services.deployer.settings import DeployerSettings

NONCE = "nonce-0123456789abcdef"


def manifest(model: str, version: int, variant: str = "onnx-fp32", **more: Any) -> dict[str, Any]:
    """A manifest as the packager writes it."""
    files = more.pop(
        "files", [("model.onnx", "graph", 1000 * version, f"{model}-{version}-{variant}"), ("labels", "auxiliary", 100, f"{model}-labels")]
    )
    return {
        "manifest_version": 1,
        "account": "acme",
        "model_id": model,
        "version": version,
        "variant": variant,
        "engine": {"name": "onnxruntime", "min_version": "1.18", "ir_version": 9, "opset": {"": 17}, **more.pop("engine", {})},
        "inputs": [],
        "outputs": [],
        "params": {},
        "requires": more.pop("requires", {}),
        "files": [
            {"path": path, "role": role, "size": size, "sha256": hashlib.sha256(content.encode()).hexdigest()}
            for path, role, size, content in files
        ],
    }


def context(install_id: str, **more: Any) -> dict[str, Any]:
    """A device that runs everything."""
    return {
        "install_id": install_id,
        "app": {"id": "com.acme.cam", "version": "4.2.0"},
        "sdk": {"name": "latebind-python", "version": "1.0.0"},
        "device": {"model": "Pixel 9", "manufacturer": "Google", "soc": "tensor-g4", "abi": "arm64-v8a", "ram_mb": 12288},
        "os": {"name": "android", "version": "16", "api_level": 36},
        "country": "DE",
        "groups": ["beta"],
        "runtimes": [{"engine": "onnxruntime", "version": "1.20.1", "max_ir": 10, "max_opset": 21}],
        **more,
    }


class World:
    """The service with everything a test does to it."""

    def __init__(self, part: Part, ports: Ports, clock: Clock) -> None:
        self.part, self.ports, self.clock = part, ports, clock
        self.loader = part.background[0]
        self._client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=part.app), base_url="http://deployer")

    async def call(self, method: str, path: str, body: Any = None, *, caller: Principal | None = None, **headers: str) -> httpx2.Response:
        """A person's request, by default with an admin key of acme."""
        who = caller or Principal(Kind.USER, "key1", "acme", granted(frozenset({Scope.ADMIN})))
        sent = {
            PRINCIPAL_HEADER.decode(): self.ports.seal.seal(who).decode(),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if body is not None:
            sent["content-type"] = "application/json"
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        return await self._client.request(method, path, content=content, headers=sent)

    async def ok(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer's JSON; fails on an error."""
        response = await self.call(method, path, body, **headers)
        assert response.status_code < 300, response.text
        return response.json()

    async def resolve(
        self,
        collection: str,
        device: dict[str, Any] | bytes,
        *,
        account: str = "acme",
        install_id: str | None = None,
        etag: str | None = None,
        counter: str | None = None,
        country: str | None = None,
        nonce: str | None = NONCE,
    ) -> httpx2.Response:
        """A device's question."""
        install = install_id or (device["install_id"] if isinstance(device, dict) else "someone")
        sent = {PRINCIPAL_HEADER.decode(): self.ports.seal.seal(Principal(Kind.DEVICE, install, account)).decode()}
        for name, value in (
            ("if-none-match", etag),
            ("latebind-counter", counter),
            (COUNTRY_HEADER.decode(), country),
            ("latebind-nonce", nonce),
        ):
            if value is not None:
                sent[name] = value
        content = device if isinstance(device, bytes) else json.dumps(device).encode()
        return await self._client.post(f"/v1/device/collections/{collection}:resolve", content=content, headers=sent)

    async def report(self, install_id: str, body: Any) -> httpx2.Response:
        """A device's update states."""
        sent = {PRINCIPAL_HEADER.decode(): self.ports.seal.seal(Principal(Kind.DEVICE, install_id, "acme")).decode()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self._client.post("/v1/device/events", content=content, headers=sent)

    async def say(self, topic: str, message: Any, *, event_id: str | None = None) -> None:
        """Append what the registry would."""
        headers = {"event-id": event_id or new_id("e"), "account": message.account, "request-id": "", "occurred-at": "2026-11-22T10:00:00Z"}
        key = f"{message.account}/{getattr(message, 'model_id', '')}"
        await self.ports.eventlog.append(topic, [Message(key=key, value=message.SerializeToString(), headers=headers)])

    async def ready(self, *manifests: dict[str, Any], account: str = "acme", settle: bool = True) -> list[str]:
        """Announce one version with its packages; returns their digests."""
        packages = []
        for one in manifests:
            data = json.dumps(one).encode()
            size = sum(file["size"] for file in one["files"])
            packages.append(
                events_pb2.Package(
                    variant=one["variant"], digest=hashlib.sha256(data).hexdigest(), manifest_json=data, envelope_json=b"{}", size=size
                )
            )
        first = manifests[0]
        message = events_pb2.VersionReadied(account=account, model_id=first["model_id"], version=first["version"], packages=packages)
        await self.say(events.VERSION_READIED, message)
        if settle:
            await self.settle()
        return [package.digest for package in packages]

    async def alias(self, model: str, alias: str, version: int, account: str = "acme") -> None:
        await self.say(events.ALIAS_MOVED, events_pb2.AliasMoved(account=account, model_id=model, alias=alias, version=version))
        await self.settle()

    async def archive(self, model: str, version: int, account: str = "acme") -> None:
        await self.say(events.VERSION_ARCHIVED, events_pb2.VersionArchived(account=account, model_id=model, version=version))
        await self.settle()

    async def settle(self) -> None:
        """Let the consumers read everything that is in the log, and load what changed."""
        await self._drain("deployer-catalogue", events.CATALOGUE_TOPICS, self.service.apply)
        await self._drain("deployer-devices", events.DEVICE_TOPICS, self.fleet.keep)
        await self.freshness.look()
        await relay_once(self.ports.database, self.ports.eventlog)

    async def _drain(self, group: str, topics: Any, handle: Callable[[Batch], Any]) -> None:
        async with self.ports.eventlog.consumer(group, topics) as consumer:
            while batch := await consumer.batch(max_records=500, max_bytes=1 << 22, max_wait_s=0.01):
                if not batch.records:
                    return
                await handle(batch)
                await consumer.commit(batch.next_offsets())

    @property
    def service(self) -> Any:
        """The loader, as the snapshot worker has it."""
        return self.freshness._loader

    @property
    def freshness(self) -> Any:
        return self.part.beside_api[0]._freshness

    @property
    def fleet(self) -> Any:
        return self.part.beside_api[1]._fleet

    async def publish(self, rules: dict[str, Any], *, collection: str | None = None) -> str:
        """Make a collection (or take one) and publish the rules; returns its id."""
        if collection is None:
            collection = (await self.ok("POST", "/v1/collections", {"name": "cameras"}))["id"]
        await self.ok("PUT", f"/v1/collections/{collection}/draft", rules)
        await self.ok("POST", f"/v1/collections/{collection}:publish", {})
        return collection


@asynccontextmanager
async def open_world(at: PortSettings | Path, clock: Clock, **settings: Any) -> AsyncIterator[World]:
    at = at if isinstance(at, PortSettings) else PortSettings(data_dir=at)
    folder = at.data_dir
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(at.database_of("deployer"), clock))
        await migrate(database, "services.deployer")
        eventlog = await stack.enter_async_context(open_eventlog(f"local:{folder}/events.db"))
        ports = Ports(
            database=database,
            blobs=None,
            eventlog=eventlog,
            olap=None,
            clock=clock,
            metrics=NullMetrics(),
            seal=PrincipalSeal(b"s" * 32),
            secrets=Secrets(folder / "secrets"),
            holder="test",
            data_dir=folder,
        )
        world = World(create_part(DeployerSettings(**settings), ports), ports, clock)
        await world.freshness.look()
        yield world


@pytest.fixture
async def world(ports_at: PortSettings) -> AsyncIterator[World]:
    """Time stands still; nothing waits for events on their way."""
    async with open_world(ports_at, FakeClock(), ready_wait_s=0) as world:
        yield world


@pytest.fixture
async def live_world(tmp_path: Path) -> AsyncIterator[World]:
    """Real time, for what waits."""
    async with open_world(tmp_path, SystemClock(), ready_wait_s=1.0) as world:
        yield world


@pytest.fixture
def install_id() -> str:
    return str(uuid.UUID(int=7, version=4))
