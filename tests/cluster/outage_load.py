"""A light, even load of devices and people on a cluster, each request with its time and answer, for tests that break what is behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx2

from latebind_proto.telemetry_pb2 import TelemetryBatch
from tests.e2e.world import World

_PAUSE_S = 0.25
_TIMEOUT_S = 90.0
#: What devices do, and what people do.
DEVICE_KINDS = ("ask again", "ask anew", "telemetry")
KINDS = (*DEVICE_KINDS, "read", "write", "analytics")


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: when it began, how long it took, and its status; 0 when the connection broke."""

    kind: str
    began: float
    seconds: float
    status: int
    retry_after: str | None

    @property
    def good(self) -> bool:
        return 0 < self.status < 400


class Load:
    """Asks one after the other, per kind; `answers` has everything since the start."""

    def __init__(self, world: World, model: str, collection: str, probes: Mapping[str, str]) -> None:
        self.answers: list[Answered] = []
        self.dead: list[str] = []
        self._url, self._key, self._probes = world.server.url, world.key, probes
        self._model, self._collection = model, collection
        self._install, self._token = world.device_token(world.enrolment_key())
        self._etag = ""
        #: Up to when (seconds since 1970) analytics counted everything, and when (`time.monotonic`) they first said so.
        self._counted_until, self._counted_at = 0.0, 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load while the block runs."""
        async with httpx2.AsyncClient(base_url=self._url, timeout=_TIMEOUT_S) as client:
            self._etag = (await self._resolve(client, "")).raise_for_status().headers["etag"]
            asks: dict[str, Callable[[], Awaitable[httpx2.Response]]] = {
                "ask again": lambda: self._resolve(client, self._etag),
                "ask anew": lambda: self._resolve(client, ""),
                "telemetry": lambda: self._telemetry(client),
                "read": lambda: client.get("/v1/models", headers=self._person),
                "write": lambda: client.patch(f"/v1/models/{self._model}", json={"description": uuid4().hex}, headers=self._person),
                "analytics": lambda: self._analytics(client),
            }
            tasks = [asyncio.create_task(self._repeat(kind, ask)) for kind, ask in asks.items()]
            tasks += [asyncio.create_task(self._probe(client, name, url)) for name, url in self._probes.items()]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def since(self, moment: float) -> Sequence[Answered]:
        """Requests that began at or after a moment."""
        return [one for one in self.answers if one.began >= moment]

    async def settled(self, moment: float, *, within_s: float) -> tuple[float, Sequence[str]]:
        """Wait until every kind has worked twice in a row after a moment, and analytics count what devices sent since.

        Returns the seconds that took, and what is still not well when it takes much longer than `within_s`.
        """
        while True:
            unwell, seconds = self._state(moment)
            if not unwell or time.monotonic() - moment > within_s + _TIMEOUT_S:
                return seconds, unwell
            await asyncio.sleep(0.05)

    def _state(self, moment: float) -> tuple[Sequence[str], float]:
        """Return what does not work since a moment, and the seconds from there to when the last of all began to."""
        since = self.since(moment)
        unwell, times = [], [self._counted_at]
        for kind in KINDS:
            last = [one for one in since if one.kind == kind][-2:]
            if len(last) < 2 or not all(one.good for one in last):
                unwell.append(f"{kind} {'/'.join(str(one.status) for one in last) or 'no answer'}")
            else:
                times.append(last[0].began + last[0].seconds)
        if self._counted_until < time.time() - (time.monotonic() - moment):
            unwell.append("analytics are behind")
        return unwell, max(times) - moment

    async def _repeat(self, kind: str, ask: Callable[[], Awaitable[httpx2.Response]]) -> None:
        while True:
            began = time.monotonic()
            status, retry_after = 0, None
            with contextlib.suppress(httpx2.HTTPError):
                answer = await ask()
                status, retry_after = answer.status_code, answer.headers.get("retry-after")
            self.answers.append(Answered(kind, began, time.monotonic() - began, status, retry_after))
            await asyncio.sleep(_PAUSE_S)

    async def _probe(self, client: httpx2.AsyncClient, name: str, url: str) -> None:
        while True:
            try:
                answer = await client.get(url)
                alive = answer.status_code == 200
            except httpx2.HTTPError:
                alive = False
            if not alive:
                self.dead.append(name)
            await asyncio.sleep(2 * _PAUSE_S)

    @property
    def _person(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"}

    @property
    def _device(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._token}"}

    async def _resolve(self, client: httpx2.AsyncClient, etag: str) -> httpx2.Response:
        runtimes = [{"engine": "onnxruntime", "version": "1.20.1", "max_ir": 10, "max_opset": 21}]
        context: dict[str, Any] = {"install_id": self._install, "app": {"id": "load", "version": "1"}, "runtimes": runtimes}
        headers = self._device | {"latebind-nonce": uuid4().hex} | ({"if-none-match": etag} if etag else {})
        return await client.post(f"/v1/device/collections/{self._collection}:resolve", json=context, headers=headers)

    async def _analytics(self, client: httpx2.AsyncClient) -> httpx2.Response:
        answer = await client.get("/v1/analytics/inferences", headers=self._person)
        if answer.status_code == 200:
            until = datetime.fromisoformat(answer.json()["as_of"]).timestamp()
            if until > self._counted_until:
                self._counted_until, self._counted_at = until, time.monotonic()
        return answer

    async def _telemetry(self, client: httpx2.AsyncClient) -> httpx2.Response:
        body = TelemetryBatch(batch_id=uuid4().bytes, created_at_ms=int(time.time() * 1000)).SerializeToString()
        headers = self._device | {"content-type": "application/x-protobuf"}
        return await client.post("/v1/device/telemetry", content=body, headers=headers)
