"""The extra `ort`: the ONNX file, and the same once more as the runtime that wrote it loads it fastest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from services.packager.answer import Answer
from services.packager.declaration import File, Variant
from services.packager.domain import Engine, Found
from services.packager.errors import ModelRejected, Reason
from services.packager.packing import _check_runtime
from tests import models as m
from tests.packager.converting import Converted, arrays, convert, to
from tests.packager.running import Packaging


@pytest.fixture(scope="module")
def made() -> Converted:
    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "source": {"files": [await one.put("model.onnx", m.onnx_grid_detector(3, 2, 4))]},
            "variants": [*to("onnx-fp32"), {"name": "fast", "convert": {"to": "ort"}, "required": True}],
        }

    return convert(declare)


def test_the_package_has_both_forms(made: Converted) -> None:
    assert made.job["state"] == "succeeded", made.job
    manifest, plain = made.manifests["fast"], made.manifests["onnx-fp32"]
    roles = {file["path"]: file["role"] for file in manifest["files"]}
    assert roles == {"model.onnx": "graph", "model.ort": "graph-ort", "golden/input.npz": "golden", "golden/output.npz": "golden"}
    assert manifest["engine"] == {**plain["engine"], "ort": {"path": "model.ort", "version": onnxruntime.__version__}}
    assert "ort" not in plain["engine"] and "model.ort" not in made.files["onnx-fp32"]
    assert made.files["fast"]["model.onnx"] == made.files["onnx-fp32"]["model.onnx"]
    assert manifest["lineage"]["steps"][-2] == {
        "tool": "onnxruntime", "version": onnxruntime.__version__, "options": {"format": "ort", "optimisation": "extended"},
    }  # fmt: skip
    assert manifest["lineage"]["source_sha256"] == plain["lineage"]["source_sha256"]
    assert made.row("fast")["parity"]["passed"]


def test_it_answers_like_the_golden_output(made: Converted) -> None:
    files = made.files["fast"]
    assert files["model.ort"][4:8] == b"ORTM"
    session = onnxruntime.InferenceSession(files["model.ort"], providers=["CPUExecutionProvider"])
    golden = arrays(files["golden/output.npz"])
    for output, answer in zip(session.get_outputs(), session.run(None, arrays(files["golden/input.npz"])), strict=True):
        assert np.allclose(answer, golden[output.name], rtol=1e-4, atol=1e-5)


def test_a_server_with_another_runtime_cannot_check_it() -> None:
    file = File("model.ort", "0" * 64, 1, "graph-ort")
    variant = Variant("ort", File("model.onnx", "1" * 64, 1, "graph"), (), ort=file, ort_version="1.31.0")
    answer = Answer(Found("onnx", Engine("onnxruntime", "1.10", ()), (), (), "fp32"), 0.1, 0.1, 64, "1.32.0", ())
    with pytest.raises(ModelRejected) as caught:
        _check_runtime(variant, answer)
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert "1.31.0" in caught.value.detail and "1.32.0" in caught.value.detail
