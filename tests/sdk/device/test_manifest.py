"""The manifest as the device reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latebind.device.manifest import Parameter, is_safe_path, parse_manifest
from latebind.errors import VerificationFailed

DIGEST = "a" * 64


def good() -> dict[str, Any]:
    return {
        "manifest_version": 1,
        "account": "acme",
        "model_id": "tiny-yolo-v2",
        "version": 7,
        "variant": "onnx-int8",
        "engine": {"name": "onnxruntime", "min_version": "1.18"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["N", None, 416, 3]}],
        "outputs": [{"name": "grid", "dtype": "float32", "shape": None}],
        "params": {
            "S": {"type": "int", "value": 13},
            "threshold": {"type": "float", "value": 1},
            "anchors": {"type": "float[]", "value": [1, 2.5]},
            "labels": {"type": "file", "value": "coco.labels"},
            "extra": {"type": "json", "value": {"a": [None]}},
        },
        "files": [
            {"path": "model.onnx", "role": "graph", "size": 10, "sha256": DIGEST},
            {"path": "coco.labels", "role": "auxiliary", "size": 3, "sha256": "b" * 64},
        ],
        "golden": None,
        "something_new": {"is": "ignored"},
    }


def parse(raw: Any) -> Any:
    return parse_manifest(json.dumps(raw).encode())


def test_a_good_manifest_becomes_plain_values() -> None:
    manifest = parse(good())
    assert manifest.inputs[0].shape == ("N", None, 416, 3) and manifest.inputs[0].fixed is None
    assert manifest.outputs[0].shape is None and manifest.outputs[0].fixed is None
    assert manifest.params["threshold"] == Parameter("float", 1.0) and manifest.params["anchors"].value == [1.0, 2.5]
    assert (manifest.graph.path, manifest.size) == ("model.onnx", 13)


def set_at(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Change a place of the manifest: the last argument is the value."""

    def change(manifest: dict[str, Any]) -> None:
        target: Any = manifest
        for key in path[:-2]:
            target = target[key]
        target[path[-2]] = path[-1]

    return change


BROKEN = [
    set_at("account", None),
    set_at("version", "7"),
    set_at("version", True),
    set_at("engine", "name", 1),
    set_at("inputs", 0, "shape", [1.5]),
    set_at("inputs", 0, "shape", [-1]),
    set_at("inputs", [{"name": "a", "dtype": "x", "shape": []}] * 2),
    set_at("params", "S", "value", 1.5),
    set_at("params", "S", "value", True),
    set_at("params", "S", {"type": "int"}),
    set_at("params", "S", "type", "complex"),
    set_at("params", "labels", "value", "missing.txt"),
    set_at("files", []),
    set_at("files", 0, "role", "auxiliary"),
    set_at("files", 1, "role", "graph"),
    set_at("files", 1, "path", "model.onnx"),
    set_at("files", 1, "path", "../outside"),
    set_at("files", 1, "path", "/etc/passwd"),
    set_at("files", 1, "sha256", "B" * 64),
    set_at("files", 1, "sha256", DIGEST),
    set_at("files", 1, "size", -1),
    set_at("engine", "ort", {"path": "model.ort", "version": "1.32.0"}),
    set_at("engine", "ort", {"path": "model.onnx"}),
    set_at("engine", "ort", "model.onnx"),
    set_at("golden", {"input": "x", "output": "y", "rtol": 0, "atol": 0}),
    set_at("golden", {"input": "coco.labels", "output": "coco.labels", "rtol": -1, "atol": 0}),
]


@pytest.mark.parametrize("change", BROKEN)
def test_a_broken_manifest_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    manifest = good()
    change(manifest)
    with pytest.raises(VerificationFailed) as caught:
        parse(manifest)
    assert caught.value.code == "MANIFEST_INVALID"


def test_a_newer_manifest_says_so() -> None:
    with pytest.raises(VerificationFailed) as caught:
        parse({**good(), "manifest_version": 2})
    assert caught.value.code == "MANIFEST_UNSUPPORTED"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_any_other_json_is_refused(raw: Any) -> None:
    with pytest.raises(VerificationFailed):
        parse(raw)


@pytest.mark.parametrize("path", ["a", "a/b.txt", "golden/input.npz", "ünïcode", "a b", "..a", "a..", "-"])
def test_paths_inside_the_package(path: str) -> None:
    assert is_safe_path(path)


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "C:a", "a\0", "a\nb", "x" * 300, "a/" * 600]
)
def test_paths_that_lead_elsewhere(path: str) -> None:
    assert not is_safe_path(path)
