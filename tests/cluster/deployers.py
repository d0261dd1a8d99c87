"""Deployers as processes of their own on PostgreSQL and Kafka, asked directly; the registry is played by its events."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from kit.eventlog import Message, open_eventlog
from kit.identity import PRINCIPAL_HEADER, Kind, Principal, PrincipalSeal, Scope, granted
from kit.ids import new_id
from latebind_proto import events_pb2
from tests.deployer.conftest import NONCE, context, manifest
from tests.server import ROOT, ServerProcess

_LIFETIME_S = 7_200


@dataclass
class Deployers:
    """Several `latebindd deployer` on one database and one log, each with a data folder of its own."""

    folder: Path
    database_url: str
    eventlog_url: str
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seal = PrincipalSeal((self.folder / "secrets" / "gateway.key").read_bytes(), lifetime_s=_LIFETIME_S)

    def process(self, name: str) -> ServerProcess:
        """Return one that is not started yet."""
        environment = {
            "LATEBIND_DATABASE_URL": self.database_url,
            "LATEBIND_EVENTLOG_URL": self.eventlog_url,
            "LATEBIND_SECRETS_DIR": str(self.folder / "secrets"),
            "LATEBIND_INSTANCE": name,
            **self.environment,
        }
        return ServerProcess(self.folder / name, environment=environment)

    async def announce(self, *versions: int) -> dict[int, str]:
        """Let versions of the model `yolo` become ready, as the registry would say it; returns their digests."""
        digests = {}
        async with open_eventlog(self.eventlog_url) as log:
            for version in versions:
                content = json.dumps(manifest("yolo", version)).encode()
                digests[version] = hashlib.sha256(content).hexdigest()
                package = events_pb2.Package(
                    variant="onnx-fp32", digest=digests[version], manifest_json=content, envelope_json=b"{}", size=1000
                )
                ready = events_pb2.VersionReadied(account="acme", model_id="yolo", version=version, packages=[package])
                headers = {"event-id": new_id("e"), "account": "acme", "request-id": "", "occurred-at": "2026-11-22T10:00:00Z"}
                await log.append("version.readied", [Message(key="acme/yolo", value=ready.SerializeToString(), headers=headers)])
        return digests

    def person(self, url: str) -> httpx2.AsyncClient:
        """A client with an admin's principal."""
        admin = Principal(Kind.USER, "key1", "acme", granted(frozenset({Scope.ADMIN})))
        return httpx2.AsyncClient(base_url=url, headers={PRINCIPAL_HEADER.decode(): self.seal.seal(admin).decode()}, timeout=30)

    def sealed(self, install_id: str) -> str:
        """A device's principal."""
        return self.seal.seal(Principal(Kind.DEVICE, install_id, "acme")).decode()


@contextmanager
def deployers(folder: Path, database_url: str, eventlog_url: str) -> Iterator[Deployers]:
    """Make keys and tables."""
    environment = {
        "PATH": os.environ["PATH"],
        "LATEBIND_DATABASE_URL": database_url,
        "LATEBIND_EVENTLOG_URL": eventlog_url,
        "LATEBIND_SECRETS_DIR": str(folder / "secrets"),
        "LATEBIND_DATA_DIR": str(folder / "migrate"),
    }
    subprocess.run([sys.executable, "-m", "services", "migrate", "deployer"], cwd=ROOT, env=environment, check=True)
    yield Deployers(folder, database_url, eventlog_url)


class Device:
    """An honest device: it keeps its ETag and its counter, and refuses what is lower. `forgetful`: it never sends either."""

    def __init__(self, fleet: Deployers, install_id: str, collection: str, *, forgetful: bool = False) -> None:
        self.install_id, self._path, self._forgetful = install_id, f"/v1/device/collections/{collection}:resolve", forgetful
        self._headers = {
            PRINCIPAL_HEADER.decode(): fleet.sealed(install_id),
            "content-type": "application/json",
            "latebind-nonce": NONCE,
        }
        self._body = json.dumps(context(install_id)).encode()
        self.etag: str | None = None
        self.counter = 0
        #: (revision, version) of each new answer, in order.
        self.given: list[tuple[int, int]] = []
        self.busy = 0

    async def ask(self, client: httpx2.AsyncClient) -> int:
        """Ask once; returns the status. Fails when the answer is older than one before."""
        headers = dict(self._headers)
        if self.etag is not None and not self._forgetful:
            headers |= {"if-none-match": self.etag, "latebind-counter": str(self.counter)}
        answer = await client.post(self._path, content=self._body, headers=headers)
        if answer.status_code == 503:
            assert answer.headers["retry-after"], answer.text
            self.busy += 1
            return 503
        assert answer.status_code in {200, 304}, answer.text
        self.etag = answer.headers["etag"]
        if answer.status_code == 200:
            body = answer.json()
            counter = json.loads(base64.b64decode(body["assignment"]["payload"]))["counter"]
            assert counter >= self.counter, f"{self.install_id}: counter {counter} after {self.counter}"
            self.counter = counter
            self.given.append((body["revision"], body["package"]["version"]))
        return answer.status_code


@asynccontextmanager
async def clients(*servers: ServerProcess) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """A client per process, for devices."""
    opened = [httpx2.AsyncClient(base_url=server.url, timeout=30) for server in servers]
    try:
        yield opened
    finally:
        for client in opened:
            await client.aclose()
