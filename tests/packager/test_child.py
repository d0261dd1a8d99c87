"""Whole children on good and on wrong models: what they find, run and keep, and how they say no."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from services.packager.answer import measurement, parse_answer
from services.packager.errors import ModelRejected, Reason
from services.packager.sandbox import Sandbox
from tests import models as m
from tests.packager.conftest import Examiner


def arrays(npz: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(npz), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def tensor(name: str, dtype: str, shape: list[Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, **more}


async def test_an_onnx_model_is_read_run_and_kept(examine: Examiner) -> None:
    answer = await examine(m.onnx_mlp(8, 16, 4))
    assert examine.steps == ["reading", "checking", "loading", "running", "writing"]
    assert (answer.found.precision, answer.ram_mb, answer.notes) == ("fp32", 64, ())
    inputs, outputs = (arrays(body) for body in examine.golden)
    assert inputs["features"].shape == (1, 8)
    assert outputs["scores"].shape == (1, 4)
    assert outputs["scores"].sum() == pytest.approx(1)
    again = examine.golden
    await examine(m.onnx_mlp(8, 16, 4))
    assert examine.golden == again


async def test_a_tflite_model_with_a_dynamic_batch_is_run(examine: Examiner) -> None:
    answer = await examine(m.tflite_add(4, constant=2.0, signature=[-1, 4]))
    assert answer.found.engine.name == "litert"
    inputs, outputs = (arrays(body) for body in examine.golden)
    np.testing.assert_allclose(outputs["y"], inputs["x"] + 2)


async def test_symbols_are_one_size_everywhere_and_declared_numbers_win(examine: Examiner) -> None:
    model = m.OnnxModel(
        [m.onnx_node("Concat", ["a", "b"], ["c"], axis=1), m.onnx_node("MatMul", ["c", "d"], ["y"])],
        [m.onnx_value("a", "float32", ["n", "k"]), m.onnx_value("b", "float32", ["n", 3]), m.onnx_value("d", "float32", [None, "m"])],
        [m.onnx_value("y", "float32", None)],
    )
    with pytest.raises(ModelRejected) as caught:
        await examine(bytes(model))
    assert caught.value.reason is Reason.MODEL_RUN_FAILED
    assert "Declare the inputs" in caught.value.detail
    declared = [tensor("a", "float32", ["n", 5]), tensor("b", "float32", ["n", 3]), tensor("d", "float32", [8, "m"])]
    answer = await examine(bytes(model), inputs=declared)
    assert [one.shape for one in answer.found.inputs] == [("n", 5), ("n", 3), (8, "m")]
    assert answer.found.outputs[0].shape == (None, None)


async def test_free_sizes_are_tried_until_the_model_runs(examine: Examiner) -> None:
    kernel = np.ones((1, 3, 40, 40), np.float32)
    model = m.OnnxModel(
        [m.onnx_node("Conv", ["x", "k"], ["y"])],
        [m.onnx_value("x", "float32", ["batch", 3, "height", "width"])],
        [m.onnx_value("y", "float32", None)],
        [m.onnx_tensor("k", kernel)],
    )
    answer = await examine(bytes(model))
    assert answer.notes == ("ran on input generated as spread, free dimensions of 64",)
    assert arrays(examine.golden[0])["x"].shape == (1, 3, 64, 64)


async def test_ranges_are_honoured(examine: Examiner) -> None:
    model = m.OnnxModel(
        [m.onnx_node("Gather", ["table", "ids"], ["y"])],
        [m.onnx_value("ids", "int64", [1, 6])],
        [m.onnx_value("y", "float32", [1, 6, 2])],
        [m.onnx_tensor("table", np.arange(20, dtype=np.float32).reshape(10, 2))],
    )
    await examine(bytes(model))
    assert set(np.unique(arrays(examine.golden[0])["ids"])) <= {0, 1}
    await examine(bytes(model), inputs=[tensor("ids", "int64", [1, 6], range=[3, 9])])
    ids = arrays(examine.golden[0])["ids"]
    assert ids.min() >= 3 and ids.max() <= 9 and len(np.unique(ids)) > 1


async def test_strings_and_booleans_pass_without_pickle(examine: Examiner) -> None:
    model = m.OnnxModel(
        [m.onnx_node("Identity", ["s"], ["t"]), m.onnx_node("Not", ["b"], ["n"])],
        [m.onnx_value("s", "string", [2]), m.onnx_value("b", "bool", [3])],
        [m.onnx_value("t", "string", [2]), m.onnx_value("n", "bool", [3])],
    )
    await examine(bytes(model))
    outputs = arrays(examine.golden[1])
    assert outputs["t"].tolist() == ["latebind", "latebind"]
    assert outputs["n"].dtype == bool


async def test_external_data_of_the_upload_is_used(examine: Examiner) -> None:
    await examine(m.onnx_with_external_data("model.data", size=4), data={"model.data": m.external_weights(4)})
    inputs, outputs = (arrays(body) for body in examine.golden)
    np.testing.assert_allclose(outputs["y"], inputs["x"] + np.arange(4, dtype=np.float32))
    with pytest.raises(ModelRejected) as caught:
        await examine(m.onnx_with_external_data("model.data"), data={"other.data": b""})
    assert caught.value.reason is Reason.EXTERNAL_DATA_MISSING
    assert '"model.data"' in caught.value.detail and "other.data" in caught.value.detail
    with pytest.raises(ModelRejected) as caught:
        await examine(m.onnx_with_external_data("model.data", size=4, offset=8), data={"model.data": m.external_weights(4)})
    assert caught.value.reason is Reason.EXTERNAL_DATA_MISSING


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"inputs": [tensor("image", "float32", [1, 4])]}, ["INPUT_MISMATCH", '"image"', "no such input", '"x" (float32 [1, 4])']),
        ({"inputs": [tensor("x", "uint8", [1, 4])]}, ["INPUT_MISMATCH", '"x"', "uint8 [1, 4]", "float32 [1, 4]"]),
        ({"inputs": [tensor("x", "float32", [1, 5])]}, ["INPUT_MISMATCH", '"x"', "[1, 5]", "[1, 4]"]),
        ({"inputs": [tensor("x", "float32", [4])]}, ["INPUT_MISMATCH", "[4]", "[1, 4]"]),
        ({"outputs": [tensor("y", "float32", [1, 9])]}, ["OUTPUT_MISMATCH", '"y"', "[1, 9]", "[1, 4]"]),
        ({"outputs": [tensor("z", "float32", [1, 4])]}, ["OUTPUT_MISMATCH", '"z"']),
    ],
)
async def test_a_wrong_declaration_is_named(examine: Examiner, declared: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelRejected) as caught:
        await examine(m.onnx_add(), **declared)
    for word in words:
        assert word in str(caught.value)


async def test_a_declared_output_is_compared_with_what_comes_out(examine: Examiner) -> None:
    model = m.onnx_mlp(8, 16, 4, batch="batch")
    wrong = [tensor("scores", "float32", [7, 4])]
    with pytest.raises(ModelRejected) as caught:
        await examine(model, outputs=wrong)
    assert caught.value.reason is Reason.OUTPUT_MISMATCH
    assert "[7, 4]" in caught.value.detail and "[1, 4]" in caught.value.detail


async def test_a_model_that_makes_noise_is_refused(examine: Examiner) -> None:
    model = m.OnnxModel([m.onnx_node("RandomNormal", [], ["y"], shape=[1, 8])], [], [m.onnx_value("y", "float32", [1, 8])])
    with pytest.raises(ModelRejected) as caught:
        await examine(bytes(model))
    assert caught.value.reason is Reason.MODEL_NOT_DETERMINISTIC


async def test_a_model_that_gives_nan_is_refused(examine: Examiner) -> None:
    model = m.OnnxModel(
        [m.onnx_node("Sub", ["x", "x"], ["z"]), m.onnx_node("Div", ["z", "z"], ["y"])],
        [m.onnx_value("x", "float32", [1, 4])],
        [m.onnx_value("y", "float32", [1, 4])],
    )
    with pytest.raises(ModelRejected) as caught:
        await examine(bytes(model))
    assert caught.value.reason is Reason.MODEL_OUTPUT_NOT_FINITE
    assert '"y"' in caught.value.detail and "range" in caught.value.detail


async def test_outputs_as_large_as_floats_go_are_fine(examine: Examiner) -> None:
    """Found by a mutant: the tolerance follows the largest output, and was refused by the service's own check of the answer."""
    model = m.OnnxModel(
        [m.onnx_node("Mul", ["x", "c"], ["y"])],
        [m.onnx_value("x", "float32", [1, 4])],
        [m.onnx_value("y", "float32", [1, 4])],
        [m.onnx_tensor("c", np.array(1e35, np.float32))],
    )
    assert (await examine(bytes(model))).atol > 1e12


