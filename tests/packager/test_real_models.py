"""Models that people really ship, through real children."""

from __future__ import annotations

import io

import numpy as np

from services.packager.domain import Tensor
from services.packager.manifest import check_variants
from tests.packager.conftest import Examiner
from tests.real_models import basic_pitch, magika


async def test_magika_is_described_and_runs(examine: Examiner) -> None:
    real = magika()
    answer = await examine(real.model.read_bytes())
    found = answer.found
    assert (found.engine.ir_version, found.engine.opset, found.engine.min_version) == (8, {"": 15, "ai.onnx.ml": 2}, "1.10")
    assert found.inputs == (Tensor("bytes", "int32", (None, 2048)),)
    assert found.outputs == (Tensor("target_label", "float32", (None, len(real.labels))),)
    assert found.precision == "fp32"
    assert "Conv" in found.engine.operators
    with np.load(io.BytesIO(examine.golden[1]), allow_pickle=False) as golden:
        assert golden["target_label"].sum() == np.float32(1).item() or abs(golden["target_label"].sum() - 1) < 1e-3


async def test_basic_pitch_is_the_same_network_in_both_formats(examine: Examiner) -> None:
    real = basic_pitch()
    onnx = await examine(real.onnx.read_bytes())
    onnx_output = examine.golden[1]
    tflite = await examine(real.tflite.read_bytes())
    check_variants(["onnx-fp32", "tflite-fp32"], [onnx, tflite])
    assert tflite.found.inputs == onnx.found.inputs == (Tensor("serving_default_input_2:0", "float32", (None, 43844, 1)),)
    assert (tflite.found.engine.min_runtime_version, tflite.found.engine.min_version) == ("2.2.0", "1.0")
    with np.load(io.BytesIO(onnx_output)) as ours, np.load(io.BytesIO(examine.golden[1])) as theirs:
        assert set(ours.files) == set(theirs.files)
        for name in ours.files:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)
