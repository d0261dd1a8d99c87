"""One request, followed by its id through the logs of every process and the event log, from the device's post to the writer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from deploy.cluster import PARTS, Cluster, Process
from kit.eventlog import Record, open_eventlog
from services.telemetry import events
from tests.cluster.conftest import ClusterApi
from tests.e2e.world import World, eventually
from tests.telemetry.factories import batch, package, samples

pytestmark = pytest.mark.cluster


def lines(process: Process, request_id: str) -> list[dict[str, Any]]:
    """What a process has logged under a request id."""
    told = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in told if line.get("request_id") == request_id]


def line(process: Process, request_id: str, event: str) -> dict[str, Any]:
    """Wait for one line of this text."""
    (found,) = eventually(lambda: [one for one in lines(process, request_id) if one["event"] == event])
    return dict(found)


async def test_one_id_leads_from_the_device_to_what_the_writer_did(own_cluster: Callable[..., Cluster]) -> None:
    environment = {"LATEBIND_LOG_LEVEL": "debug", "LATEBIND_TELEMETRY_LINGER_S": "0", "LATEBIND_GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8"}
    cluster = own_cluster(replicas=dict.fromkeys(PARTS, 1), environment=environment).start()
    gateway, telemetry, writer = (cluster.process(part) for part in ("gateway", "telemetry", "writer"))
    world = World(ClusterApi(cluster), "followed")
    token = eventually(lambda: token_of(world))
    now_ms = int(time.time() * 1000)
    good = batch(samples([500, 600, 700], of=package(), base_ms=now_ms - 1000), created_ms=now_ms).SerializeToString()

    given, poisoned = "proxy-4711-good", "proxy-4711-poison"
    for request_id, body in ((given, good), (poisoned, good[:18] + b"\xff\xff\xff")):
        headers = {"authorization": f"Bearer {token}", "content-type": "application/x-protobuf", "request-id": request_id}
        answer = httpx2.post(f"{cluster.url}/v1/device/telemetry", content=body, headers=headers, timeout=30)
        assert answer.status_code == 202
        assert answer.headers["request-id"] == request_id
        answered = line(gateway, request_id, "request answered")
        assert (answered["method"], answered["path"], answered["status"]) == ("POST", "/v1/device/telemetry", 202)
        assert line(telemetry, request_id, "telemetry batch accepted")["batch_id"] == answer.json()["batch_id"]

    assert line(writer, given, "telemetry batch written")["level"] == "debug"
    rejected = line(writer, poisoned, "a telemetry batch was rejected")
    assert (rejected["level"], rejected["reason"]) == ("warning", "MALFORMED")
    records = {record.headers["request-id"]: record for record in await read(cluster, events.RECEIVED)}
    assert records.keys() >= {given, poisoned}
    (letter,) = await read(cluster, events.REJECTED)
    assert letter.headers["request-id"] == poisoned
    where = {"source-partition": str(records[poisoned].partition), "source-offset": str(records[poisoned].offset)}
    assert where.items() <= rejected.items()
    assert not [one for one in lines(writer, given) if one["level"] == "warning"]

    refused = httpx2.post(f"{cluster.url}/v1/device/telemetry", content=b"", headers={"request-id": "proxy-4711-nobody"}, timeout=30)
    assert refused.json()["instance"] == "urn:latebind:request:proxy-4711-nobody"
    assert line(gateway, "proxy-4711-nobody", "request answered")["status"] == 401
    assert not lines(telemetry, "proxy-4711-nobody")


async def read(cluster: Cluster, topic: str) -> list[Record]:
    async with open_eventlog(cluster.stores.eventlog) as eventlog:
        return [record async for records in eventlog.read(topic) for record in records]


def token_of(world: World) -> str:
    try:  # the signing keys of a new account come over the log
        return world.device_token(world.enrolment_key())[1]
    except AssertionError:
        return ""
