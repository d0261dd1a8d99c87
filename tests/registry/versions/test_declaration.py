"""The rules of a declaration."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.versions.declaration import check_declaration, is_safe_path, with_roles
from services.registry.versions.errors import DeclarationInvalid

D = "a" * 64
GOOD: dict[str, Any] = {
    "variants": [
        {"name": "onnx-fp32", "files": [{"path": "model.onnx", "sha256": D, "size": 5, "role": "graph"}]},
        {
            "files": [
                {"path": "tf/model.tflite", "sha256": "b" * 64, "size": 6, "role": "graph"},
                {"path": "tf/data.bin", "sha256": "c" * 64, "size": 7, "role": "graph-data"},
            ]
        },
    ],
    "files": [{"path": "coco.labels", "sha256": "d" * 64, "size": 8}],
    "params": {
        "S": {"type": "int", "value": 13},
        "rate": {"type": "float", "value": 1},
        "on": {"type": "bool", "value": True},
        "text": {"type": "string", "value": ""},
        "ints": {"type": "int[]", "value": [1, 2]},
        "floats": {"type": "float[]", "value": [1, 2.5]},
        "strings": {"type": "string[]", "value": ["a"]},
        "any": {"type": "json", "value": {"a": [None, 1.5]}},
        "labels": {"type": "file", "value": "coco.labels"},
    },
    "inputs": [{"name": "image", "dtype": "float32", "shape": [1, None, "height", 3], "range": [0, 255]}],
    "requires": {"ram_mb": 512},
    "golden": {"rtol": 0.01, "input": {"path": "sample.npz", "sha256": "e" * 64, "size": 9}},
    "lineage": {"source_sha256": [D], "steps": [{"tool": "x", "options": {}}]},
    "notes": "",
}


def faults(change: Any) -> list[tuple[str, str]]:
    declaration = copy.deepcopy(GOOD)
    change(declaration)
    with pytest.raises(DeclarationInvalid) as caught:
        check_declaration(declaration)
    return [(fault["field"], fault["code"]) for fault in caught.value.extra["errors"]]


def _converted(declaration: Any, kind: str, path: str) -> None:
    declaration["source"] = {"files": [{"path": "model.onnx", "sha256": D, "size": 5}]}
    declaration["variants"][1] = {"convert": {"to": kind}}
    declaration["files"].append({"path": path, "sha256": "f" * 64, "size": 1})


def test_a_good_one_passes() -> None:
    check_declaration(GOOD)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", True), ("int", 1.0), ("int", "1"), ("int", 1 << 63), ("int", None), ("float", True), ("float", "1"),
        ("bool", 1), ("bool", "true"),
        ("string", 1), ("string", None), ("int[]", 1), ("int[]", [1, True]), ("int[]", [1.5]), ("float[]", ["1"]), ("string[]", "ab"),
        ("string[]", [1]), ("file", 1),
    ],
)  # fmt: skip
def test_values_are_of_their_type_as_they_are(kind: str, value: Any) -> None:
    def change(declaration: dict[str, Any]) -> None:
        declaration["params"]["p"] = {"type": kind, "value": value}

    assert faults(change)[0] == ("params.p.value", "NOT_JSON" if value == 1 << 63 else "WRONG_TYPE")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": float("nan")}, "\ud800", ["\udfff"], "x" * 70_000, {"a": [1 << 70]}])
def test_values_can_be_written_and_read_in_any_language(value: Any) -> None:
    def change(declaration: dict[str, Any]) -> None:
        declaration["params"]["p"] = {"type": "json", "value": value}

    assert faults(change) == [("params.p.value", "NOT_JSON")]


@pytest.mark.parametrize(
    ("field", "code", "change"),
    [
        ("params.labels.value", "NO_SUCH_FILE", lambda d: d["params"]["labels"].update(value="model.onnx")),
        ("params.9x", "NOT_A_NAME", lambda d: d["params"].update({"9x": {"type": "int", "value": 1}})),
        ("params.S.type", "UNKNOWN_TYPE", lambda d: d["params"]["S"].update(type="double")),
        ("variants", "OUT_OF_RANGE", lambda d: d.update(variants=[])),
        ("variants.0.name", "NOT_A_NAME", lambda d: d["variants"][0].update(name="ONNX")),
        ("variants.1.name", "DUPLICATE", lambda d: d["variants"][1].update(name="onnx-fp32")),
        ("variants.0.files", "ONE_GRAPH", lambda d: d["variants"][0]["files"][0].update(role="graph-data")),
        ("variants.1.files", "ANOTHER_FOLDER", lambda d: d["variants"][1]["files"][1].update(path="data.bin")),
        ("files.0.path", "RESERVED_PATH", lambda d: (d["files"][0].update(path="golden/x"), d["params"].pop("labels"))),
        ("files.0.path", "RESERVED_PATH", lambda d: (d["files"][0].update(path="Manifest.json"), d["params"].pop("labels"))),
        ("variants.0.files.0.path", "DUPLICATE", lambda d: d["variants"][0]["files"][0].update(path="COCO.labels")),
        ("variants.0.files", "DUPLICATE", lambda d: d["variants"][0]["files"][0].update(path="coco.labels/model.onnx")),
        ("files.0.sha256", "NOT_A_DIGEST", lambda d: d["files"][0].update(sha256="A" * 64)),
        ("files.0.size", "CONTRADICTION", lambda d: d["files"][0].update(sha256=D)),
        ("inputs.1.name", "DUPLICATE", lambda d: d["inputs"].append(d["inputs"][0])),
        ("inputs.0.dtype", "UNKNOWN_TYPE", lambda d: d["inputs"][0].update(dtype="float")),
        ("inputs.0.shape", "OUT_OF_RANGE", lambda d: d["inputs"][0].update(shape=[-1])),
        ("inputs.0.shape", "NOT_A_NAME", lambda d: d["inputs"][0].update(shape=["<b>"])),
        ("inputs.0.range", "OUT_OF_RANGE", lambda d: d["inputs"][0].update(range=[1, 0])),
        ("inputs.0.range", "OUT_OF_RANGE", lambda d: d["inputs"][0].update(range=[0, float("inf")])),
        ("golden.rtol", "OUT_OF_RANGE", lambda d: d["golden"].update(rtol=float("inf"))),
        ("variants.1.convert", "DUPLICATE", lambda d: _converted(d, "ort", "model.ort")),
        ("variants.1.convert", "DUPLICATE", lambda d: _converted(d, "ort", "model.onnx")),
        ("golden.input.path", "UNSAFE_PATH", lambda d: d["golden"]["input"].update(path="../x")),
        ("lineage.source_sha256.0", "NOT_A_DIGEST", lambda d: d["lineage"].update(source_sha256=["x"])),
    ],
)
def test_each_fault_is_named(field: str, code: str, change: Any) -> None:
    assert (field, code) in faults(change)


@pytest.mark.parametrize("path", ["model.onnx", "a/b/c.txt", "labels_v2+x-1.txt", "a" * 128])
def test_plain_paths(path: str) -> None:
    assert is_safe_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "C:x", "a\0b", "a\nb", ".hidden", "a/.b", "tail.", "é", "a b",
     "con?",
     "a" * 129, "/".join("a" * 9), "x/" * 200 + "x"],
)  # fmt: skip
def test_paths_that_mean_something_else_somewhere(path: str) -> None:
    assert not is_safe_path(path)


@given(st.text(max_size=40))
def test_no_text_escapes_its_package(path: str) -> None:
    if is_safe_path(path):
        assert not path.startswith("/")
        assert ".." not in path.split("/")
        assert path.isascii()


def test_roles_are_filled_in_when_they_are_plain() -> None:
    assert [file["role"] for file in with_roles([{"path": "weights"}])] == ["graph"]
    assert [file["role"] for file in with_roles([{"path": "w.bin"}, {"path": "m.onnx", "role": None}])] == ["graph-data", "graph"]
    assert [file["role"] for file in with_roles([{"path": "a"}, {"path": "b", "role": "graph"}])] == ["graph-data", "graph"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["int", "float", "bool", "string", "int[]", "float[]", "string[]", "json"]),
)
def test_what_is_accepted_comes_back_the_same(value: Any, kind: str) -> None:
    declaration = {**GOOD, "params": {"p": {"type": kind, "value": value}}}
    try:
        check_declaration(declaration)
    except DeclarationInvalid:
        return
    assert json.loads(json.dumps(value, ensure_ascii=False).encode()) == value
