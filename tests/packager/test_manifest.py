"""Declarations in, manifests and statements out: the same bytes for the same inputs, and nothing unsound gets in."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.packager.answer import Answer
from services.packager.declaration import File, parse_declaration
from services.packager.domain import Engine, Found, Tensor, agree, check_tensors, merge
from services.packager.errors import ModelRejected, Reason
from services.packager.manifest import Identity, build_manifest, build_statement, check_variants, examination, variant_name

WHO = Identity("acme", "m", 7, "job_1", "2026-11-22T10:00:00Z")
GOOD: dict[str, Any] = {
    "variants": [{"name": "onnx-fp32", "files": [{"path": "model.onnx", "sha256": "a" * 64, "size": 123, "role": "graph"}]}],
    "files": [{"path": "labels/coco.txt", "sha256": "b" * 64, "size": 625}],
    "params": {"S": {"type": "int", "value": 13}, "labels": {"type": "file", "value": "labels/coco.txt"}},
    "inputs": [{"name": "image", "dtype": "float32", "shape": [1, None, "width", 3], "range": [0, 1]}],
    "outputs": [{"name": "grid", "dtype": "float32", "shape": [1, 13, 13, 125]}],
    "requires": {"ram_mb": 512, "abi": ["arm64-v8a"], "accelerators": ["npu"]},
    "golden": {"rtol": 0.01},
    "lineage": {"source_sha256": ["c" * 64], "steps": [{"tool": "tf2onnx", "version": "1.17.0", "options": {}}]},
    "notes": "first",
}

EXAMINED = examination("1.0", "strong")


def answer(**changes: Any) -> Answer:
    found = Found(
        "onnx",
        Engine("onnxruntime", "1.10", ("Conv",), 8, {"": 15}),
        (Tensor("image", "float32", (1, 416, 416, 3)),),
        (Tensor("grid", "float32", (1, 13, 13, 125)),),
        "fp32",
    )
    return Answer(**{"found": found, "rtol": 0.01, "atol": 0.001, "ram_mb": 64, "engine_version": "1.32.0", "notes": (), **changes})


def built(declaration: dict[str, Any]) -> dict[str, Any]:
    parsed = parse_declaration(json.dumps(declaration).encode())
    golden = [File(f"golden/{name}.npz", digit * 64, 10, "golden") for name, digit in (("input", "d"), ("output", "e"))]
    manifest = build_manifest(WHO, parsed, parsed.variants[0], answer(), golden_input=golden[0], golden_output=golden[1], examined=EXAMINED)
    assert manifest.digest == hashlib.sha256(manifest.body).hexdigest()
    whole: dict[str, Any] = json.loads(manifest.body)
    statement = json.loads(build_statement(WHO, manifest, "1.0", "strong"))
    assert [one["name"] for one in statement["subject"]] == ["manifest.json", *(one["path"] for one in whole["files"])]
    assert manifest.size == sum(one["size"] for one in whole["files"])
    return whole


def test_a_manifest_has_what_the_contract_says() -> None:
    whole = built(GOOD)
    assert [one["path"] for one in whole["files"]] == ["model.onnx", "golden/input.npz", "golden/output.npz", "labels/coco.txt"]
    assert [one["role"] for one in whole["files"]] == ["graph", "golden", "golden", "auxiliary"]
    assert whole["requires"] == GOOD["requires"]
    assert whole["lineage"] == {**GOOD["lineage"], "steps": [*GOOD["lineage"]["steps"], EXAMINED]}
    assert EXAMINED == {"tool": "latebind-packager", "version": "1.0", "options": {"sandbox": "strong"}}
    assert whole["params"] == GOOD["params"]
    assert whole["engine"] == {"name": "onnxruntime", "min_version": "1.10", "ir_version": 8, "opset": {"": 15}, "operators": ["Conv"]}


def test_what_is_left_out_is_filled_in() -> None:
    whole = built({"variants": [{"files": [{"path": "m.onnx", "sha256": "a" * 64, "size": 1}]}]})
    assert whole["variant"] == "onnx-fp32"
    assert whole["requires"] == {"ram_mb": 64}
    assert whole["lineage"] == {"source_sha256": ["a" * 64], "steps": [EXAMINED]}
    assert whole["params"] == {}


def change(path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(GOOD)
    place: Any = body
    *way, last = path.split(".")
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[int(last) if isinstance(place, list) else last] = value
    return body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("variants", []),
        ("variants", None),
        ("variants", "x"),
        ("variants.0.name", "No Spaces"),
        ("variants.0.files", []),
        ("variants.0.files.0.path", "../model.onnx"),
        ("variants.0.files.0.path", "/etc/passwd"),
        ("variants.0.files.0.path", "golden/model.onnx"),
        ("variants.0.files.0.path", "a//b"),
        ("variants.0.files.0.path", ""),
        ("variants.0.files.0.path", 3),
        ("variants.0.files.0.path", "x" * 400),
        ("variants.0.files.0.sha256", "A" * 64),
        ("variants.0.files.0.sha256", None),
        ("variants.0.files.0.size", -1),
        ("variants.0.files.0.size", True),
        ("variants.0.files.0.role", "auxiliary"),
        ("files.0.path", "model.onnx"),
        ("params.labels.value", "absent.txt"),
        ("params.labels.value", ["list"]),
        ("params.S.type", "decimal"),
        ("params.S", 13),
        ("inputs.0.dtype", "float"),
        ("inputs.0.dtype", []),
        ("inputs.0.shape", [0]),
        ("inputs.0.shape", [-1]),
        ("inputs.0.shape", [1.5]),
        ("inputs.0.shape", [True]),
        ("inputs.0.shape", ["a\n"]),
        ("inputs.0.range", [2, 1]),
        ("inputs.0.range", [float("nan"), 1]),
        ("inputs.0.name", ""),
        ("inputs", [{"name": "x", "dtype": "int8", "shape": []}] * 2),
        ("requires", {"gpu": True}),
        ("requires", {"ram_mb": "512"}),
        ("golden", {"rtol": -1}),
        ("golden", {"atol": "x"}),
        ("lineage", {"source_sha256": ["x"]}),
        ("lineage", {"steps": "x"}),
    ],
)
def test_a_wrong_declaration_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ModelRejected) as caught:
        parse_declaration(json.dumps(change(path, value)).encode())
    assert caught.value.reason is Reason.DECLARATION_INVALID


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"x": NaN}', b'{"variants":[],"x":"\\ud800"}', b" " * 5_000_000]
)
def test_what_is_no_declaration_is_refused(raw: bytes) -> None:
    with pytest.raises(ModelRejected) as caught:
        parse_declaration(raw)
    assert caught.value.reason is Reason.DECLARATION_INVALID


def test_data_files_lie_beside_their_graph() -> None:
    graph = {"path": "onnx/m.onnx", "sha256": "a" * 64, "size": 1, "role": "graph"}
    beside = {"path": "onnx/m.data", "sha256": "b" * 64, "size": 1, "role": "graph-data"}
    parsed = parse_declaration(json.dumps({"variants": [{"files": [beside, graph]}]}).encode())
    assert [file.role for file in parsed.variants[0].files] == ["graph", "graph-data"]
    for wrong in ({**beside, "path": "m.data"}, {**beside, "role": "graph"}):
        with pytest.raises(ModelRejected):
            parse_declaration(json.dumps({"variants": [{"files": [graph, wrong]}]}).encode())


PLACES = [
    "variants", "variants.0", "variants.0.files.0", "files", "files.0", "params", "params.S", "inputs", "inputs.0", "requires", "golden",
    "lineage", "outputs.0.shape",
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PLACES), value=JSON)
def test_anything_else_in_a_field_is_accepted_or_refused_and_never_a_crash(path: str, value: Any) -> None:
    try:
        built(change(path, value))
    except ModelRejected as rejected:
        assert rejected.reason is Reason.DECLARATION_INVALID


def test_variants_are_named_once_and_agree() -> None:
    parsed = parse_declaration(json.dumps({"variants": [{"files": [GOOD["variants"][0]["files"][0]]}]}).encode())
    assert variant_name(parsed.variants[0], answer()) == "onnx-fp32"
    with pytest.raises(ModelRejected) as caught:
        check_variants(["a", "a"], [answer(), answer()])
    assert caught.value.reason is Reason.DECLARATION_INVALID
    other = answer(found=Found("onnx", answer().found.engine, (), answer().found.outputs, "fp32"))
    with pytest.raises(ModelRejected) as caught:
        check_variants(["a", "b"], [answer(), other])
    assert caught.value.reason is Reason.VARIANTS_DISAGREE


DIMS = st.lists(st.none() | st.integers(1, 3) | st.sampled_from(["n", "m"]), max_size=3).map(tuple)
TENSORS = st.builds(Tensor, st.just("x"), st.sampled_from(["float32", "int8"]), st.none() | DIMS)


@given(declared=TENSORS, found=TENSORS)
def test_what_agrees_is_merged_to_the_more_exact_of_both(declared: Tensor, found: Tensor) -> None:
    if not agree(declared, found):
        with pytest.raises(ModelRejected):
            check_tensors(Reason.INPUT_MISMATCH, "input", (declared,), (found,))
        return
    (merged,) = check_tensors(Reason.INPUT_MISMATCH, "input", (declared,), (found,))
    assert merged == merge(declared, found)
    assert agree(merged, declared) and agree(merged, found)
    for shape in (declared.shape, found.shape):
        for mine, theirs in zip(merged.shape or (), shape or (), strict=shape is not None and merged.shape is not None):
            assert not isinstance(theirs, int) or mine == theirs
