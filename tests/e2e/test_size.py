"""What the whole embedded server costs: memory at rest, memory while large files pass, statements per poll."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.world import World, eventually
from tests.models import onnx_add
from tests.server import ServerProcess

MIB = 1 << 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        made = World(server)
        yield made
        made.close()


def memory_kib(world: World, field: str) -> int:
    assert world.server.process is not None
    text = Path(f"/proc/{world.server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field))


def forget_peak(world: World) -> None:
    assert world.server.process is not None
    Path(f"/proc/{world.server.process.pid}/clear_refs").write_text("5")


def test_at_rest_with_the_column_store_loaded(world: World, tmp_path: Path) -> None:
    """PERF-S8: under 450 MB resident, after real telemetry went through, so that chDB and Arrow are loaded.

    Measured after a restart: the very first start also holds what made the tables.
    """
    world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
    enrolment = world.enrolment_key()
    assert world.server.stop() == 0
    world.server.start()
    with world.device(tmp_path / "device", enrolment) as device:
        with device.open(collection) as handle:
            for _ in range(200):
                handle.run({"x": [[1.0, 2.0, 3.0, 4.0]]})
        device.flush()
        assert device.send().error is None
    eventually(lambda: world.inferences() == 200, within_s=60)
    world.rows("/v1/analytics/latency", group_by="device_model")
    time.sleep(2)
    resident = memory_kib(world, "VmRSS")
    print(f"resident at rest: {resident / 1024:.0f} MiB")
    assert resident * 1024 < 450_000_000


@pytest.mark.parametrize("size", [1024 * MIB])
def test_a_gibibyte_passes_in_constant_memory(world: World, size: int) -> None:
    """PERF-S8: upload, package and download of 1 GiB grow the server by less than 64 MB."""
    time.sleep(1)
    forget_peak(world)
    before = memory_kib(world, "VmRSS")
    part = 32 * MIB
    piece = hashlib.sha256(b"seed").digest() * (part // 32)
    whole = hashlib.sha256()
    upload = world.ok(world.client.post("/v1/uploads", json={"size": size}))["upload_id"]
    content_digest = f"sha-256=:{base64.b64encode(hashlib.sha256(piece).digest()).decode()}:"
    for offset in range(0, size, part):
        headers = {"upload-offset": str(offset), "content-digest": content_digest, "content-type": "application/octet-stream"}
        world.ok(world.client.put(f"/v1/uploads/{upload}", content=piece, headers=headers))
        whole.update(piece)
    large = world.ok(world.client.post(f"/v1/uploads/{upload}:complete", json={"sha256": whole.hexdigest()}, timeout=120))
    graph = world.upload(onnx_add(constant=7))
    world.ok(world.client.post("/v1/models", json={"model_id": "large"}))
    declared = {
        "variants": [{"name": "onnx-fp32", "files": [{"path": "model.onnx", "role": "graph", **graph}]}],
        "files": [{"path": "maps.bin", **large}],
    }
    world.ok(world.client.post("/v1/models/large/versions", json=declared))
    world.ok(world.client.post("/v1/models/large/versions/1:commit", json={}))
    eventually(lambda: world.ok(world.client.get("/v1/models/large/versions/1"))["state"] == "ready", within_s=120)
    _, text = world.device_token(world.enrolment_key())
    seen = hashlib.sha256()
    received = 0
    with httpx2.Client(base_url=world.server.url, follow_redirects=True, timeout=60) as client:
        with client.stream("GET", f"/v1/device/blobs/{large['sha256']}", headers={"authorization": f"Bearer {text}"}) as answer:
            assert answer.status_code == 200
            assert answer.headers["etag"] == f'"{large["sha256"]}"'
            for chunk in answer.iter_raw():
                seen.update(chunk)
                received += len(chunk)
        assert (received, seen.hexdigest()) == (size, large["sha256"])
        ranged = client.get(
            f"/v1/device/blobs/{large['sha256']}", headers={"authorization": f"Bearer {text}", "range": f"bytes={size - 10}-"}
        )
        assert (ranged.status_code, len(ranged.content)) == (206, 10)
    grown = memory_kib(world, "VmHWM") - before
    print(f"grown by {grown / 1024:.0f} MiB while 1 GiB went in, was packaged, and came out")
    assert grown * 1024 < 64_000_000
