"""Sources that training produced become variants, and the gates hold them against the source: acceptance 1 and 2 of the packager."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.packager.archives import tarred
from tests.packager.converting import Converted, arrays, convert, npz, put_folder, to, train
from tests.packager.running import Packaging
from tests.real_models import basic_pitch

_ENDS = {"audio": "serving_default_input_2:0", "onset": "StatefulPartitionedCall:2", "note": "StatefulPartitionedCall:1",
         "contour": "StatefulPartitionedCall:0"}  # fmt: skip


# --- basic-pitch: one network, shipped in three forms ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def saved_model() -> Converted:
    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "source": {"files": await put_folder(one, basic_pitch().onnx.parent / "nmp"), "names": {"audio": "input_2"}},
            "variants": [*to("onnx-fp32", "tflite-fp32"), {"name": "onnx-18", "convert": {"to": "onnx-fp32", "profile": "modern"}}],
            "inputs": [{"name": "audio", "dtype": "float32", "shape": [None, 43844, 1], "range": [-1, 1]}],
        }

    return convert(declare)


@pytest.fixture(scope="session")
def tflite_file() -> Converted:
    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "source": {"files": [await one.put("nmp.tflite", basic_pitch().tflite.read_bytes())], "names": _ENDS},
            "variants": to("onnx-fp32", "tflite-fp32", "tflite-int8"),
        }

    return convert(declare)


@pytest.fixture(scope="session")
def onnx_file() -> Converted:
    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "source": {"files": [await one.put("nmp.onnx", basic_pitch().onnx.read_bytes())], "names": _ENDS},
            "variants": to("onnx-fp32", "onnx-int8", "tflite-fp32"),
        }

    return convert(declare)


def shipped(audio: Any) -> dict[str, Any]:
    """What the ONNX file that ships with basic-pitch says."""
    session = onnxruntime.InferenceSession(str(basic_pitch().onnx), providers=["CPUExecutionProvider"])
    names = {theirs: ours for ours, theirs in _ENDS.items()}
    outputs = session.run(None, {_ENDS["audio"]: audio})
    return {names[meta.name]: value for meta, value in zip(session.get_outputs(), outputs, strict=True)}


def agrees_with_shipped(converted: Converted, variant: str) -> float:
    """The largest difference between the golden output of a variant and the shipped ONNX on the golden input; and the parity report."""
    assert converted.row(variant)["state"] == "ready", converted.row(variant)
    files = converted.files[variant]
    golden, ours = arrays(files["golden/input.npz"]), arrays(files["golden/output.npz"])
    theirs = shipped(golden["audio"])
    assert ours.keys() == theirs.keys() == {"note", "onset", "contour"}
    worst = max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)
    parity = converted.row(variant)["parity"]
    assert parity["passed"] and parity["samples"] >= 4
    assert {output["name"] for output in parity["outputs"]} == theirs.keys()
    assert all(output["mean"] <= output["worst"] <= 1e-4 for output in parity["outputs"])
    return worst


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-18", "tflite-fp32"])
def test_basic_pitch_as_a_saved_model(saved_model: Converted, variant: str) -> None:
    assert agrees_with_shipped(saved_model, variant) < 1e-4


@pytest.mark.parametrize("variant", ["onnx-fp32", "tflite-fp32"])
def test_basic_pitch_as_a_tflite_file(tflite_file: Converted, variant: str) -> None:
    assert agrees_with_shipped(tflite_file, variant) < 1e-4


def test_basic_pitch_as_an_onnx_file(onnx_file: Converted) -> None:
    assert agrees_with_shipped(onnx_file, "onnx-fp32") < 1e-4
    assert onnx_file.row("onnx-int8")["state"] == "ready"  # without samples: dynamic
    assert onnx_file.manifests["onnx-int8"]["lineage"]["steps"][-2]["options"] == {"precision": "int8", "form": "dynamic"}


def test_all_variants_have_the_declared_names(saved_model: Converted, tflite_file: Converted, onnx_file: Converted) -> None:
    for converted in (saved_model, tflite_file, onnx_file):
        for manifest in converted.manifests.values():
            assert [one["name"] for one in manifest["inputs"]] == ["audio"]
            assert {one["name"] for one in manifest["outputs"]} == {"note", "onset", "contour"}


def test_a_package_says_what_it_was_made_of(saved_model: Converted) -> None:
    manifest = saved_model.manifests["onnx-fp32"]
    assert len(manifest["lineage"]["source_sha256"]) == 3
    steps = [(step["tool"], step["options"]) for step in manifest["lineage"]["steps"]]
    # This SavedModel is one that TensorFlow's new loader does not take.
    assert steps[:2] == [("tensorflow", {"freeze": "tf1"}), ("tf2onnx", {"opset": 15})]
    assert all(step["version"] for step in manifest["lineage"]["steps"])
    assert (steps[-1][0], steps[-1][1].keys()) == ("latebind-packager", {"sandbox"})
    portable, modern = (saved_model.manifests[name]["engine"] for name in ("onnx-fp32", "onnx-18"))
    assert portable["ir_version"] <= 8 and portable["opset"][""] == 15
    assert modern["ir_version"] <= 10 and modern["opset"][""] == 18
    assert saved_model.manifests["tflite-fp32"]["engine"]["min_runtime_version"]
    row = saved_model.row("onnx-fp32")
    assert row["structure"]["operators"]["ai.onnx"] > 10 and row["structure"]["bytes"] > 100_000
    assert row["speed"]["median_ms"] > 0 and row["speed"]["estimate"] and row["memory"]["peak_mb"] > 10


def test_what_a_source_cannot_become_fails_alone(tflite_file: Converted, onnx_file: Converted) -> None:
    for converted, variant in ((tflite_file, "tflite-int8"), (onnx_file, "tflite-fp32")):
        assert converted.job["state"] == "succeeded"
        row = converted.row(variant)
        assert (row["state"], row["problem"]["code"]) == ("failed", "CONVERSION_FAILED")
        assert "push the SavedModel or GraphDef it was made from" in row["problem"]["detail"]


# --- digits: what quantisation costs, by the owner's own measure --------------------------------------------------------------------


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A CNN trained here: its SavedModel, the training set, the test set."""
    folder = tmp_path_factory.mktemp("digits")
    train("sk", "digits_data.py", folder / "data.npz")
    data = arrays((folder / "data.npz").read_bytes())
    learnt, held_out = ({name: array[part] for name, array in data.items()} for part in (slice(0, 1200), slice(1200, None)))
    (folder / "train.npz").write_bytes(npz(**learnt))
    train("tf", "digits_model.py", folder / "train.npz", folder / "saved_model")
    return folder / "saved_model", learnt, held_out


