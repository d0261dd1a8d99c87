"""Devices that keep asking, as many requests a second as wanted, and remember what became of every single one.

Each request is sent once: what fails here fails for a device that does not try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx2

from tests.e2e.world import World, eventually
from tests.telemetry.factories import batch, package, samples

KINDS = ("resolve", "resolve with ETag", "telemetry", "manifest", "blob")
_FINE = {
    "resolve": {200},
    "resolve with ETag": {200, 304},
    "telemetry": {202},
    "manifest": {200},
    "blob": {200, 302, 303, 307},
}
_SAMPLES = 4


@dataclass
class History:
    """What became of the requests. `failed` says when, what and how, for each that failed."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    slowest_s: dict[str, float] = field(default_factory=dict)
    samples_accepted: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        total = sum(self.answered.values())
        kinds = ", ".join(f"{kind} {self.answered[kind]} (slowest {self.slowest_s.get(kind, 0):.2f} s)" for kind in KINDS)
        return f"{total} requests in {self.seconds:.0f} s ({total / max(self.seconds, 0.1):.0f}/s), {len(self.failed)} failed: {kinds}"


@dataclass
class Device:
    """One install with its token."""

    install: str
    token: str
    collection: str
    etag: str = ""
    manifest_url: str = ""
    blob: str = ""

    @property
    def context(self) -> dict[str, Any]:
        """What it says of itself."""
        runtimes = [{"engine": "onnxruntime", "version": "1.20.1", "max_ir": 10, "max_opset": 21}]
        return {"install_id": self.install, "app": {"id": "load", "version": "1"}, "runtimes": runtimes}


class DeviceLoad:
    """Devices of one account on a collection that serves a package."""

    def __init__(self, world: World, collection: str, count: int) -> None:
        key = world.enrolment_key()
        eventually(lambda: _enrolled(world, key))  # the signing keys of a new account come over the log
        self._devices = [Device(*world.device_token(key), collection) for _ in range(count)]
        self._url = world.server.url
        self.history = History()

    @asynccontextmanager
    async def running(self, per_second: float) -> Any:
        """Keep asking while the block runs; then wait for the answers that are due."""
        # Idle connections are given up before a gateway that drains closes them, as a device that sleeps does.
        limits = httpx2.Limits(max_connections=50, keepalive_expiry=0.4)
        async with httpx2.AsyncClient(base_url=self._url, timeout=25, limits=limits, follow_redirects=False) as client:
            for device in self._devices:
                await self._prepare(client, device)
            stop = asyncio.Event()
            sender = asyncio.create_task(self._send(client, per_second, stop))
            try:
                yield self.history
            finally:
                stop.set()
                await sender

    async def _prepare(self, client: httpx2.AsyncClient, device: Device) -> None:
        answer = await self._resolve(client, device, etag="")
        answer.raise_for_status()
        device.etag, device.manifest_url = answer.headers["etag"], answer.json()["package"]["manifest_url"]
        manifest = await client.get(device.manifest_url, headers=_bearer(device))
        device.blob = manifest.raise_for_status().json()["files"][0]["sha256"]

    async def _send(self, client: httpx2.AsyncClient, per_second: float, stop: asyncio.Event) -> None:
        began = time.monotonic()
        due: set[asyncio.Task[None]] = set()
        number = 0
        while not stop.is_set():
            device, kind = self._devices[number % len(self._devices)], KINDS[number % len(KINDS)]
            task = asyncio.create_task(self._one(client, device, kind, began))
            due.add(task)
            task.add_done_callback(due.discard)
            number += 1
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        if due:
            await asyncio.wait(set(due))
        self.history.seconds = time.monotonic() - began

    async def _one(self, client: httpx2.AsyncClient, device: Device, kind: str, began: float) -> None:
        start = time.monotonic()
        ask: Callable[[], Awaitable[httpx2.Response]] = {
            "resolve": lambda: self._resolve(client, device, etag=""),
            "resolve with ETag": lambda: self._resolve(client, device, etag=device.etag),
            "telemetry": lambda: self._telemetry(client, device),
            "manifest": lambda: client.get(device.manifest_url, headers=_bearer(device)),
            "blob": lambda: client.get(f"/v1/device/blobs/{device.blob}", headers=_bearer(device)),
        }[kind]
        try:
            answer = await ask()
            wrong = "" if answer.status_code in _FINE[kind] else f"{answer.status_code} {answer.text[:200]}"
        except httpx2.HTTPError as error:
            wrong = f"{type(error).__name__} {error}"
        took = time.monotonic() - start
        if wrong:
            self.history.failed.append(f"{start - began:.2f} s, {kind}, after {took:.2f} s: {wrong}")
            return
        self.history.answered[kind] += 1
        self.history.slowest_s[kind] = max(took, self.history.slowest_s.get(kind, 0.0))
        if kind == "telemetry":
            self.history.samples_accepted += _SAMPLES

    async def _resolve(self, client: httpx2.AsyncClient, device: Device, *, etag: str) -> httpx2.Response:
        headers = _bearer(device) | {"latebind-nonce": uuid4().hex} | ({"if-none-match": etag} if etag else {})
        return await client.post(f"/v1/device/collections/{device.collection}:resolve", json=device.context, headers=headers)

    async def _telemetry(self, client: httpx2.AsyncClient, device: Device) -> httpx2.Response:
        now_ms = int(time.time() * 1000)
        body = batch(samples([500, 600, 700, 800], of=package(), base_ms=now_ms - 1000), created_ms=now_ms).SerializeToString()
        headers = _bearer(device) | {"content-type": "application/x-protobuf"}
        return await client.post("/v1/device/telemetry", content=body, headers=headers)


def _enrolled(world: World, key: str) -> bool:
    with contextlib.suppress(AssertionError):
        return bool(world.device_token(key))
    return False


def _bearer(device: Device) -> dict[str, str]:
    return {"authorization": f"Bearer {device.token}"}
