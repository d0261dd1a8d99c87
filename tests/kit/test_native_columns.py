"""Columns as ClickHouse's native protocol carries them; the contract suite shows that a server reads them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.olap import Coded
from kit.olap.native import encoded


def varint(number: int) -> bytes:
    head = b""
    while number > 127:
        head += bytes([number % 128 + 128])
        number //= 128
    return head + bytes([number])


@given(st.lists(st.text(max_size=300), min_size=1, max_size=5), st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), max_size=20))
def test_texts_have_their_length_before_them(values: list[str], runs: list[tuple[int, int]]) -> None:
    codes = [code % len(values) for code, times in runs for _ in range(times)]
    expected = b"".join(varint(len(values[code].encode())) + values[code].encode() for code in codes)
    assert encoded(Coded(values, np.asarray(codes, dtype=np.int32)), "String") == expected


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        (np.array([1, 2**63], np.uint64), "UInt64", struct.pack("<2Q", 1, 2**63)),
        (np.array([1, 255], np.uint8), "UInt32", struct.pack("<2I", 1, 255)),
        (np.array([0.5], np.float32), "Float32", struct.pack("<f", 0.5)),
        (np.array([-1], np.int16), "Int64", struct.pack("<q", -1)),
        (np.array(["1970-01-03"], "datetime64[D]"), "Date", struct.pack("<H", 2)),
        (np.array(["1970-01-01T00:01:00"], "datetime64[s]"), "DateTime('UTC')", struct.pack("<I", 60)),
        (np.array([], np.uint8), "UInt8", b""),
        # What might not fit, or is not known, is left to the driver, which checks every value.
        (np.array([1], np.int64), "UInt64", None),
        (np.array([1.5]), "Float32", None),
        (np.array(["1969-12-31"], "datetime64[D]"), "Date", None),
        (np.array(["2150-01-01"], "datetime64[D]"), "Date", None),
        (np.array(["1970-01-01T00:01"], "datetime64[m]"), "DateTime", None),
        (np.array([1], np.uint8), "Nullable(UInt8)", None),
        ([1, 2], "UInt8", None),
        (Coded(["a"], np.array([0], np.int32)), "LowCardinality(String)", None),
    ],
)
def test_numbers_and_times_are_little_endian(column: Any, kind: str, expected: bytes | None) -> None:
    assert encoded(column, kind) == expected
