"""What a source is told to be: by content, with names that apps can use, or a refusal with the way out. No child and no TensorFlow."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from services.packager.domain import Port, Source, Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.formats.source import read_source
from tests import models as m
from tests.packager.test_tensorflow import node, part
from tests.real_models import basic_pitch

IMAGE = Tensor("image", "float32", (1, 8, 8, 3))
GRID = Tensor("grid", "float32", (1, 2, 2, 4))


def read(folder: Path, files: dict[str, bytes], **more: Any) -> Source:
    places = {}
    for number, (path, body) in enumerate(files.items()):
        places[path] = folder / str(number)
        places[path].write_bytes(body)
    options = {"names": {}, "inputs": None, "outputs": None, **more}
    return read_source(places, options["names"], options["inputs"], options["outputs"], lambda name: "1.0")[1]


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


class Estimator:
    """Pickles under a name that tells where it would come from."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (print, ("sklearn.linear_model",))


@pytest.mark.parametrize(
    ("body", "what", "way_out"),
    [
        (archive("metadata.json", "config.json", "model.weights.h5"), "Keras .keras file", "model.export"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5", "model.export"),
        (archive("m/constants.pkl", "m/code/__torch__.py"), "TorchScript", "torch.onnx.export"),
        (archive("m/data.pkl", "m/data/0"), "PyTorch checkpoint", "torch.onnx.export"),
        *((pickle.dumps(Estimator(), protocol), "pickle or joblib file of scikit-learn", "skl2onnx") for protocol in range(2, 6)),
        (pickle.dumps({"a": print}, 0), "Python pickle", "ONNX"),
        (zlib.compress(pickle.dumps(Estimator())), "compressed", "skl2onnx"),
    ],
)
def test_formats_that_run_code_are_refused_with_the_way_out(tmp_path: Path, body: bytes, what: str, way_out: str) -> None:
    for name in ("model.onnx", "model.pb", "model"):
        with pytest.raises(ModelRejected) as caught:
            read(tmp_path, {name: body})
        assert caught.value.reason is Reason.MODEL_FORMAT_REFUSED
        assert what in caught.value.detail and way_out in caught.value.detail


@pytest.mark.parametrize("body", [b"", b"hello", bytes(200), b"\x08\x07", archive("readme.txt")])
def test_what_is_nothing_is_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(ModelRejected) as caught:
        read(tmp_path, {"model.onnx": body})
    assert caught.value.reason in {Reason.MODEL_NOT_RECOGNISED, Reason.MODEL_TRUNCATED, Reason.MODEL_MALFORMED}


GRAPH = b"".join(
    part(1, one)
    for one in (node("image", "Placeholder"), node("conv", "Relu", "image"), node("grid", "Identity", "conv"), node("x", "Relu", "conv"))
)


def test_a_graphdef_has_the_declared_ends(tmp_path: Path) -> None:
    source = read(tmp_path, {"frozen.pb": GRAPH}, inputs=(IMAGE,), outputs=(GRID,))
    assert source == Source("graphdef", (Port("image", IMAGE),), (Port("grid", GRID),), {})
    named = read(tmp_path, {"frozen.pb": GRAPH}, inputs=(IMAGE,), outputs=(GRID,), names={"grid": "x:0"})
    assert named.outputs == (Port("x:0", GRID),)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(None, None), ((IMAGE,), None), ((Tensor("nothing", "float32", (1,)),), (GRID,)), ((IMAGE,), (Tensor("no", "float32", (1,)),))],
)
def test_a_graphdef_without_its_ends_offers_candidates(tmp_path: Path, inputs: Any, outputs: Any) -> None:
    with pytest.raises(ModelRejected) as caught:
        read(tmp_path, {"frozen.pb": GRAPH}, inputs=inputs, outputs=outputs)
    assert caught.value.reason is Reason.GRAPH_NODES_NEEDED
    assert "Inputs could be: 'image'; outputs: 'grid', 'x'" in caught.value.detail


