"""Malformed models through whole children: each is packaged or refused with a reason, within its limits, and nothing is left.

A quick share of SECURITY B1; the readers alone see many more cases in test_onnx.py and test_tflite.py.
"""

from __future__ import annotations

import asyncio
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from services.packager.errors import ModelRejected, Reason
from services.packager.sandbox import Limits, open_sandbox
from tests import models as m
from tests.packager.conftest import Examiner, environments

#: A mutant may well be a good model: a flipped bit in a weight is another weight.
CASES = 300


def mutants() -> list[bytes]:
    chance = random.Random(20261122)
    seeds = [
        m.onnx_add(),
        m.onnx_mlp(4, 4, 2),
        m.onnx_grid_detector(2, 1, 1, cell_pixels=2),
        m.tflite_add(4),
        m.tflite_add(8, signature=[-1, 8]),
    ]
    found = []
    for number in range(CASES):
        data = bytearray(seeds[number % len(seeds)])
        kind = number // len(seeds) % 4
        if kind == 0:
            del data[chance.randrange(len(data)) :]
        elif kind == 1:
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            place = chance.randrange(len(data))
            data[place:place] = chance.randbytes(chance.randint(1, 64))
        else:
            place = chance.randrange(max(1, len(data) - 4))
            struct.pack_into("<I", data, place, chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, chance.randrange(2**32)]))
        found.append(bytes(data))
    return found


async def test_mutants_end_as_packages_or_refusals(tmp_path: Path) -> None:
    reasons: dict[str, int] = {}
    async with open_sandbox(
        tmp_path / "scratch", Limits(seconds=20, memory_bytes=2 * 2**30, disk_bytes=32 * 2**20), environments()
    ) as sandbox:
        turn = asyncio.Semaphore(2)

        async def one(data: bytes) -> None:
            async with turn:
                try:
                    await Examiner(sandbox)(data, seconds=5)
                    reasons["good"] = reasons.get("good", 0) + 1
                except ModelRejected as rejected:
                    assert rejected.detail and str(tmp_path) not in rejected.detail
                    reasons[rejected.reason] = reasons.get(rejected.reason, 0) + 1

        await asyncio.gather(*(one(data) for data in mutants()))
        assert [entry.name for folder in (tmp_path / "scratch").iterdir() for entry in folder.iterdir()] == ["lock"]
    assert sum(reasons.values()) == CASES
    # Neither our own reader nor our own code may be what failed.
    assert reasons.get(Reason.CHILD_ANSWER_INVALID, 0) == 0, reasons
    assert {"good", Reason.MODEL_TRUNCATED, Reason.MODEL_NOT_RECOGNISED} <= reasons.keys(), reasons


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
