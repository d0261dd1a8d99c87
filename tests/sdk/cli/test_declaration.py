"""What a push says, from flags and files."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latebind._declaration import DeclarationInvalid, parse_file, parse_param, parse_tensor, parse_variant, read_document

NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=10)


@given(NAMES, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.lists(st.integers()), st.booleans())
def test_parameters_keep_their_values(name: str, whole: int, real: float, text: str, items: list[int], truth: bool) -> None:
    assert parse_param(f"{name}:int={whole}") == (name, {"type": "int", "value": whole})
    assert parse_param(f"{name}:float={real!r}") == (name, {"type": "float", "value": real})
    assert parse_param(f"{name}:string={text}") == (name, {"type": "string", "value": text})
    assert parse_param(f"{name}:int[]={','.join(map(str, items))}")[1]["value"] == items
    assert parse_param(f"{name}:int[]={json.dumps(items)}")[1]["value"] == items
    assert parse_param(f"{name}:bool={str(truth).lower()}")[1]["value"] is truth
    assert parse_param(f"{name}:json={json.dumps({'a': items})}")[1]["value"] == {"a": items}


@pytest.mark.parametrize("text", ["S", "S=1", "S:int", "S:integer=1", "S:int=1.5", "S:bool=yes", "S:json={", "S:int[]=a", ":int=1", ""])
def test_no_parameter(text: str) -> None:
    with pytest.raises(DeclarationInvalid):
        parse_param(text)


def test_tensors() -> None:
    assert parse_tensor("image:float32[1, height,?,3]") == {"name": "image", "dtype": "float32", "shape": [1, "height", None, 3]}
    assert parse_tensor("serving_default_x:0:int8[]") == {"name": "serving_default_x:0", "dtype": "int8", "shape": []}
    for text in ("image", "image:float32", "image:[1]", ":float32[1]"):
        with pytest.raises(DeclarationInvalid):
            parse_tensor(text)


def test_files_and_variants(tmp_path: Path) -> None:
    for name in ("a.onnx", "w.bin", "odd=name.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert parse_file("odd=name.txt", tmp_path).path == "odd=name.txt"
    assert parse_file("in/package.txt=a.onnx", tmp_path).path == "in/package.txt"
    big = parse_variant("big=a.onnx,w.bin", tmp_path)
    assert (big.name, [file.path for file in big.files]) == ("big", ["a.onnx", "w.bin"])
    assert parse_variant("a.onnx", tmp_path).name is None
    for text in ("", "big=", "nope.onnx"):
        with pytest.raises(DeclarationInvalid):
            parse_variant(text, tmp_path)


def test_a_declaration_names_what_was_uploaded(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"graph")
    (tmp_path / "l.txt").write_bytes(b"labels")
    document = {"model": "m", "variants": ["m.onnx"], "params": {"labels": {"type": "file", "value": "l.txt"}}, "notes": "n"}
    push = read_document(document, tmp_path)
    assert push.sources == [tmp_path / "m.onnx", tmp_path / "l.txt"]
    declaration = push.declaration({tmp_path / "m.onnx": ("1" * 64, 5), tmp_path / "l.txt": ("2" * 64, 6)})
    assert declaration == {
        "variants": [{"files": [{"path": "m.onnx", "sha256": "1" * 64, "size": 5, "role": "graph"}]}],
        "files": [{"path": "l.txt", "sha256": "2" * 64, "size": 6}],
        "params": {"labels": {"type": "file", "value": "l.txt"}},
        "notes": "n",
    }


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part)))
def test_any_document_is_read_or_refused(document: Any) -> None:
    for candidate in (document, {"model": "m", "variants": document}, {"model": "m", "variants": ["x.onnx"], "params": document}):
        try:
            read_document(candidate, Path("/nowhere"))
        except DeclarationInvalid as error:
            assert error.detail