async def test_what_the_runtime_does_not_know_is_said_so(examine: Examiner) -> None:
    with pytest.raises(ModelRejected) as caught:
        await examine(m.onnx_add(opset=500, ir_version=8))
    assert caught.value.reason is Reason.ENGINE_TOO_OLD
    with pytest.raises(ModelRejected) as caught:
        await examine(bytes(m.OnnxModel([m.onnx_node("NoSuchOperator", [], ["y"])], outputs=[m.onnx_value("y", "float32", [1])])))
    assert caught.value.reason is Reason.MODEL_LOAD_FAILED
    assert "NoSuchOperator" in caught.value.detail


async def test_no_message_carries_a_path_of_the_server(examine: Examiner, sandbox: Sandbox) -> None:
    for model in (m.onnx_add(opset=500), m.onnx_with_external_data("nowhere"), bytes(m.OnnxModel([m.onnx_node("Nope", [], ["y"])]))):
        with pytest.raises(ModelRejected) as caught:
            await examine(model)
        assert "scratch" not in caught.value.detail
        assert "/in/" not in caught.value.detail


async def test_two_children_of_one_parent_share_no_random_numbers(sandbox: Sandbox) -> None:
    """Otherwise a replay would not notice a model that makes noise once per process."""
    noise = [m.onnx_node("RandomNormal", [], ["noise"], shape=[1, 4]), m.onnx_node("Add", ["x", "noise"], ["y"])]
    model = m.OnnxModel(noise, [m.onnx_value("x", "float32", [1, 4])], [m.onnx_value("y", "float32", [1, 4])])
    found = []
    for _ in range(2):
        async with sandbox.workspace() as workspace:
            workspace.path("0").write_bytes(bytes(model))
            job = {
                "task": "reference", "format": "onnx", "graph": "in/0", "data": {}, "samples": None, "golden": None, "seconds": 30,
                "inputs": [{"called": "x", **tensor("x", "float32", [1, 4])}],
                "outputs": [{"called": "y", **tensor("y", "float32", [1, 4])}],
            }  # fmt: skip
            parse_answer(await sandbox.run(workspace, job, lambda _step: None))
            found.append(arrays(workspace.take("reference.npz", "reference.npz", 2**20).read_bytes())["y"])
    assert sandbox.warm_parents == 1
    assert not np.array_equal(*found)