def test_an_operator_of_a_graphdef_that_is_not_allowed(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected) as caught:
        read(tmp_path, {"frozen.pb": GRAPH + part(1, node("file", "ReadFile"))}, inputs=(IMAGE,), outputs=(GRID,))
    assert (caught.value.reason, "ReadFile" in caught.value.detail) == (Reason.OPERATOR_NOT_ALLOWED, True)


def saved_model(**signatures: bytes) -> bytes:
    entries = b"".join(part(5, part(1, key) + part(2, body)) for key, body in signatures.items())
    return part(2, part(1, part(4, "serve")) + part(2, GRAPH) + entries)


def end(side: int, name: str, *sizes: int, dtype: int = 1) -> bytes:
    shape = b"".join(part(2, b"\x08" + (bytes([size]) if size >= 0 else b"\xff" * 9 + b"\x01")) for size in sizes)
    return part(side, part(1, name) + part(2, part(1, "some:0") + bytes([0x10, dtype]) + part(3, shape)))


def test_a_saved_model_is_called_as_its_signature_says(tmp_path: Path) -> None:
    body = saved_model(serving_default=end(1, "image", -1, 8, 8, 3) + end(2, "grid", -1, 2) + end(2, "boxes", -1, 4), other=end(2, "z", 1))
    source = read(tmp_path, {"m/saved_model.pb": body, "m/variables/variables.index": b"x"})
    assert (source.format, source.signature, source.tags) == ("saved-model", "serving_default", ("serve",))
    assert source.inputs == (Port("image", Tensor("image", "float32", (None, 8, 8, 3))),)
    assert [port.called for port in source.outputs] == ["boxes", "grid"]
    named = read(tmp_path, {"saved_model.pb": body}, names={"picture": "image"})
    assert named.inputs[0] == Port("image", Tensor("picture", "float32", (None, 8, 8, 3)))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (saved_model(), Reason.GRAPH_NODES_NEEDED),
        (saved_model(a=end(2, "y", 1), b=end(2, "y", 1)), Reason.GRAPH_NODES_NEEDED),
        (saved_model(serving_default=end(2, "y", 1, dtype=20)), Reason.TENSOR_NOT_SUPPORTED),
        (saved_model(serving_default=end(1, "x", 1) + end(2, "x", 1)), Reason.DECLARATION_INVALID),
        (saved_model(serving_default=end(2, "y", 1))[:-3], Reason.MODEL_TRUNCATED),
    ],
)
def test_a_saved_model_that_nobody_can_call(tmp_path: Path, body: bytes, reason: Reason) -> None:
    with pytest.raises(ModelRejected) as caught:
        read(tmp_path, {"saved_model.pb": body})
    assert caught.value.reason is reason, caught.value


def test_names_of_no_end_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected) as caught:
        read(tmp_path, {"m.onnx": m.onnx_add()}, names={"picture": "image"})
    assert caught.value.reason is Reason.GRAPH_NODES_NEEDED and '"x"' in caught.value.detail


def test_a_tflite_file_is_called_as_its_signature_says(tmp_path: Path) -> None:
    source = read(tmp_path, {"nmp.tflite": basic_pitch().tflite.read_bytes()})
    assert [(port.called, port.tensor.name) for port in (*source.inputs, *source.outputs)] == [
        ("serving_default_input_2:0", "input_2"),
        ("StatefulPartitionedCall:2", "onset"),
        ("StatefulPartitionedCall:1", "note"),
        ("StatefulPartitionedCall:0", "contour"),
    ]


def test_the_graph_among_several_files(tmp_path: Path) -> None:
    assert read(tmp_path, {"m.onnx": m.onnx_add(), "weights.bin": b"x"}).format == "onnx"
    with pytest.raises(ModelRejected, match="not clear which one"):
        read(tmp_path, {"a": m.onnx_add(), "b": b"x"})
