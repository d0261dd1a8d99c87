"""Every process of every part is restarted while devices keep asking: no request of theirs fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from deploy.cluster import PARTS, Cluster
from tests.cluster.conftest import ClusterApi
from tests.cluster.load import KINDS, DeviceLoad
from tests.e2e.world import World, eventually
from tests.models import onnx_add

pytestmark = pytest.mark.cluster

PER_SECOND = 100
DEVICES = 40


async def test_a_rolling_restart_fails_no_device_request(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster(
        environment={"LATEBIND_GATEWAY_DEVICE_REQUESTS_PER_MINUTE": "60000"},
        # Longer than the devices keep an idle connection, with room for a slow machine.
        overrides={"gateway": {"LATEBIND_DRAIN_S": "4"}},
    ).start()
    world = World(ClusterApi(cluster))
    world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
    load = DeviceLoad(world, collection, DEVICES)
    restarted = []
    async with load.running(PER_SECOND) as history:
        for process in cluster.processes(*PARTS):
            before = process.pid
            await asyncio.to_thread(process.restart)
            assert process.pid not in {None, before}
            restarted.append(process.name)
    print(f"\n{len(restarted)} processes restarted; {history}")
    assert history.failed == []
    assert min(history.answered[kind] for kind in KINDS) > 100
    assert len(restarted) == 2 * len(PARTS)
    eventually(lambda: world.inferences() == history.samples_accepted)
    world.close()