async def test_a_replay_in_a_second_process_agrees_and_notices_another_model(examine: Examiner, sandbox: Sandbox) -> None:
    await examine(m.onnx_add(constant=1.0))
    golden = examine.golden
    for constant, ok in ((1.0, True), (1.5, False)):
        async with sandbox.workspace() as workspace:
            for name, body in (("0", m.onnx_add(constant=constant)), ("input.npz", golden[0]), ("output.npz", golden[1])):
                workspace.path(name).write_bytes(body)
            job = {
                "task": "replay", "format": "onnx", "graph": "in/0", "data": {}, "golden": {"rtol": 0.01, "atol": 0.001},
                "inputs": [tensor("x", "float32", [1, 4])], "outputs": [tensor("y", "float32", [1, 4])],
                "gates": {"samples": None, "reference": None, "evaluation": None, "output": None}, "ort": None,
            }  # fmt: skip
            raw = await sandbox.run(workspace, job, lambda _step: None)
        if ok:
            measured = measurement(raw)
            assert (measured.samples, measured.parity, measured.accuracy) == (1, None, None) and measured.speed["runs"] >= 3
        else:
            with pytest.raises(ModelRejected) as caught:
                parse_answer(raw)
            assert caught.value.reason is Reason.MODEL_NOT_DETERMINISTIC
