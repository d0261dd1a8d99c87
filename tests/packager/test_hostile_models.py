"""Malformed models through whole children: each is packaged or refused with a reason, within its limits, and nothing is left.

A quick share of SECURITY B1; the readers alone see many more cases in test_onnx.py and test_tflite.py.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from services.packager.errors import ModelRejected, Reason
from services.packager.sandbox import open_sandbox
from tests import models as m
from tests.packager.conftest import Examiner, environments
from tests.packager.fuzz import LIMITS, MOST_GROWTH, examine_all, resident
from tests.packager.malformed import hand_made, mutants

CASES = 300


def test_there_are_enough_classes() -> None:
    assert len(hand_made()) >= 60


async def test_malformed_models_end_as_packages_or_refusals(tmp_path: Path) -> None:
    """SEC-B1 in CI: every class made by hand once, and mutants."""
    models = list(itertools.islice(itertools.chain(hand_made().values(), mutants()), CASES))
    before = resident()
    async with open_sandbox(tmp_path / "scratch", LIMITS, environments()) as sandbox:
        ended = await examine_all(sandbox, models, str(tmp_path))
        assert sorted(entry.name.partition("-")[0] for entry in (tmp_path / "scratch").glob("*/*")) == ["lock", "warm"]
    assert ended.total() == CASES
    assert resident() - before <= MOST_GROWTH
    assert {"good", Reason.MODEL_TRUNCATED, Reason.MODEL_NOT_RECOGNISED, Reason.EXTERNAL_DATA_OUTSIDE} <= ended.keys(), ended


async def test_a_model_that_wants_a_terabyte_is_refused(examine: Examiner) -> None:
    shape = m.onnx_tensor("s", np.array([1 << 20, 1 << 20], np.int64))
    model = m.OnnxModel(
        [m.onnx_node("ConstantOfShape", ["s"], ["big"]), m.onnx_node("ReduceSum", ["big"], ["y"])],
        [],
        [m.onnx_value("y", "float32", [1, 1])],
        [shape],
    )
    with pytest.raises(ModelRejected) as caught:
        await examine(bytes(model))
    assert caught.value.reason in {Reason.CHILD_OUT_OF_MEMORY, Reason.MODEL_LOAD_FAILED, Reason.MODEL_RUN_FAILED}


async def test_inputs_too_large_to_make_are_refused_before_they_are_made(examine: Examiner) -> None:
    with pytest.raises(ModelRejected) as caught:
        await examine(m.onnx_add([1, 2**29]))
    assert caught.value.reason is Reason.TENSOR_TOO_LARGE


async def test_random_bytes_are_not_recognised(examine: Examiner) -> None:
    for data in (b"", b"\0" * 100, random.Random(1).randbytes(10_000), b"TFL3" * 100, b"    TFL3" + b"\xff" * 64):
        with pytest.raises(ModelRejected) as caught:
            await examine(data)
        assert caught.value.reason in {Reason.MODEL_NOT_RECOGNISED, Reason.MODEL_TRUNCATED, Reason.MODEL_MALFORMED}
