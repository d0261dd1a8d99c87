"""Packed columns against protobuf's own encoder and plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latebind_proto.telemetry_pb2 import Samples, Sketch
from services.telemetry.packed import NotPacked, any_in_segment, positions, running_sums, unpack, zigzag

SIGNED = st.integers(-(1 << 31), (1 << 31) - 1)
COLUMNS = st.lists(st.lists(SIGNED, max_size=20), max_size=8)


def packed(values: list[int]) -> bytes:
    """The packed bytes of a column, without its tag and length."""
    message = Samples(at_delta_ms=values).SerializeToString()
    return message[len(message) - sum(len(varint((value << 1) ^ (value >> 31))) for value in values) :]


def varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@given(COLUMNS)
def test_columns_come_back_as_they_were_packed(columns: list[list[int]]) -> None:
    unpacked = unpack([packed(column) for column in columns])
    assert unpacked.counts.tolist() == [len(column) for column in columns]
    assert zigzag(unpacked.values).tolist() == list(itertools.chain(*columns))


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=30))
def test_unsigned_values_reach_32_bits(values: list[int]) -> None:
    encoded = Sketch(count=values).SerializeToString()
    body = encoded[len(encoded) - sum(map(len, map(varint, values))) :]
    assert unpack([body]).values.tolist() == values


@given(COLUMNS)
def test_sums_and_positions_start_anew_with_each_segment(columns: list[list[int]]) -> None:
    flat = np.array(list(itertools.chain(*columns)), dtype=np.int64)
    counts = np.array([len(column) for column in columns], dtype=np.int64)
    assert running_sums(flat, counts).tolist() == [value for column in columns for value in itertools.accumulate(column)]
    assert positions(counts).tolist() == [place for column in columns for place in range(len(column))]
    assert any_in_segment(flat < 0, counts).tolist() == [any(value < 0 for value in column) for column in columns]


@pytest.mark.parametrize(
    ("columns", "bad"),
    [
        ([b"\x80"], [0]),
        ([b"\x01", b"", b"\x01\xff"], [2]),
        ([b"\x01\x80", b"\x01", b"\x80"], [0, 2]),
        ([b"\x01", b"\x80\x80\x80\x80\x80\x01", b"\x02"], [1]),
        ([b"\x80" * 9 + b"\x01", b"\x01" * 5, b"\xff" * 7 + b"\x01"], [0, 2]),
    ],
)
def test_what_is_no_column_is_named(columns: list[bytes], bad: list[int]) -> None:
    with pytest.raises(NotPacked) as caught:
        unpack(columns)
    assert list(caught.value.columns) == bad


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_any_bytes_give_values_or_not_packed(columns: list[bytes]) -> None:
    try:
        unpacked = unpack(columns)
    except NotPacked as error:
        assert all(0 <= column < len(columns) and columns[column] for column in error.columns)
    else:
        assert unpacked.counts.sum() == len(unpacked.values)
