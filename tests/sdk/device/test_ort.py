"""The form of a model for one version of ONNX Runtime: loaded by that version, by no other, and never needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest

from latebind.device.agent import DeviceAgent
from latebind.device.engines import Engine
from latebind.device.engines.onnx import OnnxRuntimeEngine
from latebind.device.handle import Handle
from tests.models import onnx_add
from tests.sdk.simulator import COLLECTION, Simulator

HERE = onnxruntime.__version__
#: What the two forms add, so that the answer says which one was loaded.
GRAPH, ORT = 1.0, 5.0

Open = Callable[..., Handle]


@pytest.fixture(scope="module")
def ort_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ort") / "model.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(onnx_add(constant=ORT), options, providers=["CPUExecutionProvider"])
    return path.read_bytes()


@pytest.fixture
def added(simulator: Simulator, make_agent: Callable[..., DeviceAgent]) -> Callable[..., float]:
    def run(ort: bytes, version: str, engines: Mapping[str, Engine] | None = None) -> float:
        def change(manifest: dict[str, Any]) -> None:
            manifest["engine"]["ort"] = {"path": "model.ort", "version": version}
            next(file for file in manifest["files"] if file["path"] == "model.ort")["role"] = "graph-ort"

        simulator.assign(simulator.add_package(onnx_add(constant=GRAPH), files={"model.ort": ort}, variant="ort", change=change))
        handle = make_agent(**({} if engines is None else {"engines": engines})).open(COLLECTION)
        assert handle.info.files == ()
        return float(handle.run(np.zeros((1, 4), np.float32))["y"][0, 0])

    return run


def test_the_same_version_loads_it(added: Callable[..., float], ort_file: bytes) -> None:
    assert ort_file[4:8] == b"ORTM"
    assert added(ort_file, HERE) == ORT


@pytest.mark.parametrize("version", ["1.0.0", f"{HERE}.1", HERE.rpartition(".")[0], ""])
def test_another_version_loads_the_graph(added: Callable[..., float], ort_file: bytes, version: str) -> None:
    assert added(ort_file, version) == GRAPH


def test_a_runtime_that_was_exchanged_loads_the_graph(added: Callable[..., float], ort_file: bytes) -> None:
    engine = OnnxRuntimeEngine()
    engine.version = "1.99.0"
    assert added(ort_file, HERE, {"onnxruntime": engine}) == GRAPH


def test_one_that_does_not_load_is_not_needed(added: Callable[..., float], caplog: pytest.LogCaptureFixture) -> None:
    assert added(b"\x10\0\0\0ORTM" + bytes(200), HERE) == GRAPH
    assert any("its ONNX file is loaded instead" in record.getMessage() for record in caplog.records)
