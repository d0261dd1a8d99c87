"""Files of packages in an object store: the device follows a link to the store, resumes there, and never shows it its credential."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests import real_servers
from tests.e2e.world import World, eventually
from tests.models import onnx_add
from tests.server import ServerProcess

pytestmark = pytest.mark.cluster


class Wire:
    """Carries TCP to the store, notes what is sent there, and may cut an answer short."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.sent = b""
        #: Answers end after so many bytes; None: whole.
        self.cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                carried += len(data)
                if upward:
                    self.sent += data
                elif self.cut_after is not None and carried > self.cut_after:
                    sink.sendall(data[: self.cut_after - (carried - len(data))])
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture(params=["seaweedfs", "minio"])
def store(request: pytest.FixtureRequest) -> str:
    return real_servers.s3(request.param)


@pytest.fixture
def wire(store: str) -> Iterator[Wire]:
    host, _, port = store.rpartition("@")[2].partition("/")[0].partition(":")
    carrying = Wire((host, int(port)))
    yield carrying
    carrying.close()


def test_a_device_gets_its_files_from_the_store_without_showing_its_token(store: str, wire: Wire, tmp_path: Path) -> None:
    labels = os.urandom(3 << 20)
    blobs = real_servers.with_query(store, public_url=wire.url)
    with ServerProcess(tmp_path / "data", environment={"LATEBIND_BLOBS_URL": blobs}) as server:
        world = World(server)
        # Uploaded in parts, joined, packaged and linked, all of it in the store.
        world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())}, files={"some.labels": labels})
        collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
        device = world.device(tmp_path / "device", world.enrolment_key())
        device.enrol()
        wire.cut_after = 1 << 20
        eventually(lambda: device.poll_once(collection) and len(wire.sent.split(b"GET ")) > 2)
        wire.cut_after = None
        eventually(lambda: device.poll_once(collection) and any(path.stat().st_size == len(labels) for path in _files(tmp_path / "device")))
        device.close()
        link = world.client.get(f"/v1/device/blobs/{'0' * 64}")
        assert link.status_code == 403
        world.close()
        assert server.stop() == 0
    assert b"range: bytes=" in wire.sent.lower()
    assert b"x-amz-signature" in wire.sent.lower()
    for line in wire.sent.lower().split(b"\r\n"):
        assert not line.startswith((b"authorization", b"cookie", b"latebind"))
    assert not list((tmp_path / "data").glob("blobs/*"))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_a_device_is_told_of_a_blob(store: str, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", environment={"LATEBIND_BLOBS_URL": store}) as server:
        world = World(server)
        uploaded = world.upload(b"a file" * 1000)
        _, token = world.device_token(world.enrolment_key())
        other = World(server, "other")
        _, stranger = other.device_token(other.enrolment_key())
        path = f"{server.url}/v1/device/blobs/{uploaded['sha256']}"
        answer = httpx2.get(path, headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
        part = httpx2.get(answer.headers["location"], headers={"range": "bytes=6-11"})
        assert (part.status_code, part.content) == (206, b"a file")
        assert httpx2.get(answer.headers["location"].partition("?")[0]).status_code == 403
        assert httpx2.get(path, headers={"authorization": f"Bearer {stranger}"}).status_code == 404
        assert httpx2.get(f"{server.url}/blobs/acme/{uploaded['sha256']}").status_code in {403, 404}
        other.close()
        world.close()
