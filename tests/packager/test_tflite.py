"""The TFLite reader: what it finds, and what it refuses, without running anything."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.packager.domain import Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.formats import tflite
from services.packager.formats.tflite_operators import NAMES, REFUSED
from tests import models as m


def refused(data: bytes) -> ModelRejected:
    with pytest.raises(ModelRejected) as caught:
        tflite.read(data, "2.3.0")
    return caught.value


def test_it_finds_tensors_and_operators() -> None:
    found = tflite.read(m.tflite_add(4), "2.3.0")
    assert (found.format, found.engine.name, found.engine.min_version) == ("tflite", "litert", "1.0")
    assert found.engine.operators == ("ADD",)
    assert found.inputs == (Tensor("x", "float32", (1, 4)),)
    assert found.outputs == (Tensor("y", "float32", (1, 4)),)
    assert found.precision == "fp32"


def test_a_signature_marks_dynamic_dimensions() -> None:
    assert tflite.read(m.tflite_add(4, signature=[-1, 4]), "2.3.0").inputs[0].shape == (None, 4)


def test_operator_names_are_at_their_numbers() -> None:
    assert (NAMES[0], NAMES[3], NAMES[32], NAMES[118], NAMES[150], NAMES[206]) == (
        "ADD", "CONV_2D", "CUSTOM", "IF", "GELU", "STABLEHLO_COMPOSITE",
    )  # fmt: skip
    assert len(NAMES) == len(set(NAMES)) == 210


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_operators_beyond_the_standard_runtime_are_refused(name: str) -> None:
    error = refused(m.tflite_add(code=NAMES.index(name), custom="Evil" if name == "CUSTOM" else ""))
    assert error.reason is Reason.OPERATOR_NOT_ALLOWED
    assert ("Evil" if name == "CUSTOM" else name) in error.detail


def test_an_unknown_operator_is_refused() -> None:
    assert refused(m.tflite_add(code=5000)).reason is Reason.ENGINE_TOO_OLD


def test_a_subgraph_that_runs_itself_is_refused() -> None:
    assert refused(m.tflite_add(code=118, loop=True)).reason is Reason.MODEL_MALFORMED


def test_a_file_cut_anywhere_is_refused() -> None:
    whole = m.tflite_add(8)
    for end in range(8, len(whole) - 16):
        assert refused(whole[:end]).reason in {Reason.MODEL_TRUNCATED, Reason.MODEL_MALFORMED}


def test_every_word_replaced_by_odd_numbers_ends_in_a_description_or_a_reason() -> None:
    whole = m.tflite_add(8)
    for place in range(0, len(whole) - 4, 4):
        for odd in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(whole), 0xFFFF):
            data = bytearray(whole)
            struct.pack_into("<I", data, place, odd)
            try:
                tflite.read(bytes(data), "2.3.0")
            except ModelRejected as rejected:
                assert rejected.detail


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_behind_the_identifier_end_in_a_reason(data: bytes) -> None:
    refused(data[:4].ljust(4, b"\x08") + b"TFL3" + data)
