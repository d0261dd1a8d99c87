"""The registry on its real ports in a temporary folder, called through ASGI by callers of every kind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kit.clock import FakeClock
from kit.db import open_database
from kit.db.migrate import migrate
from kit.db.outbox import relay_once
from kit.eventlog import Message, Record
from kit.identity import NOBODY, PRINCIPAL_HEADER, Kind, Principal, Scope, granted
from kit.metrics import NullMetrics
from kit.ports import Part, Ports, PortSettings, open_ports
from kit.signing import DerivedSigner
from kit.workers import running
from latebind_proto import events_pb2
from services.registry.accounts.bootstrap import ensure_operator_key
from services.registry.app import create_part
from services.registry.settings import RegistrySettings

NEWS = ("package.built", "package.failed", "signing-key.announced", "collection.published")
OPERATOR = Principal(Kind.OPERATOR, "operator0001")
SERVICE = Principal(Kind.SERVICE, "gateway")


def user(account: str = "acme", *scopes: Scope) -> Principal:
    return Principal(Kind.USER, f"key-{account}", account, granted(frozenset(scopes or {Scope.ADMIN})))


def device(account: str = "acme") -> Principal:
    return Principal(Kind.DEVICE, "0f7c4a52-56b1-4b2f-9d3e-6a1f0c9b8e7d", account)


@dataclass
class Registry:
    """A registry that runs, and what tests do with it."""

    ports: Ports
    part: Part
    clock: FakeClock
    data_dir: Path
    operator_key: str | None
    packager: DerivedSigner = field(default_factory=lambda: DerivedSigner(b"p" * 32, "package"))
    deployer: DerivedSigner = field(default_factory=lambda: DerivedSigner(b"d" * 32, "assignment"))

    def client(self, principal: Principal = NOBODY) -> httpx2.AsyncClient:
        headers = {} if principal is NOBODY else {PRINCIPAL_HEADER.decode(): self.ports.seal.seal(principal).decode()}
        transport = httpx2.ASGITransport(app=self.part.app)  # type: ignore[arg-type]
        return httpx2.AsyncClient(transport=transport, base_url="http://registry", headers=headers)

    @property
    def acme(self) -> httpx2.AsyncClient:
        return self.client(user("acme"))

    async def create_account(self, account: str) -> dict[str, Any]:
        answer = await self.client(OPERATOR).post("/v1/accounts", json={"account": account})
        assert answer.status_code == 201, answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def upload(self, data: bytes, client: httpx2.AsyncClient | None = None) -> dict[str, Any]:
        client = client or self.acme
        sha256 = hashlib.sha256(data).hexdigest()
        created = await client.post("/v1/uploads", json={"size": len(data), "sha256": sha256})
        upload = created.json()["upload_id"]
        if data:
            answer = await put_part(client, upload, 0, data)
            assert answer.status_code == 200, answer.text
        done = await client.post(f"/v1/uploads/{upload}:complete", json={"sha256": sha256})
        assert done.status_code == 200, done.text
        return done.json()  # type: ignore[no-any-return]

    async def declaration(self, graph: bytes = b"graph", client: httpx2.AsyncClient | None = None, **members: Any) -> dict[str, Any]:
        file = await self.upload(graph, client)
        return {"variants": [{"name": "onnx-fp32", "files": [{"path": "model.onnx", "role": "graph", **file}]}], **members}

    async def create_model(self, model_id: str = "digits", client: httpx2.AsyncClient | None = None) -> None:
        answer = await (client or self.acme).post("/v1/models", json={"model_id": model_id})
        assert answer.status_code == 201, answer.text

    async def create_version(self, model_id: str = "digits", client: httpx2.AsyncClient | None = None, **members: Any) -> int:
        client = client or self.acme
        answer = await client.post(f"/v1/models/{model_id}/versions", json=await self.declaration(client=client, **members))
        assert answer.status_code == 201, answer.text
        return int(answer.json()["version"])

    async def commit(self, version: int, model_id: str = "digits", client: httpx2.AsyncClient | None = None) -> str:
        answer = await (client or self.acme).post(f"/v1/models/{model_id}/versions/{version}:commit")
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    async def make_ready(
        self, version: int, model_id: str = "digits", *, account: str = "acme", job_id: str | None = None, **engine: Any
    ) -> list[str]:
        """Commit a version and have it packaged, as the packager would tell. Returns the digests."""
        client = self.client(user(account))
        job_id = job_id or await self.commit(version, model_id, client)
        declaration = (await client.get(f"/v1/models/{model_id}/versions/{version}")).json()["declaration"]
        packages = [self.package(account, model_id, version, variant, declaration, engine) for variant in declaration["variants"]]
        built = events_pb2.PackageBuilt(account=account, model_id=model_id, version=version, job_id=job_id, packages=packages)
        await self.tell("package.built", built.SerializeToString())
        await self.take_news()
        return [package.digest for package in packages]

    def package(
        self, account: str, model_id: str, version: int, variant: dict[str, Any], declaration: dict[str, Any], engine: dict[str, Any]
    ) -> events_pb2.Package:
        files = [*variant["files"], *({**file, "role": "auxiliary"} for file in declaration["files"])]
        manifest = json.dumps(
            {
                "manifest_version": 1,
                "account": account,
                "model_id": model_id,
                "version": version,
                "variant": variant["name"],
                "created_at": "2026-11-22T10:00:00Z",
                "engine": {"name": "onnxruntime", "min_version": "1.18", "opset": {"": 17}, "operators": ["Add"], **engine},
                "inputs": declaration.get("inputs") or [{"name": "x", "dtype": "float32", "shape": [1, None]}],
                "outputs": declaration.get("outputs") or [{"name": "y", "dtype": "float32", "shape": [1, "n"]}],
                "params": declaration["params"],
                "files": files,
                "requires": declaration["requires"],
                "golden": None,
                "lineage": declaration["lineage"],
            }
        ).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        subjects = [("manifest.json", digest), *((file["path"], file["sha256"]) for file in files)]
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in subjects],
            "predicateType": "https://latebind.dev/package/v1",
            "predicate": {"account": account, "model_id": model_id, "version": version, "variant": variant["name"]},
        }
        envelope = self.packager.sign(account, "application/vnd.in-toto+json", json.dumps(statement).encode())
        return events_pb2.Package(
            variant=variant["name"],
            digest=digest,
            manifest_json=manifest,
            envelope_json=json.dumps(envelope).encode(),
            size=sum(file["size"] for file in files),
        )

    async def announce_keys(self, account: str = "acme") -> None:
        """What packager and deployer do when they hear of an account."""
        for signer in (self.packager, self.deployer):
            message = events_pb2.SigningKeyAnnounced(
                account=account, role=signer.role, key_id=signer.key_id(account), public_key=signer.public_key(account)
            )
            await self.tell("signing-key.announced", message.SerializeToString())
        await self.take_news()

    async def tell(self, topic: str, value: bytes, *, event_id: str | None = None) -> None:
        headers = {"event-id": event_id or f"e_{uuid.uuid4().hex}", "account": "acme", "request-id": "", "occurred-at": ""}
        await self.ports.eventlog.append(topic, [Message("acme", value, headers)])

    async def take_news(self) -> None:
        """Run the registry's consumer until it has read everything."""
        news = self.part.background[0]
        async with running([news], metrics=NullMetrics()) as workers:
            while any([await self.ports.eventlog.lag("registry", topic) for topic in NEWS]):
                assert workers.problems() == []
                await asyncio.sleep(0.01)

    async def told(self, topic: str) -> list[Record]:
        """Everything that the registry has told on a topic since it was asked last."""
        while await relay_once(self.ports.database, self.ports.eventlog):
            pass
        async with self.ports.eventlog.consumer("tests", [topic]) as consumer:
            batch = await consumer.batch(max_records=1000, max_bytes=1 << 24, max_wait_s=0.01)
            await consumer.commit(batch.next_offsets())
        return list(batch.records)


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that went through the migrations once; each test starts from a copy."""
    folder = tmp_path_factory.mktemp("registry")

    async def make() -> None:
        async with open_database(f"sqlite:{folder}/registry.db", FakeClock()) as database:
            await migrate(database, "services.registry")

    asyncio.run(make())
    return folder / "registry.db"


@asynccontextmanager
async def open_registry(at: PortSettings | Path, clock: FakeClock, **settings: Any) -> AsyncIterator[Registry]:
    at = at if isinstance(at, PortSettings) else PortSettings(data_dir=at)
    data_dir = at.data_dir
    async with open_ports(at, ["registry"], clock=clock, metrics=NullMetrics()) as opened:
        ports = opened["registry"]
        await migrate(ports.database, "services.registry")
        key = await ensure_operator_key(ports, data_dir / "operator.key")
        yield Registry(ports, create_part(RegistrySettings(**settings), ports), clock, data_dir, key)


@pytest.fixture
async def empty(ports_at: PortSettings, clock: FakeClock, _template: Path) -> AsyncIterator[Registry]:
    """A registry without accounts."""
    if not ports_at.database_url:
        shutil.copy(_template, ports_at.data_dir / "registry.db")
    async with open_registry(ports_at, clock) as registry:
        yield registry


@pytest.fixture
async def registry(empty: Registry) -> Registry:
    """A registry with the accounts `acme` and `other`, whose signing keys have arrived."""
    for account in ("acme", "other"):
        await empty.create_account(account)
    await empty.announce_keys("acme")
    return empty


async def put_part(client: httpx2.AsyncClient, upload: str, offset: int, data: bytes, **headers: str) -> httpx2.Response:
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    sent = {"upload-offset": str(offset), "content-digest": f"sha-256=:{digest}:", "content-type": "application/octet-stream", **headers}
    return await client.put(f"/v1/uploads/{upload}", content=data, headers=sent)


class Phone:
    """A device's side of enrolment, written from docs/wire.md."""

    def __init__(self, registry: Registry, account: str = "acme", install_id: str | None = None) -> None:
        self.client = registry.client()
        self.account = account
        self.install_id = install_id or str(uuid.uuid4())
        self.key = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> str:
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    async def nonce(self) -> str:
        answer = await self.client.post("/v1/device/challenge")
        assert answer.status_code == 200
        return str(answer.json()["nonce"])

    def sign(self, text: str) -> str:
        return base64.b64encode(self.key.sign(text.encode())).decode()

    async def enrol(self, enrolment_key: str, *, nonce: str | None = None, **changes: str) -> httpx2.Response:
        nonce = await self.nonce() if nonce is None else nonce
        text = f"latebind-enrol-v1\n{self.account}\n{self.install_id}\n{self.public_key}\n{nonce}"
        body = {
            "account": self.account,
            "enrolment_key": enrolment_key,
            "install_id": self.install_id,
            "public_key": self.public_key,
            "nonce": nonce,
            "signature": self.sign(text),
        }
        return await self.client.post("/v1/device/enroll", json={**body, **changes})

    async def renew(self, *, nonce: str | None = None, **changes: str) -> httpx2.Response:
        nonce = await self.nonce() if nonce is None else nonce
        signature = self.sign(f"latebind-token-v1\n{self.account}\n{self.install_id}\n{nonce}")
        body = {"account": self.account, "install_id": self.install_id, "nonce": nonce, "signature": signature}
        return await self.client.post("/v1/device/token", json={**body, **changes})


Phones = Callable[..., Phone]


@pytest.fixture
def phone(registry: Registry) -> Phones:
    def make(account: str = "acme", install_id: str | None = None) -> Phone:
        return Phone(registry, account, install_id)

    return make


def code(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]
