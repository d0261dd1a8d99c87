"""Latebind as many processes on real servers, as its users meet it."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from deploy.cluster import Cluster
from tests.cluster.conftest import ClusterApi
from tests.e2e.world import World, eventually
from tests.models import onnx_add

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
