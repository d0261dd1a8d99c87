"""Latebind as many processes on real servers, as its users meet it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from deploy.cluster import PARTS, Cluster, Stores
from deploy.cluster.process import Process
from deploy.servers import Server
from tests.cluster.conftest import ClusterApi
from tests.e2e.world import World, eventually
from tests.models import onnx_add
from tests.telemetry.factories import batch, package, samples

pytestmark = pytest.mark.cluster


@pytest.fixture
def world(shared_cluster: Cluster) -> World:
    return World(ClusterApi(shared_cluster), f"processes-{uuid4().hex[:8]}")


def test_a_model_reaches_a_device_and_its_runs_reach_the_analytics(world: World, tmp_path: Path) -> None:
    world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
    with world.device(tmp_path / "device", world.enrolment_key()) as device, device.open(collection) as handle:
        for _ in range(5):
            handle.run({"x": [[1.0, 2.0, 3.0, 4.0]]})
    eventually(lambda: world.inferences() == 5)


def test_a_stop_finishes_what_is_in_flight(own_cluster: Callable[..., Cluster]) -> None:
    """SIGTERM to gateways, services and writers while uploads are half sent and a batch is half full (SEC-D2)."""
    cluster = own_cluster(replicas={"packager": 1, "deployer": 1}, environment={"LATEBIND_TELEMETRY_LINGER_S": "5"}).start()
    world = World(ClusterApi(cluster))
    data = os.urandom(4 << 20)
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    sha256 = hashlib.sha256(data).hexdigest()
    uploads = [world.ok(world.client.post("/v1/uploads", json={"size": len(data)}))["upload_id"] for _ in range(4)]
    half_sent, go_on = threading.Barrier(len(uploads) + 1), threading.Event()

    def body() -> Iterator[bytes]:
        yield data[: 2 << 20]
        half_sent.wait(60)
        assert go_on.wait(60)
        yield data[2 << 20 :]

    def send_part(upload: str) -> int:
        headers = {"upload-offset": "0", "content-digest": f"sha-256=:{digest}:", "content-length": str(len(data))}
        headers |= {"content-type": "application/octet-stream"} | _bearer(world.key)
        with httpx2.Client(base_url=cluster.url, timeout=60) as client:  # a connection each, so that both gateways have some
            return client.put(f"/v1/uploads/{upload}", content=body(), headers=headers).status_code

    token = eventually(lambda: _token(world))
    with ThreadPoolExecutor(16) as pool:
        parts = [pool.submit(send_part, upload) for upload in uploads]
        half_sent.wait(60)
        accepted = _send_telemetry(world, token, batches=20)
        began = time.monotonic()
        stopping = {one.name: pool.submit(one.stop) for one in cluster.processes("gateway", "registry", "telemetry", "writer")}
        eventually(lambda: any(one.readiness()[0] != 200 for one in cluster.processes("gateway")))
        go_on.set()
        assert {part.result() for part in parts} <= {200, 204}
        assert {name: code.result() for name, code in stopping.items()} == dict.fromkeys(stopping, 0)
        assert time.monotonic() - began < 30
    cluster.start()
    for upload in uploads:
        assert world.ok(world.client.post(f"/v1/uploads/{upload}:complete", json={"sha256": sha256}))["size"] == len(data)
    eventually(lambda: world.inferences() == accepted)


def test_processes_start_without_their_servers_and_become_ready_by_themselves(
    own_cluster: Callable[..., Cluster], own_server: Callable[[str], Server]
) -> None:
    servers = [own_server(kind) for kind in ("postgres", "kafka", "seaweedfs", "clickhouse")]
    stores = Stores.within({name: url for server in servers for name, url in server.addresses.items()}, "late")
    cluster = own_cluster(stores=stores, replicas=dict.fromkeys(PARTS, 1))
    cluster.prepare()
    for server in servers:
        server.kill()
    for process in cluster.processes():
        process.start(wait=False)
    needed = {"registry": "database registry", "packager": "database packager", "deployer": "deployer", "telemetry": "event log"}
    for process in cluster.processes():
        # A start waits a moment for what it answers from; then it is started all the same, and not ready.
        eventually(lambda process=process: process.readiness()[0] and probe(process, "startupz") == 200, within_s=60)
        assert probe(process, "livez") == 200
        code, document = process.readiness()
        if process.name == "gateway-0":
            continue
        assert (code, document["status"]) == (503, "down"), process.name
        part = process.name.rpartition("-")[0]
        assert document["checks"][needed.get(part, "column store")]["status"] == "down"
    for server in servers:
        server.start()
    for process in cluster.processes():
        eventually(lambda process=process: process.readiness()[1].get("status") == "ready", within_s=60)


def probe(process: Process, name: str) -> int:
    return httpx2.get(f"{process.internal_url}/{name}").status_code


def _token(world: World) -> str:
    with contextlib.suppress(AssertionError):  # the signing keys of a new account come over the log
        return world.device_token(world.enrolment_key())[1]
    return ""


def _send_telemetry(world: World, token: str, *, batches: int) -> int:
    """Send batches of three samples; returns how many samples were accepted."""
    now_ms = int(time.time() * 1000)
    accepted = 0
    for _ in range(batches):
        body = batch(samples([500, 600, 700], of=package(), base_ms=now_ms - 1000), created_ms=now_ms).SerializeToString()
        headers = _bearer(token) | {"content-type": "application/x-protobuf"}
        accepted += 3 * (
            httpx2.post(f"{world.server.url}/v1/device/telemetry", content=body, headers=headers, timeout=30).status_code == 202
        )
    assert accepted
    return accepted


def _bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}
