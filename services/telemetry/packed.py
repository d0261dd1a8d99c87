"""Packed protobuf number columns as numpy arrays: many columns are decoded in one pass, without a Python object per value.

Pure. Format: https://protobuf.dev/programming-guides/encoding/ (base 128 varints, zigzag). It knows no messages and no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
#: A 32-bit value takes at most this many bytes.
_MAX_BYTES = 5
#: Keeps the first n + 1 bytes of a little-endian word.
_KEEP = np.array([(1 << (8 * (n + 1))) - 1 for n in range(_MAX_BYTES)], dtype=np.uint64)
_PADDING = bytes(8)


class NotPacked(ValueError):
    """`columns` (their numbers in the call) are not sequences of whole 32-bit varints; there may be more of them."""

    def __init__(self, columns: Sequence[int]) -> None:
        super().__init__(f"not packed 32-bit varints: column {', '.join(map(str, columns))}")
        self.columns = columns


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Values of all columns one after the other, as unsigned 32-bit numbers in int64, and how many each column has."""

    values: Ints
    counts: Ints


def unpack(columns: Sequence[bytes]) -> Unpacked:
    """Decode packed 32-bit varints. Raises `NotPacked`."""
    sizes = np.fromiter(map(len, columns), dtype=np.int64, count=len(columns))
    joined = b"".join((*columns, _PADDING))
    size = len(joined) - len(_PADDING)
    if not size:
        return Unpacked(np.empty(0, np.int64), np.zeros(len(columns), np.int64))
    octets = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero(octets[:size] < 0x80)
    edges = np.cumsum(sizes)
    done = np.searchsorted(ends, edges)  # varints that end before each edge
    # A column ends with the last byte of a value, or is empty.
    open_ended = np.flatnonzero((sizes > 0) & (octets[edges - 1] >= 0x80))
    if len(open_ended):
        raise NotPacked(open_ended.tolist())
    counts = np.diff(done, prepend=0)
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    lengths = ends - starts
    too_long = np.flatnonzero(lengths >= _MAX_BYTES)
    if len(too_long):
        raise NotPacked(np.unique(np.searchsorted(done, too_long, side="right")).tolist())
    # One unaligned 8-byte load per value, then the five groups of seven bits are pushed together.
    words: NDArray[np.uint64] = np.ndarray((size,), dtype="<u8", buffer=joined, strides=(1,))[starts] & _KEEP[lengths]
    values = words & np.uint64(0x7F)
    for group in range(1, int(lengths.max()) + 1):
        values |= (words >> np.uint64(group)) & np.uint64(0x7F << (7 * group))
    return Unpacked(values.astype(np.int64) & 0xFFFF_FFFF, counts)


def zigzag(values: Ints) -> Ints:
    """Return the signed numbers behind zigzag-encoded ones (`sint32`)."""
    signed: Ints = (values >> 1) ^ -(values & 1)
    return signed


def running_sums(deltas: Ints, counts: Ints) -> Ints:
    """Return cumulative sums that start anew with each segment; `counts` are the segments' lengths."""
    sums = np.cumsum(deltas)
    heads = np.cumsum(counts) - counts
    before = np.where(heads > 0, sums[heads - 1], 0) if len(sums) else np.zeros(len(counts), np.int64)
    before[counts == 0] = 0
    result: Ints = sums - np.repeat(before, counts)
    return result


def positions(counts: Ints) -> Ints:
    """Return 0, 1, 2 … within each segment."""
    total = int(counts.sum())
    result: Ints = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    return result


def any_in_segment(flags: NDArray[Any], counts: Ints) -> NDArray[np.bool_]:
    """Return for each segment whether one of its flags is set."""
    seen = np.concatenate(([0], np.cumsum(flags)))
    ends = np.cumsum(counts)
    result: NDArray[np.bool_] = seen[ends] > seen[ends - counts]
    return result
