"""What model files say of themselves, and that damaged ones end in one error and nothing else."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest

from latebind._modelfiles import MAX_ASSOCIATED_BYTES, ModelFacts, Unreadable, is_plain, read_model
from tests.models import OnnxModel, blob, onnx_add, onnx_graph, onnx_node, onnx_tensor, onnx_value, onnx_with_external_data, tflite_add
from tests.real_models import basic_pitch


def entry(key: str, value: str) -> bytes:
    return blob(14, blob(1, key) + blob(2, value))


def facts(folder: Path, data: bytes, name: str = "model.onnx") -> ModelFacts:
    path = folder / name
    path.write_bytes(data)
    return read_model(path)


def with_files(model: bytes, files: dict[str, bytes]) -> bytes:
    """A TFLite model with associated files: a ZIP behind it, as the metadata library writes it."""
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_onnx(tmp_path: Path) -> None:
    model = onnx_add() + blob(6, "Adds one.\nSlowly.") + entry("stride", "32") + entry("license", "MIT") + entry("empty", "")
    found = facts(tmp_path, model)
    assert (found.description, found.inputs, found.outputs, found.data) == ("Adds one.\nSlowly.", ["x"], ["y"], [])
    assert found.metadata == {"stride": "32", "license": "MIT", "empty": ""}
    assert facts(tmp_path, onnx_with_external_data("weights.bin")).data == ["weights.bin"]


def test_an_initializer_that_is_listed_as_input_is_none(tmp_path: Path) -> None:
    import numpy as np

    model = OnnxModel(
        [onnx_node("Add", ["x", "c"], ["y"])],
        [onnx_value("x", "float32", [1]), onnx_value("c", "float32", [1])],
        [onnx_value("y", "float32", [1])],
        [onnx_tensor("c", np.zeros(1, np.float32))],
    )
    assert facts(tmp_path, bytes(model)).inputs == ["x"]


def test_external_data_of_constants_in_nested_graphs_is_found(tmp_path: Path) -> None:
    from tests.models import onnx_external

    inner = onnx_external("w", "float32", [1], {"location": "inner.bin"})
    node = onnx_node("Constant", [], ["c"]) + blob(5, blob(1, "value") + blob(5, inner))
    branch = onnx_graph([node], [], [onnx_value("c", "float32", [1])], [])
    choice = onnx_node("If", ["x"], ["y"]) + blob(5, blob(1, "then_branch") + blob(6, branch))
    model = OnnxModel([choice], [onnx_value("x", "bool", [1])], [onnx_value("y", "float32", [1])], [])
    assert facts(tmp_path, bytes(model)).data == ["inner.bin"]


def test_tflite_with_metadata_and_files(tmp_path: Path) -> None:
    model = tflite_add(metadata={0: "adder", 1: "adds one", 2: "v3", 4: "acme", 5: "Apache-2.0"})
    found = facts(tmp_path, with_files(model, {"labels.txt": b"cat\ndog\n", "../evil.txt": b"x", "a/b.txt": b"x"}), "model.tflite")
    assert found.description == "adds one"
    assert found.metadata == {"name": "adder", "version": "v3", "author": "acme", "license": "Apache-2.0"}
    assert (found.inputs, found.outputs) == (["x"], ["y"])
    assert found.associated == {"labels.txt": b"cat\ndog\n"}  # the others have no plain names
    assert facts(tmp_path, tflite_add(), "plain.tflite").metadata == {}


def test_a_bomb_inside_of_a_tflite_file_is_stopped(tmp_path: Path) -> None:
    bomb = with_files(tflite_add(), {"zeros.bin": bytes(MAX_ASSOCIATED_BYTES + 1)})
    assert len(bomb) < 100_000
    with pytest.raises(Unreadable, match="larger than"):
        facts(tmp_path, bomb, "model.tflite")


def test_real_models() -> None:
    model = basic_pitch()
    for path in (model.onnx, model.tflite):
        found = read_model(path)
        assert (len(found.inputs), len(found.outputs)) == (1, 3)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_damaged_files_end_in_one_error(tmp_path: Path, name: str) -> None:
    """400 mutants and every truncation of a small model: read or refused, never anything else."""
    good = onnx_add() + entry("a", "b") if name == "model.onnx" else with_files(tflite_add(metadata={1: "x"}), {"labels.txt": b"x"})
    rng = random.Random(name)
    refused = 0
    for number in range(400 + len(good)):
        data = bytearray(good)
        if number < 400:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        else:
            del data[number - 400 :]
        try:
            found = facts(tmp_path, bytes(data), name)
        except Unreadable:
            refused += 1
        else:
            assert all(is_plain(one) for one in found.associated)
    assert refused > 100


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a.", "a/b", "a\\b", "a\0", "ä", "x" * 129, "CON:"])
def test_names_that_are_not_plain(name: str) -> None:
    assert not is_plain(name)
