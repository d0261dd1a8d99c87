"""Runs the real deployer (`latebindd deployer`) with published collections, and makes the requests of devices, for S1 and S2."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench._measure import BUILD, ROOT, SEED, Server, free_port, http_request, serving
from bench._rules import device, document, manifest
from kit.eventlog import Message, open_eventlog
from kit.identity import PRINCIPAL_HEADER, Kind, Principal, PrincipalSeal, Scope, granted
from kit.ids import new_id
from latebind_proto import events_pb2

COLLECTIONS = 10
RULES = 1_000
DEVICES = 200
_LIFETIME_S = 7_200


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running deployer, its collections with their documents, and the devices that ask."""

    server: Server
    collections: dict[str, dict[str, Any]]
    devices: list[dict[str, Any]]
    seal: PrincipalSeal

    def request(self, number: int, etag: str | None) -> bytes:
        """Return what device `number` sends."""
        one = self.devices[number]
        collection = list(self.collections)[number % len(self.collections)]
        headers = {
            PRINCIPAL_HEADER.decode(): self.seal.seal(Principal(Kind.DEVICE, one["install_id"], "acme")).decode(),
            "content-type": "application/json",
            "latebind-nonce": "0123456789abcdef0123",
        }
        if etag is not None:
            headers["if-none-match"] = etag
        return http_request("POST", f"/v1/device/collections/{collection}:resolve", headers=headers, body=json.dumps(one).encode())

    def first_answers(self) -> list[tuple[int, str, bytes]]:
        """Ask once as every device; returns status, ETag and body."""
        answers = []
        with httpx2.Client(base_url=f"http://127.0.0.1:{self.server.port}") as client:
            for number in range(len(self.devices)):
                head, _, body = self.request(number, None).partition(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines[2:])
                headers.pop("content-length")
                answer = client.post(lines[0].split(" ")[1], content=body, headers=headers)
                answers.append((answer.status_code, answer.headers.get("etag", ""), answer.content))
        return answers


@contextmanager
def deployer(stores: Mapping[str, str] | None = None, folder: Path = BUILD / "deployer") -> Iterator[Fleet]:
    """Run `latebindd deployer` on core 0 with `COLLECTIONS` × `RULES` published rules.

    `stores` are settings (`LATEBIND_DATABASE_URL` …) of real servers; without them it runs on embedded ones in `folder`.
    """
    stores = stores or {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if stores:  # on servers nobody migrates at the start
        migrate = [sys.executable, "-m", "services", "migrate", "--data-dir", str(folder)]
        subprocess.run(migrate, cwd=ROOT, env={**os.environ, **stores}, check=True, capture_output=True)
    asyncio.run(_announce(stores.get("LATEBIND_EVENTLOG_URL", f"local:{folder.absolute()}/events.db")))
    port = free_port()
    command = [sys.executable, "-m", "services", "deployer", "--port", str(port), "--internal-port", "0", "--data-dir", str(folder)]
    with serving(command, port, environment={"LATEBIND_LOG_LEVEL": "warning", **stores}) as server:
        seal = PrincipalSeal((folder / "secrets" / "gateway.key").read_bytes(), lifetime_s=_LIFETIME_S)
        rng = random.Random(SEED)
        documents = [document(rng, RULES, default=True) for _ in range(COLLECTIONS)]
        collections = _publish(port, seal, documents)
        devices = [device(rng, RULES) for _ in range(DEVICES)]
        yield Fleet(server, collections, devices, seal)


async def _announce(eventlog: str) -> None:
    async with open_eventlog(eventlog) as log:
        for version in (1, 2, 3):
            content = json.dumps(manifest(version)).encode()
            package = events_pb2.Package(
                variant="onnx-fp32", digest=hashlib.sha256(content).hexdigest(), manifest_json=content, envelope_json=b"{}", size=1000
            )
            ready = events_pb2.VersionReadied(account="acme", model_id="yolo", version=version, packages=[package])
            headers = {"event-id": new_id("e"), "account": "acme", "request-id": "", "occurred-at": "2026-11-22T10:00:00Z"}
            await log.append("version.readied", [Message(key="acme/yolo", value=ready.SerializeToString(), headers=headers)])


def _publish(port: int, seal: PrincipalSeal, documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    person = Principal(Kind.USER, "key1", "acme", granted(frozenset({Scope.ADMIN})))
    headers = {PRINCIPAL_HEADER.decode(): seal.seal(person).decode()}
    made = {}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
        for content in documents:
            collection = client.post("/v1/collections", json={"name": "bench"}).raise_for_status().json()["id"]
            client.put(f"/v1/collections/{collection}/draft", json=content).raise_for_status()
            for _ in range(20):
                done = client.post(f"/v1/collections/{collection}:publish", json={})
                if done.status_code != 409:
                    break
                time.sleep(0.5)
            done.raise_for_status()
            made[collection] = content
    return made