@pytest.fixture(scope="session")
def quantised(digits: tuple[Path, dict[str, Any], dict[str, Any]]) -> Converted:
    folder, learnt, held_out = digits

    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "source": {"files": await put_folder(one, folder)},
            "variants": to("onnx-fp32", "onnx-int8", "onnx-fp16", "tflite-fp32", "tflite-int8"),
            "inputs": [{"name": "image", "dtype": "float32", "shape": [None, 8, 8, 1], "range": [0, 1]}],
            "calibration": await one.put("samples.npz", npz(image=learnt["image"][:200])),
            "evaluation": {"file": await one.put("test.npz", npz(**held_out)), "min_accuracy": 0.95},
        }

    return convert(declare)


@pytest.mark.parametrize("variant", ["onnx-int8", "tflite-int8", "onnx-fp16", "tflite-fp32"])
def test_less_precision_keeps_the_accuracy(quantised: Converted, variant: str) -> None:
    whole, made = quantised.row("onnx-fp32"), quantised.row(variant)
    assert (made["state"], whole["state"]) == ("ready", "ready"), made
    assert whole["accuracy"]["metric"] == "top-1" and whole["accuracy"]["samples"] == 597
    assert whole["accuracy"]["value"] > 0.95
    assert made["accuracy"]["value"] >= whole["accuracy"]["value"] - 0.01
    assert quantised.manifests["onnx-int8"]["engine"]["operators"].count("QuantizeLinear") == 1


def test_a_packed_saved_model_is_the_same_source(digits: tuple[Path, dict[str, Any], dict[str, Any]], quantised: Converted) -> None:
    folder, _, _ = digits
    files = {f"digits/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    async def declare(one: Packaging) -> dict[str, Any]:
        return {"source": {"files": [await one.put("digits.tar.gz", gzip.compress(tarred(files)))]}, "variants": to("onnx-fp32")}

    made = convert(declare)
    assert made.row("onnx-fp32")["parity"]["passed"]
    feed = arrays(quantised.files["onnx-fp32"]["golden/input.npz"])
    answers = [onnxruntime.InferenceSession(one.files["onnx-fp32"]["model.onnx"]).run(None, feed) for one in (made, quantised)]
    assert np.allclose(answers[0], answers[1], atol=1e-5)


def test_eight_bits_are_smaller(quantised: Converted) -> None:
    sizes = {name: quantised.row(name)["structure"]["bytes"] for name in ("onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8")}
    assert sizes["onnx-int8"] < sizes["onnx-fp32"] and sizes["tflite-int8"] < sizes["tflite-fp32"]


def test_a_calibration_set_of_noise_is_refused_with_numbers(
    digits: tuple[Path, dict[str, Any], dict[str, Any]], quantised: Converted
) -> None:
    _, _, held_out = digits
    graph = quantised.files["onnx-fp32"]["model.onnx"]
    noise = np.random.default_rng(5).normal(0, 400, (64, 8, 8, 1)).astype(np.float32)

    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "source": {"files": [await one.put("model.onnx", graph)]},
            "variants": to("onnx-fp32", "onnx-int8"),
            "calibration": await one.put("noise.npz", npz(image=noise)),
            "evaluation": {"file": await one.put("test.npz", npz(**held_out)), "min_accuracy": 0.95},
        }

    made = convert(declare)
    assert list(made.manifests) == ["onnx-fp32"]
    row = made.row("onnx-int8")
    assert (row["state"], row["problem"]["code"]) == ("failed", "ACCURACY_TOO_LOW")
    assert row["accuracy"]["value"] < 0.95 and not row["accuracy"]["passed"]
    assert f"is {row['accuracy']['value']:.4f}, but at least 0.9500 was asked for" in row["problem"]["detail"]


def test_a_required_variant_takes_the_version_with_it(quantised: Converted, digits: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, _, held_out = digits
    wrong = {"image": held_out["image"], "labels": (held_out["labels"] + 1) % 10}
    graph = quantised.files["onnx-fp32"]["model.onnx"]

    async def declare(one: Packaging) -> dict[str, Any]:
        return {
            "source": {"files": [await one.put("model.onnx", graph)]},
            "variants": [{"convert": {"to": "onnx-fp32"}, "required": True}],
            "evaluation": {"file": await one.put("test.npz", npz(**wrong)), "min_accuracy": 0.5},
        }

    made = convert(declare)
    assert (made.job["state"], made.job["problem"]["code"]) == ("failed", "ACCURACY_TOO_LOW")
    assert made.row("onnx-fp32")["accuracy"]["value"] < 0.1
