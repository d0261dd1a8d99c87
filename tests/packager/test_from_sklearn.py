"""scikit-learn, XGBoost and LightGBM to ONNX, in real children of the environment `sk`: equal answers, and nothing that runs code."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from services.packager.converters import Refusal
from services.packager.converters.sk_types import check_types
from services.packager.errors import ModelRejected, Reason
from services.packager.formats import onnx
from services.packager.sandbox import Sandbox
from tests.packager.converting import arrays, npz

#: One of each kind of answer; a child of this environment needs seconds of its own.
MODELS = ["logistic.skops", "pca.skops", "digits.json", "even.ubj", "digits.txt", "bmi.txt"]


async def convert(sandbox: Sandbox, data: bytes, **job: Any) -> tuple[dict[str, Any], bytes, dict[str, Any], dict[str, Any]]:
    """The lineage step of the conversion, the ONNX file, and the rows with the source's answers."""
    async with sandbox.workspace() as workspace:
        workspace.path("0").write_bytes(data)
        wish = {"model": "in/0", "opset": 15, "names": {}, "range": None, "samples": None, **job}
        result = await sandbox.convert(workspace, "sk_to_onnx", wish, lambda step: None, lambda line: None, seconds=300)
        taken = [workspace.take(name, name, 2**28).read_bytes() for name in ("converted.onnx", "samples.npz", "reference.npz")]
    files = [arrays(one) for one in taken[1:]]
    return result["made"]["converted.onnx"][-1], taken[0], files[0], files[1]


@pytest.mark.parametrize("name", MODELS)
async def test_the_onnx_file_answers_like_the_source(sandbox: Sandbox, trained: Path, name: str) -> None:
    """Run again here, by the engine of devices, on the rows that the source answered."""
    how, model, samples, expected = await convert(sandbox, (trained / name).read_bytes())
    assert how["options"] == {"source": {"skops": "skops", "txt": "lightgbm"}.get(name.rpartition(".")[2], "xgboost"), "opset": 15}
    found = onnx.read(model, "1.32")  # the reader that every upload goes through takes it
    assert [tensor.name for tensor in found.inputs] == ["features"]
    assert found.engine.ir_version <= 8 and found.engine.opset[""] <= 15
    session = onnxruntime.InferenceSession(model)
    rows = samples["features"]
    actual = dict(zip((one.name for one in session.get_outputs()), session.run(None, {"features": rows[:, 0]}), strict=True))
    assert expected and len(rows) == 64
    for output, source in expected.items():
        given, wanted = (np.asarray(array, np.float64).reshape(-1) for array in (actual[output], source))
        assert np.max(np.abs(given - wanted) / np.maximum(1, np.abs(wanted))) <= 1e-4, output
    one = session.run(None, {"features": rows[0]})  # the batch is open
    assert all(np.asarray(array).shape[0] == 1 for array in one)


async def test_the_owners_rows_and_names_are_taken(sandbox: Sandbox, trained: Path) -> None:
    rows = np.random.default_rng(3).normal(size=(5, 10)).astype(np.float32)
    async with sandbox.workspace() as workspace:
        workspace.path("0").write_bytes((trained / "ridge.skops").read_bytes())
        workspace.path("1").write_bytes(npz(body=rows))
        names = {"body": "features", "progress": "variable"}
        wish = {"model": "in/0", "opset": 15, "names": names, "range": [0, 1], "samples": "in/1"}
        await sandbox.convert(workspace, "sk_to_onnx", wish, lambda step: None, lambda line: None, seconds=300)
        samples, reference = (arrays(workspace.take(name, name, 2**28).read_bytes()) for name in ("samples.npz", "reference.npz"))
    assert samples.keys() == {"body"} and reference.keys() == {"progress"}
    assert np.array_equal(samples["body"][64:, 0], rows)
    assert samples["body"][:64].min() >= 0 and samples["body"][:64].max() <= 1


