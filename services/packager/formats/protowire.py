"""A bounded reader of the protobuf wire format: walks over fields without a schema and without copying payloads.

It checks every length against the enclosing message and never recurses; the caller decides which fields to enter. It does not decode
packed arrays, groups are refused. Source: <https://protobuf.dev/programming-guides/encoding/>.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5

_MAX_FIELD_NUMBER = 2**29 - 1

Buffer = bytes | mmap


class WireError(Exception):
    """The bytes are not a protobuf message. `cut` tells that they end too early at the end of the file."""

    def __init__(self, detail: str, *, cut: bool = False) -> None:
        super().__init__(detail)
        self.cut = cut


def varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """Read an unsigned varint of at most 64 bits. Return (value, position behind it). Raises `WireError`."""
    value = shift = 0
    while True:
        if position >= end:
            raise WireError("a number is cut off", cut=end == len(data))
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise WireError("a number has more than 64 bits")
            return value, position
        shift += 7
        if shift > 63:
            raise WireError("a number has more than 64 bits")


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, a, b) for each field in `data[start:end]`.

    For `VARINT` a is the value (unsigned) and b is 0; for the others the payload is `data[a:b]`. Raises `WireError` where the bytes
    stop making sense; what was yielded before stays true.
    """
    position = start
    while position < end:
        key, position = varint(data, position, end)
        number, kind = key >> 3, key & 7
        if not 0 < number <= _MAX_FIELD_NUMBER:
            raise WireError("a field number is out of range")
        if kind == VARINT:
            value, position = varint(data, position, end)
            yield number, kind, value, 0
            continue
        if kind == BYTES:
            size, position = varint(data, position, end)
        elif kind == FIXED64:
            size = 8
        elif kind == FIXED32:
            size = 4
        else:
            raise WireError(f"wire type {kind} is not used in models")
        if size > end - position:
            raise WireError("a length reaches over the end", cut=end == len(data))
        yield number, kind, position, position + size
        position += size


def signed(value: int) -> int:
    """Read an unsigned 64-bit varint value as an int64 (two's complement)."""
    return value - (1 << 64) if value >= 1 << 63 else value
