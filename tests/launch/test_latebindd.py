"""`latebindd` as its users meet it: start, refuse, stop, one part alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from latebind_proto.telemetry_pb2 import Phase
from tests.e2e.world import World, eventually
from tests.models import onnx_add
from tests.server import ROOT, ServerProcess

Servers = Callable[..., ServerProcess]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Makes servers that end with the test, whatever becomes of it."""
    made: list[ServerProcess] = []

    def make(name: str = "data", **environment: str) -> ServerProcess:
        made.append(ServerProcess(tmp_path / name, environment=environment))
        return made[-1]

    yield make
    for server in made:
        server.end()


def latebindd(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **(environment or {})}
    return subprocess.run(
        [sys.executable, "-m", "services", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_first_start_shows_the_operator_key_once_and_keeps_it_private(servers: Servers, tmp_path: Path) -> None:
    server = servers().start()
    key = server.operator_key
    assert server.log.read_text().count(key) == 1
    assert stat.S_IMODE((server.data_dir / "operator.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    for path in (server.data_dir / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.stop() == 0
    server.start()
    assert server.log.read_text().count(key) == 1
    with server.client() as client:
        assert client.get("/v1/accounts").status_code == 200
    assert server.stop() == 0
    for path in server.data_dir.rglob("*.db*"):
        assert key.encode() not in path.read_bytes()


def test_a_second_process_on_the_same_folder_refuses_and_says_why(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        done = latebindd("--port", "0", "--internal-port", "0", "--data-dir", str(server.data_dir))
        assert done.returncode == 1
        assert f"process {server.process.pid}" in done.stderr  # type: ignore[union-attr]
        assert "--data-dir" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_taken_port_and_wrong_arguments_are_said_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = latebindd("--port", str(taken.getsockname()[1]), "--internal-port", "0", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
    assert latebindd("nothing").returncode == 2
    assert "latebindd registry" in latebindd("--help").stdout


def test_sigterm_finishes_what_is_in_flight_and_leaves_the_rows(servers: Servers, tmp_path: Path) -> None:
    """A real SIGTERM while batches arrive and a body is half sent: what was acknowledged is there after the next start."""
    server = servers().start()
    world = World(server)
    world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
    device = world.device(tmp_path / "device", world.enrolment_key())
    device.enrol()
    device.poll_once(collection)
    stop = threading.Event()
    recorded = 0

    def send() -> None:
        nonlocal recorded
        while not stop.is_set():
            for _ in range(10):
                device.record(collection, Phase.PHASE_STEADY, 500)
                recorded += 1
            device.flush()
            device.send()
            time.sleep(0.05)  # or the device's bounded buffer fills while the server is away

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(1.0)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    stop.set()
    sender.join()
    server.start()
    eventually(lambda: device.send().error is None)
    eventually(lambda: world.inferences() == recorded)
    device.close()
    assert server.stop() == 0


def test_probes_and_metrics_are_where_operators_look(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server, httpx2.Client() as client:
        for address in (server.url, server.internal_url):
            assert client.get(f"{address}/livez").json() == {"status": "ok"}
            assert client.get(f"{address}/startupz").status_code == 200
            ready = client.get(f"{address}/readyz")
            assert (ready.status_code, ready.json()["status"], ready.json()["checks"]["event log"]) == (200, "ready", {"status": "ready"})
            assert ready.json()["checks"]["worker packager-jobs"]["detail"] in {"sandbox: strong", "sandbox: fallback"}
        assert client.get(f"{server.url}/metrics").status_code == 404
        text = client.get(f"{server.internal_url}/metrics").text
        assert "latebind_http_requests_total{" in text
        assert "latebind_worker_healthy{" in text

        def watched() -> bool:
            shown = client.get(f"{server.internal_url}/metrics").text
            parts = ('latebind_dependency_up{dependency="column store"} 1.0', 'latebind_outbox_events{service="registry"} 0.0')
            pool = 'latebind_database_connections{service="deployer",state="in_use",use="read"} 0.0'
            lag = 'latebind_log_lag_records{group="telemetry-writer",topic="telemetry.received"} 0.0'
            return all(line in shown for line in (*parts, pool, lag))

        eventually(watched)


@pytest.mark.parametrize("part", ["registry", "deployer"])
def test_one_service_alone_believes_only_the_gateway(part: str, servers: Servers) -> None:
    server = servers().start(part)
    path = {"registry": "/v1/models", "deployer": "/v1/collections"}[part]
    with httpx2.Client(base_url=server.url) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer x"}).status_code == 401
        assert client.get(path, headers={"latebind-principal": "e30=.0"}).status_code == 401
    assert server.stop() == 0


def test_the_gateway_alone_reaches_a_service_over_http_and_says_when_one_is_down(servers: Servers, tmp_path: Path) -> None:
    secrets = {"LATEBIND_SECRETS_DIR": str(tmp_path / "secrets")}
    registry = servers("registry", **secrets).start("registry")
    nowhere = "http://127.0.0.1:9"
    urls = {f"LATEBIND_GATEWAY_{name}_URL": nowhere for name in ("PACKAGER", "DEPLOYER", "TELEMETRY")}
    gateway = ServerProcess(tmp_path / "gateway", environment={**secrets, **urls, "LATEBIND_GATEWAY_REGISTRY_URL": registry.url}).start(
        "gateway"
    )
    key = registry.operator_key
    with gateway.client(key) as client:
        made = client.post("/v1/accounts", json={"account": "acme"})
        assert made.status_code == 201, made.text
        admin = made.json()["api_key"]["key"]
    with gateway.client(admin) as client:
        assert client.get("/v1/models").json()["items"] == []
        down = client.get("/v1/jobs")
        assert (down.status_code, down.json()["code"]) == (503, "UPSTREAM_UNAVAILABLE")
        assert down.headers["retry-after"]
    assert gateway.stop() == 0
    assert registry.stop() == 0


def test_a_copy_of_the_folder_is_a_backup(servers: Servers, tmp_path: Path) -> None:
    """docs/operating.md: stop, copy, start; the copy serves the same models and the same devices go on."""
    import shutil

    server = servers().start()
    world = World(server)
    world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
    with world.device(tmp_path / "device", world.enrolment_key()) as device, device.open(collection) as handle:
        handle.run({"x": [[1.0, 2.0, 3.0, 4.0]]})
    eventually(lambda: world.inferences() == 1)
    assert server.stop() == 0
    shutil.copytree(server.data_dir, tmp_path / "restored", symlinks=True)
    shutil.rmtree(server.data_dir)
    restored = servers("restored")
    restored.port = server.port
    restored.start()
    assert world.inferences() == 1
    with world.device(tmp_path / "device", "") as device, device.open(collection) as handle:
        assert handle.info.version == 1
        assert device.poll_once(collection).error is None
    assert json.loads(world.client.get("/v1/models").text)["items"][0]["model_id"] == "adder"
    assert restored.stop() == 0