async def refusal(sandbox: Sandbox, data: bytes, **job: Any) -> ModelRejected:
    with pytest.raises(ModelRejected) as caught:
        await convert(sandbox, data, **job)
    return caught.value


def refused_here(data: bytes, folder: Path) -> Refusal:
    """The check of types by itself, which needs nothing but the standard library."""
    path = folder / "model.skops"
    path.write_bytes(data)
    with pytest.raises(Refusal) as caught:
        check_types(path)
    return caught.value


async def test_functions_in_a_skops_file_are_refused_by_name(sandbox: Sandbox, trained: Path) -> None:
    for name, word in (("function.refused", "log1p"), ("partial.refused", "partial")):
        rejected = await refusal(sandbox, (trained / name).read_bytes())
        assert rejected.reason is Reason.TYPE_NOT_ALLOWED
        assert word in rejected.detail and "skl2onnx" in rejected.detail


def test_every_model_of_the_test_passes_the_list(trained: Path) -> None:
    for path in trained.glob("*.skops"):
        assert check_types(path)


#: What a schema may not say: (module, class, loader).
EVIL = [
    ("os", "system", "FunctionNode"),
    ("builtins", "eval", "FunctionNode"),
    ("builtins", "exec", "TypeNode"),
    ("subprocess", "Popen", "ObjectNode"),
    ("sklearn.linear_model._ridge", "Ridge", "MethodNode"),
    ("sklearn.linear_model._ridge", "Ridge", "ReduceNode"),
    ("operator", "methodcaller", "OperatorFuncNode"),
    ("functools", "partial", "PartialNode"),
    ("sklearn.os", "system", "ObjectNode"),
    ("sklearn_evil", "Ridge", "ObjectNode"),
    ("os", "Ridge", "ObjectNode"),
    ("numpy", "load", "FunctionNode"),
    ("joblib", "load", "FunctionNode"),
    ("builtins", "dict", "UnknownNode"),
]


def with_schema(source: bytes, schema: Any) -> bytes:
    """A skops file with another schema."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(buffer, "w") as made:
        for name in old.namelist():
            made.writestr(name, json.dumps(schema) if name == "schema.json" else old.read(name))
    return buffer.getvalue()


def test_what_a_schema_may_not_name_is_refused_wherever_it_hides(trained: Path, tmp_path: Path) -> None:
    """As the whole, in an attribute, in a list, in a type."""
    source = (trained / "ridge.skops").read_bytes()
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        good = json.loads(archive.read("schema.json"))
    for module, name, loader in EVIL:
        evil = {"__module__": module, "__class__": name, "__loader__": loader, "__id__": 1, "content": {"function": "os.system"}}
        for schema in (evil, {**good, "content": {**good["content"], "evil": evil}}, {**good, "content": [{"x": [evil]}]}):
            assert refused_here(with_schema(source, schema), tmp_path).reason == "TYPE_NOT_ALLOWED", (module, name)
    assert refused_here(with_schema(source, {"__module__": 1, "__class__": "x"}), tmp_path).reason == "MODEL_MALFORMED"
    assert refused_here(source[:-40], tmp_path).reason == "MODEL_MALFORMED"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", bytes(65 << 20))
    assert refused_here(bomb.getvalue(), tmp_path).reason == "ARCHIVE_TOO_LARGE"


async def test_other_files_are_refused_with_the_way_out(sandbox: Sandbox, trained: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, ("touch /tmp/latebind-pickle-was-here",))

    for data, reason in (
        (pickle.dumps(Evil()), Reason.MODEL_NOT_RECOGNISED),
        (b"hello", Reason.MODEL_NOT_RECOGNISED),
        (b'{"learner": {}}', Reason.MODEL_MALFORMED),
        (b"tree\nversion=v4\nrubbish", Reason.MODEL_MALFORMED),
    ):
        rejected = await refusal(sandbox, data)
        assert rejected.reason is reason, data[:30]
    assert not Path("/tmp/latebind-pickle-was-here").exists()
