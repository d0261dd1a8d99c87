"""What a push of a source says, from flags and from latebind.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latebind._declaration import DeclarationInvalid, LocalSource, Push, WantedVariant, parse_wanted, read_document
from latebind.cli._errors import CommandError
from latebind.cli.main import app
from latebind.cli.push import _base, _evaluation, _wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "saved_model" / "variables").mkdir(parents=True)
    for name in ("saved_model/saved_model.pb", "saved_model/variables/variables.index", "samples.npz", "test.npz", "frozen.pb", "w.bin"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def declared(push: Push) -> dict[str, Any]:
    return push.declaration({path: (f"sha-{path.name}", path.stat().st_size) for path in push.sources})


def test_a_folder_keeps_its_relative_paths(folder: Path) -> None:
    source = LocalSource.at(folder / "saved_model")
    assert [file.path for file in source.files] == ["saved_model.pb", "variables/variables.index"]
    assert [file.path for file in LocalSource.at(folder / "frozen.pb", folder / "w.bin").files] == ["frozen.pb", "w.bin"]
    for paths in ((folder / "saved_model", folder / "w.bin"), (folder / "nothing",), (folder / "frozen.pb", folder / "nothing")):
        with pytest.raises(DeclarationInvalid):
            LocalSource.at(*paths)
    (folder / "empty").mkdir()
    with pytest.raises(DeclarationInvalid, match="is empty"):
        LocalSource.at(folder / "empty")


def test_flags(folder: Path) -> None:
    wanted = _wanted("onnx-fp32, small=onnx-int8,tflite-fp32", "small", "modern")
    assert wanted == (
        WantedVariant("onnx-fp32", None, "modern"),
        WantedVariant("onnx-int8", "small", "modern", required=True),
        WantedVariant("tflite-fp32"),
    )
    evaluation = _evaluation(None, folder / "test.npz", 0.95, None)
    push = Push("digits", wanted, source=LocalSource.at(folder / "saved_model"), evaluation=evaluation)
    said = declared(push)
    assert said["variants"] == [
        {"convert": {"to": "onnx-fp32", "profile": "modern"}},
        {"name": "small", "convert": {"to": "onnx-int8", "profile": "modern"}, "required": True},
        {"convert": {"to": "tflite-fp32"}},
    ]
    assert [file["path"] for file in said["source"]["files"]] == ["saved_model.pb", "variables/variables.index"]
    assert said["evaluation"] == {"file": {"path": "test.npz", "sha256": "sha-test.npz", "size": 8}, "min_accuracy": 0.95}


@pytest.mark.parametrize(
    ("variants", "required", "profile"), [("onnx-fp64", None, None), ("onnx-fp32", "onnx-int8", None), ("onnx-fp32", None, "old")]
)
def test_flags_that_say_nothing(variants: str, required: str | None, profile: str | None) -> None:
    with pytest.raises((DeclarationInvalid, CommandError)):
        _wanted(variants, required, profile)
    with pytest.raises(CommandError):
        _evaluation(None, None, 0.9, None)


def test_a_file(folder: Path) -> None:
    document = {
        "model": "digits",
        "source": {"path": "frozen.pb", "names": {"image": "Placeholder:0"}},
        "variants": ["onnx-fp32", {"convert": "onnx-int8", "profile": "modern", "required": True, "slim": False}],
        "calibration": "samples.npz",
        "evaluation": {"path": "test.npz", "min_accuracy": 0.9, "output": "p"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 8], "range": [0, 1]}],
    }
    said = declared(read_document(document, folder))
    assert said["source"] == {"files": [{"path": "frozen.pb", "sha256": "sha-frozen.pb", "size": 9}], "names": {"image": "Placeholder:0"}}
    assert said["variants"][1] == {"convert": {"to": "onnx-int8", "profile": "modern", "slim": False}, "required": True}
    assert said["calibration"]["path"] == "samples.npz"
    assert said["evaluation"]["output"] == "p" and said["evaluation"]["min_accuracy"] == 0.9
    assert said["inputs"][0]["range"] == [0, 1]
    given = declared(read_document({**document, "golden": {"input": "test.npz", "rtol": 0.1}}, folder))
    assert given["golden"] == {"input": {"path": "test.npz", "sha256": "sha-test.npz", "size": 8}, "rtol": 0.1}
    for wrong in ({"source": 5}, {"source": {"file": "x"}}, {"variants": [{"convert": "x"}]}, {"evaluation": {"min_accuracy": 1}}):
        with pytest.raises(DeclarationInvalid):
            read_document({**document, **wrong}, folder)


@pytest.mark.parametrize("name", ["saved_model", "frozen.pb", "model.skops", "packed.tar.gz", "xgboost.json", "lightgbm.txt"])
def test_a_source_that_runs_nowhere_needs_variants(folder: Path, name: str) -> None:
    with pytest.raises(CommandError, match="say what to make of it") as caught:
        app(["push", str(folder / name), "--model", "m"], standalone_mode=False)
    assert caught.value.hint is not None and "--variants" in caught.value.hint
    assert ("--aux" in caught.value.hint) == name.endswith((".json", ".txt"))


def test_a_saved_model_folder_is_a_source_and_a_folder_with_a_file_is_not(folder: Path) -> None:
    assert _base([folder / "saved_model"]) == (Push("", ()), [folder / "saved_model"])
    (folder / "latebind.yaml").write_text("model: m\nsource: saved_model\nvariants: [tflite-fp32]\n")
    base, rest = _base([folder])
    assert (base.variants, rest) == ((parse_wanted("tflite-fp32"),), [])
    assert base.source is not None and len(base.source.files) == 2
