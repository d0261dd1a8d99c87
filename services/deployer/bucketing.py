"""Percentages and splits: which point of a range an install falls on.

Pure. The arithmetic is in integers only, so that every language gets the same answer; vectors are published in docs/rules.md.
`mmh3` is the one package a pure file uses: a hash in C costs 0.1 microseconds, one in Python thirty times that (docs/adr/0020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import mmh3

#: Points of a rollout: a percentage can be set in steps of a thousandth.
BUCKETS = 100_000

#: murmur3_x86_32 with seed 0 of some bytes, unsigned.
murmur3: Callable[[bytes], int] = mmh3.mmh3_32_uintdigest


def point(salt: str, install_id: str) -> int:
    """Return murmur3_x86_32 (seed 0) of the UTF-8 text `salt.install_id`, unsigned 32 bit. The salt decides who is near whom."""
    return murmur3(f"{salt}.{install_id}".encode("utf-8", "surrogatepass"))


def bucket(salt: str, install_id: str) -> int:
    """Return where the install stands in a rollout, 0 … 99,999."""
    return (point(salt, install_id) * BUCKETS) >> 32


def threshold(percent: float) -> int:
    """Return the first bucket that `percent` (0 … 100) leaves out.

    The percentage is taken as the decimal number that was written: 16.1 is 16,100 buckets, though 16.1 * 1000 is a little more in
    binary floating point. So `bucket < threshold` is `bucket < percent * 1000` without rounding, and growing drops nobody.
    """
    return -int(-(Fraction(str(percent)) * 1000) // 1)


def pick(salt: str, install_id: str, running: Sequence[int]) -> int:
    """Return the index of the split's option: the first whose running weight sum exceeds the install's point."""
    place = (point(salt, install_id) * running[-1]) >> 32
    for index, total in enumerate(running):
        if total > place:
            return index
    raise AssertionError("a point is always below the total weight")
