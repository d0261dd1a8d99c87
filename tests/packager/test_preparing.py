"""Packed sources and classical models go all the way to packages, and what is refused of them ends the job with its code."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.models import external_weights, onnx_with_external_data
from tests.packager.archives import tar_member, tarred, zip_entry, zip_of, zipped
from tests.packager.converting import Converted, arrays, convert, npz, to
from tests.packager.running import Packaging


def packaged(name: str, data: bytes, **more: Any) -> Converted:
    async def declare(one: Packaging) -> dict[str, Any]:
        said = {"source": {"files": [await one.put(name, data)]}, "variants": to("onnx-fp32")}
        said |= {key: await one.put(key, value) if isinstance(value, bytes) else value for key, value in more.items()}
        return said

    return convert(declare)


_MODEL = {"m/model.onnx": onnx_with_external_data("w.bin"), "m/w.bin": external_weights(), "m/README.txt": b"x"}


@pytest.mark.parametrize(("name", "data"), [("model.zip", zipped(_MODEL)), ("model.tar", tarred(_MODEL))])
def test_a_packed_model_with_its_data_becomes_a_package(name: str, data: bytes) -> None:
    done = packaged(name, data)
    assert done.job["state"] == "succeeded", done.job
    golden = done.files["onnx-fp32"]
    answered = arrays(golden["golden/output.npz"])["y"]
    assert np.allclose(answered, arrays(golden["golden/input.npz"])["x"] + np.arange(4, dtype=np.float32), atol=1e-5)
    assert done.row("onnx-fp32")["parity"]["passed"]


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("model.zip", zip_of(zip_entry(b"../model.onnx")), "ARCHIVE_REFUSED"),
        ("model.tgz", gzip.compress(tar_member(b"model.onnx", b"", b"2", b"/etc/passwd") + bytes(1024)), "ARCHIVE_REFUSED"),
        ("model.zip", zip_of(zip_entry(b"model.onnx"))[:-9], "ARCHIVE_INVALID"),
        ("model.tar.gz", gzip.compress(tarred({"model.onnx": bytes(30 << 20)})), "ARCHIVE_TOO_LARGE"),
    ],
    ids=["outside", "link", "cut", "bomb"],
)
def test_hostile_archives_end_the_job_with_their_reason(name: str, data: bytes, code: str) -> None:
    done = packaged(name, data)
    assert (done.job["state"], done.job["problem"]["code"]) == ("failed", code), done.job


@pytest.mark.parametrize(
    ("name", "tools"),
    [
        ("logistic.skops", ["scikit-learn", "skops", "skl2onnx"]),
        ("bmi.json", ["xgboost-cpu", "onnxmltools"]),
        ("digits.txt", ["lightgbm", "onnxmltools"]),
    ],
)
def test_a_classical_model_becomes_a_package_that_answers_like_its_source(trained: Path, name: str, tools: list[str]) -> None:
    done = packaged(name, (trained / name).read_bytes())
    assert done.job["state"] == "succeeded", done.job
    manifest, row = done.manifests["onnx-fp32"], done.row("onnx-fp32")
    (tensor,) = manifest["inputs"]
    assert (tensor["name"], tensor["dtype"]) == ("features", "float32")
    assert [step["tool"] for step in manifest["lineage"]["steps"]][: len(tools)] == tools
    assert all(step["version"] for step in manifest["lineage"]["steps"])
    # 64 rows were answered by scikit-learn, XGBoost or LightGBM itself.
    assert row["parity"]["passed"] and row["parity"]["samples"] == 64
    assert {one["name"] for one in row["parity"]["outputs"]} == {one["name"] for one in manifest["outputs"]}
    session = onnxruntime.InferenceSession(done.files["onnx-fp32"]["model.onnx"])
    assert session.run(None, arrays(done.files["onnx-fp32"]["golden/input.npz"]))


def test_a_classical_model_has_the_owners_names_and_rows(trained: Path) -> None:
    rows = np.random.default_rng(3).uniform(0, 16, (5, 64)).astype(np.float32)

    async def declare(one: Packaging) -> dict[str, Any]:
        files = [await one.put("even.ubj", (trained / "even.ubj").read_bytes())]
        return {
            "source": {"files": files, "names": {"pixels": "features", "likely": "probabilities"}},
            "variants": to("onnx-fp32", "tflite-fp32"),
            "inputs": [{"name": "pixels", "dtype": "float32", "shape": [None, 64], "range": [0, 16]}],
            "calibration": await one.put("samples.npz", npz(pixels=rows)),
        }

    done = convert(declare)
    assert list(done.manifests) == ["onnx-fp32"], done.job
    assert {one["name"] for one in done.manifests["onnx-fp32"]["outputs"]} == {"label", "likely"}
    assert done.row("onnx-fp32")["parity"]["samples"] == 64 + 5
    assert done.row("tflite-fp32")["problem"]["code"] == "CONVERSION_FAILED"


@pytest.mark.parametrize(("name", "code"), [("function.refused", "TYPE_NOT_ALLOWED"), ("partial.refused", "TYPE_NOT_ALLOWED")])
def test_a_skops_file_with_a_function_ends_the_job_with_its_reason(trained: Path, name: str, code: str) -> None:
    done = packaged("model.skops", (trained / name).read_bytes())
    assert (done.job["state"], done.job["problem"]["code"]) == ("failed", code)
    assert "skl2onnx" in done.job["problem"]["detail"]
