"""The two engines on real models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latebind.device.agent import DeviceAgent
from latebind.device.engines import Engine, describe_engines
from latebind.device.handle import Handle
from latebind.errors import EngineMissing, InvalidInput, LoadFailed
from tests.models import external_weights, onnx_add, onnx_mlp, onnx_with_external_data, tflite_add
from tests.sdk.simulator import COLLECTION, Simulator

MakeAgent = Callable[..., DeviceAgent]
Open = Callable[..., Handle]


@pytest.fixture
def open_model(simulator: Simulator, make_agent: MakeAgent) -> Open:
    def run(graph: bytes, **package: Any) -> Handle:
        simulator.assign(simulator.add_package(graph, **package))
        return make_agent().open(COLLECTION)

    return run


def tensor(name: str, shape: list[int | str | None] | None, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


def test_engines_say_what_they_can_load(engines: dict[str, Engine]) -> None:
    described = {entry["engine"]: entry for entry in describe_engines(engines.values())}
    assert described["onnxruntime"]["max_ir"] >= 8 and described["onnxruntime"]["max_opset"] >= 15
    assert set(described["litert"]) == {"engine", "version"}


def test_onnx_runtime_reports_nothing_and_leaves_nothing_at_home(tmp_path: Path) -> None:
    """From 1.29 on it would, by a thread that starts at import."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(tmp_path)}
    code = "from latebind.device.engines.onnx import OnnxRuntimeEngine; OnnxRuntimeEngine()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert list(tmp_path.rglob("*")) == []


def test_the_limits_are_those_of_the_runtime(engines: dict[str, Engine], open_model: Open) -> None:
    onnx = engines["onnxruntime"]
    assert onnx.max_ir is not None and onnx.max_opset is not None
    assert open_model(onnx_add(ir_version=onnx.max_ir, opset=onnx.max_opset)).run(np.zeros((1, 4), np.float32))["y"][0, 0] == 1


@pytest.mark.parametrize("change", [{"ir_version": 1}, {"opset": 1}])
def test_a_model_above_the_limits_is_a_load_failure(change: dict[str, int], engines: dict[str, Engine], open_model: Open) -> None:
    onnx = engines["onnxruntime"]
    limits = {"ir_version": onnx.max_ir or 0, "opset": onnx.max_opset or 0}
    with pytest.raises(LoadFailed):
        open_model(onnx_add(**{**limits, **{key: limits[key] + value for key, value in change.items()}}))


def test_a_batch_dimension_stays_open(open_model: Open) -> None:
    handle = open_model(onnx_mlp(8, 16, 4), inputs=[tensor("features", ["batch", 8])], outputs=[tensor("scores", ["batch", 4])])
    for batch in (1, 3, 7):
        scores = handle.run({"features": np.ones((batch, 8), np.float32)})["scores"]
        assert scores.shape == (batch, 4) and np.allclose(scores.sum(axis=1), 1)


def test_external_data_comes_from_the_package(open_model: Open) -> None:
    handle = open_model(onnx_with_external_data("weights.bin", size=4), graph_data={"weights.bin": external_weights(4)})
    assert handle.run(np.zeros((1, 4), np.float32))["y"].tolist() == [[0, 1, 2, 3]]


def test_litert_runs_and_resizes(open_model: Open) -> None:
    handle = open_model(tflite_add(4, constant=2.0), engine="litert", variant="tflite-fp32")
    assert handle.info.engine == "litert"
    assert handle.run({"x": np.zeros((1, 4), np.float32)})["y"].tolist() == [[2, 2, 2, 2]]
    with pytest.raises(InvalidInput):
        handle.run({"x": np.zeros((1, 5), np.float32)})


def test_an_engine_that_is_missing_names_the_extra(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_package(tflite_add(), engine="litert"))
    with pytest.raises(EngineMissing, match=r"pip install 'latebind\[litert\]'"):
        make_agent(engines={}).open(COLLECTION)
    assert simulator.blob_bytes_sent == 0


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([tensor("z", [1, 4])], None),
        ([tensor("x", [1, 5])], None),
        ([tensor("x", [1, 4], "int64")], None),
        ([tensor("x", [1, 4, 1])], None),
        (None, [tensor("z", [1, 4])]),
        ([], None),
    ],
)
def test_a_manifest_that_contradicts_the_model_is_a_load_failure(inputs: Any, outputs: Any, simulator: Simulator, open_model: Open) -> None:
    with pytest.raises(LoadFailed):
        open_model(
            onnx_add(),
            change=lambda manifest: manifest.update({k: v for k, v in (("inputs", inputs), ("outputs", outputs)) if v is not None}),
        )


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 5), np.float32),
        np.zeros(4, np.float32),
        np.zeros((1, 4), np.complex64),
        np.array([["a"] * 4]),
        {"y": np.zeros((1, 4), np.float32)},
        {},
        {"x": np.zeros((1, 4), np.float32), "more": 1},
        None,
    ],
)
def test_inputs_that_do_not_fit_are_the_callers_mistake(wrong: Any, open_model: Open) -> None:
    handle = open_model(onnx_add())
    for _ in range(5):
        with pytest.raises(InvalidInput):
            handle.run(wrong)
    assert handle.run(np.zeros((1, 4), np.float32))["y"][0, 0] == 1


def test_inputs_that_can_be_read_as_declared_are(open_model: Open) -> None:
    handle = open_model(onnx_add())
    for value in (np.ones((1, 4)), [[1, 1, 1, 1]], np.ones((1, 4), np.uint8), np.ones((4, 1), np.float32).T, np.ones((1, 4), ">f4")):
        assert handle.run(value)["y"].tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("size", [16, 40_000])
def test_results_belong_to_the_caller(size: int, open_model: Open) -> None:
    """Small inputs are copied, large ones bound where they lie: neither may leak from one run into another."""
    handle = open_model(onnx_add((1, size)), inputs=[tensor("x", [1, size])], outputs=[tensor("y", [1, size])])
    results = [handle.run(np.full((1, size), number, np.float32)) for number in range(5)]
    results.append(handle.run(np.full((size, 1), 5, np.float32).T))
    results.append(handle.run(np.full((1, 2 * size), 6, np.float32)[:, ::2]))
    assert [float(result["y"][0, -1]) for result in results] == [1, 2, 3, 4, 5, 6, 7]
