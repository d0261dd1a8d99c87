"""Models that only run on values that belong together: their owner gives the golden input, and it goes into the package."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from services.packager.errors import ModelRejected, Reason
from tests import models as m
from tests.packager.conftest import Examiner
from tests.packager.converting import Converted, arrays, convert, npz, to
from tests.packager.running import Packaging

X = np.arange(6, dtype=np.float32).reshape(2, 3)
SIZES = np.array([3, 2], np.int64)


def reshape(columns: int = 2) -> bytes:
    """`y` is `x` in the shape that `sizes` says, which must have as many elements."""
    return bytes(
        m.OnnxModel(
            [m.onnx_node("Reshape", ["x", "sizes"], ["y"])],
            [m.onnx_value("x", "float32", [2, 3]), m.onnx_value("sizes", "int64", [2])],
            [m.onnx_value("y", "float32", [None, columns])],
        )
    )


async def test_the_refusal_says_the_way_out_and_it_is_one(examine: Examiner) -> None:
    with pytest.raises(ModelRejected) as caught:
        await examine(reshape())
    assert caught.value.reason is Reason.OUTPUT_MISMATCH and "golden.input" in caught.value.detail
    answer = await examine(reshape(), golden_input=npz(x=X[None], sizes=SIZES[None]))
    assert [tensor.shape for tensor in answer.found.outputs] == [(None, 2)]
    given, golden = (arrays(body) for body in examine.golden)
    assert np.array_equal(given["x"], X) and np.array_equal(given["sizes"], SIZES) and np.array_equal(golden["y"], X.reshape(3, 2))


@pytest.mark.parametrize(
    ("given", "reason", "words"),
    [
        (npz(x=X[None]), Reason.SAMPLES_INVALID, '"sizes"'),
        (npz(x=X[None, :, :2], sizes=SIZES[None]), Reason.SAMPLES_INVALID, "[2, 2]"),
        (npz(x=X[None], sizes=SIZES[None], z=SIZES), Reason.SAMPLES_INVALID, '"z"'),
        (b"no archive", Reason.SAMPLES_INVALID, "npz"),
        (npz(x=X[None], sizes=np.array([[5, 5]])), Reason.MODEL_RUN_FAILED, "sizes int64 [2]"),
        (npz(x=X[None], sizes=np.array([[2, 3]])), Reason.OUTPUT_MISMATCH, "[2, 3]"),
        (npz(x=np.full_like(X[None], np.inf), sizes=SIZES[None]), Reason.MODEL_OUTPUT_NOT_FINITE, '"y"'),
    ],
)
async def test_one_that_does_not_fit_is_refused(examine: Examiner, given: bytes, reason: Reason, words: str) -> None:
    with pytest.raises(ModelRejected) as caught:
        await examine(reshape(), golden_input=given)
    assert caught.value.reason is reason and words in caught.value.detail and "golden.input" not in caught.value.detail


def pushed(given: bytes) -> Converted:
    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "variants": [{"name": "ready", "files": [await one.put("model.onnx", reshape())]}, *to("onnx-fp32")],
            "source": {"files": [await one.put("model.onnx", reshape())]},
            "golden": {"input": await one.put("sample.npz", given), "rtol": 0.5},
        }

    return convert(declare)


def test_a_version_has_it_in_every_package_and_is_compared_on_it() -> None:
    made = pushed(npz(x=X[None], sizes=SIZES[None]))
    assert made.job["state"] == "succeeded", made.job
    for variant in ("ready", "onnx-fp32"):
        assert np.array_equal(arrays(made.files[variant]["golden/input.npz"])["x"], X)
        assert made.manifests[variant]["golden"]["rtol"] == 0.5
        # The file as it was uploaded is in no package.
        assert "sample.npz" not in json.dumps(made.manifests[variant]["files"])
    parity = made.row("onnx-fp32")["parity"]
    assert parity["passed"] and parity["samples"] == 1
