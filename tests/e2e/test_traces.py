"""One trace from a device's request to the insert of its rows, in one process and across six."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from deploy.cluster.process import migrate
from kit.eventlog import open_eventlog
from tests import real_servers
from tests.e2e.world import World, eventually
from tests.otlp import Receiver, receiving
from tests.server import ServerProcess
from tests.telemetry.factories import batch, package, samples


@pytest.fixture
def received() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def _send_batch(world: World) -> str:
    """Send a batch as a device; returns the request id of the answer."""
    key = world.enrolment_key()
    token = eventually(lambda: _token(world, key))
    now_ms = int(time.time() * 1000)  # analytics look at the last week
    body = batch(samples([500, 600, 700], of=package(), base_ms=now_ms - 1000), created_ms=now_ms).SerializeToString()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/x-protobuf", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    answer = httpx2.post(f"{world.server.url}/v1/device/telemetry", content=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["request-id"])


def _token(world: World, key: str) -> str:
    with contextlib.suppress(AssertionError):  # the account's signing keys come over the log
        return world.device_token(key)[1]
    return ""


def _check(received: Receiver, request_id: str) -> None:
    eventually(lambda: received.named("insert samples"), within_s=30)
    (insert,) = received.named("insert samples")
    trace = [span for span in received.spans if span.trace == insert.trace]
    of = {(span.scope, span.name): span for span in trace}
    gateway = of["latebind.gateway", "POST /v1/device/telemetry"]
    service = of["latebind.telemetry", "POST /v1/device/telemetry"]
    writer = of["latebind.telemetry", "write batches"]
    assert [gateway.parent, service.parent, writer.parent, insert.parent] == ["", gateway.id, service.id, writer.id]
    assert {gateway.attributes["latebind.request_id"], service.attributes["latebind.request_id"]} == {request_id}
    assert gateway.trace != "1" * 32
    assert b"onnx" not in received.raw


def test_one_process(received: Receiver, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", environment={"LATEBIND_TRACES_URL": received.url, "LATEBIND_TELEMETRY_LINGER_S": "0"}) as server:
        world = World(server)
        request_id = _send_batch(world)
        eventually(lambda: world.inferences() == 3)
        world.close()
        assert server.stop() == 0
    _check(received, request_id)


@pytest.mark.cluster
async def test_a_process_per_part_on_real_servers(received: Receiver, tmp_path: Path) -> None:
    eventlog = real_servers.kafka(partitions="2")
    shared = {
        "LATEBIND_TRACES_URL": received.url,
        "LATEBIND_TELEMETRY_LINGER_S": "0",
        "LATEBIND_SECRETS_DIR": str(tmp_path / "secrets"),
        "LATEBIND_DATABASE_URL": real_servers.postgres(),
        "LATEBIND_BLOBS_URL": real_servers.s3("seaweedfs"),
        "LATEBIND_EVENTLOG_URL": eventlog,
        "LATEBIND_OLAP_URL": real_servers.clickhouse(),
    }
    with ExitStack() as stack:

        def start(name: str, *arguments: str, **more: str) -> ServerProcess:
            server = ServerProcess(tmp_path / name, environment={**shared, **more})
            stack.callback(server.end)
            return server.start(*arguments)

        migrate(tmp_path / "migrate", shared)
        parts = {part: start(part, part) for part in ("registry", "packager", "deployer")}
        parts["telemetry"] = start("api", "telemetry", "--only", "api")
        writer = start("writer", "telemetry", "--only", "workers")
        gateway = start("gateway", "gateway", **{f"LATEBIND_GATEWAY_{part.upper()}_URL": server.url for part, server in parts.items()})
        gateway.data_dir.mkdir()
        shutil.copy(tmp_path / "migrate" / "operator.key", gateway.data_dir)
        world = World(gateway)
        request_id = _send_batch(world)
        eventually(lambda: world.inferences() == 3)
        world.close()
        for server in (gateway, writer, *parts.values()):
            assert server.stop() == 0
    _check(received, request_id)
    async with open_eventlog(eventlog) as log, log.consumer("test", ["telemetry.received"]) as consumer:
        (record,) = (await consumer.batch(max_records=10, max_bytes=1 << 20, max_wait_s=10)).records
    assert record.headers["request-id"] == request_id
    assert record.headers["traceparent"].split("-")[1] == received.named("insert samples")[0].trace
