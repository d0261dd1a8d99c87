"""The main path once, over real sockets, with the real SDK: push, bind, run, measure, re-bind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latebind_proto.telemetry_pb2 import Phase
from tests.e2e.world import World, eventually
from tests.models import onnx_add
from tests.packager.converting import npz, train
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        made = World(server)
        yield made
        made.close()


def test_a_model_reaches_a_device_and_its_timings_come_back(world: World, tmp_path: Path) -> None:
    one = world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add(constant=1.0))}, params={"S": {"type": "int", "value": 13}})
    two = world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add(constant=2.0))}, params={"S": {"type": "int", "value": 19}})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": one}})
    x = np.ones((1, 4), np.float32)
    with world.device(tmp_path / "device", world.enrolment_key()) as device, device.open(collection) as handle:
        assert handle.info.version == one
        assert handle.params["S"] == 13
        np.testing.assert_array_equal(handle.run({"x": x})["y"], x + 1)
        world.publish(collection, {"rules": [], "default": {"model": "adder", "version": two}})
        outcome = device.poll_once(collection)
        np.testing.assert_array_equal(handle.run({"x": x})["y"], x + 2)
        assert handle.params["S"] == 19, outcome
        device.record(collection, Phase.PHASE_STEADY, 1234)
        device.flush()
        assert device.send().error is None
        assert eventually(lambda: world.inferences() == 3 and 3) == 3
        seen = eventually(lambda: [one for one in world.rows("/v1/devices") if one["collections"] and one["collections"][0]["running"]])
        assert len(seen) == 1
        shown = world.ok(world.client.get(f"/v1/devices/{device.install_id}"))
        assert shown["install_id"] == device.install_id


def test_a_frozen_graph_reaches_devices_in_four_forms(world: World, tmp_path: Path) -> None:
    """Acceptance 1 of the packager: a convolutional detector with declared nodes, as TensorFlow wrote it."""
    train("tf", "detector.py", tmp_path / "detector.pb")
    images = np.random.default_rng(7).uniform(0, 1, (24, 48, 48, 3)).astype(np.float32)
    kinds = ("onnx-fp32", "onnx-int8", "tflite-fp32", "ort")
    committed = world.declare(
        "detector",
        {
            "source": {"files": [{"path": "detector.pb", **world.upload((tmp_path / "detector.pb").read_bytes())}]},
            "variants": [{"convert": {"to": kind}, "required": True} for kind in kinds],
            "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 48, 48, 3], "range": [0, 1]}],
            "outputs": [{"name": "grid", "dtype": "float32", "shape": [1, 6, 6, 14]}],
            "calibration": {"path": "samples.npz", **world.upload(npz(image=images))},
        },
    )
    version = world.ready("detector", committed, within_s=300)
    key, grids = world.enrolment_key(), {}
    for kind in kinds:
        collection = world.collection({"rules": [], "default": {"model": "detector", "version": version, "variant": kind}})
        with world.device(tmp_path / kind, key) as device, device.open(collection) as handle:
            assert (handle.info.variant, handle.info.engine) == (kind, "litert" if kind == "tflite-fp32" else "onnxruntime")
            grids[kind] = handle.run({"image": images[:1]})["grid"]
    scale = float(np.abs(grids["onnx-fp32"]).max())
    assert grids["onnx-fp32"].shape == (1, 6, 6, 14) and scale > 0.1
    for kind in ("tflite-fp32", "ort"):
        assert float(np.abs(grids[kind] - grids["onnx-fp32"]).max()) <= 1e-4 * scale
    # Eight bits are another network, but not far from the first.
    assert 0 < float(np.abs(grids["onnx-int8"] - grids["onnx-fp32"]).max()) < 0.2 * scale
