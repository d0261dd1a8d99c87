"""Columns in the form in which ClickHouse's native protocol carries them, made from whole arrays instead of value by value.

`encoded` knows the columns that batches of telemetry are made of; for all others it says so, and the driver does it. The format:
numbers little-endian one after the other, days and seconds since 1970 as 16 and 32 bits, texts with their length as varint before them.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from kit.olap import Coded

_NUMBER = re.compile(r"(UInt|Int|Float)(8|16|32|64)")
_TIMES = {"Date": ("datetime64[D]", "<u2"), "DateTime": ("datetime64[s]", "<u4")}
#: From so many equal neighbours on, on average, runs are repeated instead of single texts joined.
_RUN = 4


def encoded(column: Any, kind: str) -> bytes | None:
    """Return the bytes of a column of this type, or None when that is not known or a value might not fit."""
    if isinstance(column, Coded):
        return _texts(column) if kind == "String" else None
    if not isinstance(column, np.ndarray):
        return None
    if number := _NUMBER.fullmatch(kind):
        target = np.dtype(f"{number[1].lower()}{number[2]}").newbyteorder("<")
        return column.astype(target).tobytes() if np.can_cast(column.dtype, target, "safe") else None
    unit, stored = _TIMES.get(kind.partition("(")[0], ("", ""))
    if not unit or column.dtype != np.dtype(unit):
        return None
    since = column.astype(np.int64)
    times = since.astype(np.dtype(stored))
    return times.tobytes() if bool((times == since).all()) else None


def _texts(column: Coded) -> bytes:
    codes = np.asarray(column.codes)
    if not len(codes):
        return b""
    entries = [_with_length(text.encode()) for text in column.values]
    starts = np.flatnonzero(np.diff(codes, prepend=codes[0] - 1))
    if len(starts) * _RUN > len(codes):
        return b"".join(map(entries.__getitem__, codes.tolist()))
    lengths = np.diff(starts, append=len(codes))
    return b"".join([entries[code] * length for code, length in zip(codes[starts].tolist(), lengths.tolist(), strict=True)])


def _with_length(text: bytes) -> bytes:
    length, head = len(text), bytearray()
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + text
