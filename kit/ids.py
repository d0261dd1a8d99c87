"""Ids that sort by the time they were made, and short codes that people copy.

An id is a prefix, `_` and 128 bits laid out as a UUIDv7 (RFC 9562, section 5.7) in lower-case Crockford base32, 26 characters:
text order is time order. Ids are unique, not secret: never use one as a credential.
"""

from __future__ import annotations

import os
import secrets
import threading
import time

from kit.clock import Clock, timestamp_ms

#: Crockford's base32 alphabet: digits and lower-case letters without i, l, o, u.
CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
#: RFC 4648 base32 alphabet in lower case.
_CODE_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_ID_CHARACTERS = 26
_PAIRS = tuple(first + second for first in CROCKFORD for second in CROCKFORD)
_VALUES = {character: value for value, character in enumerate(CROCKFORD)}
_RANDOM_BITS = 74
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1


class _Last:
    """The last id made here, so that ids of one millisecond keep their order too."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.milliseconds = -1
        self.random = 0


_last = _Last()


def new_id(prefix: str, clock: Clock | None = None) -> str:
    """Return `prefix_` + 26 characters. Ids made later in this process sort behind the earlier ones of the same prefix."""
    milliseconds = time.time_ns() // 1_000_000 if clock is None else timestamp_ms(clock.now())
    fresh = int.from_bytes(os.urandom(10)) & _RANDOM_MASK
    with _last.lock:
        if milliseconds == _last.milliseconds:
            # A random step (RFC 9562, 6.2 method 2): two forked processes do not count through the same values.
            fresh = _last.random + 1 + (fresh & 0xFFFF_FFFF)
        else:
            fresh >>= 1  # leaves room for the steps of this millisecond
        _last.milliseconds, _last.random = milliseconds, fresh
    random_high, random_low = (fresh >> 62) & 0xFFF, fresh & ((1 << 62) - 1)
    value = (milliseconds & ((1 << 48) - 1)) << 80 | 0x7 << 76 | random_high << 64 | 0b10 << 62 | random_low
    pairs = _PAIRS
    return f"{prefix}_{''.join([pairs[value >> shift & 1023] for shift in range(120, -1, -10)])}"


def id_time_ms(text: str) -> int:
    """Return the Unix milliseconds at which an id of `new_id` was made. Raises `ValueError` for anything else."""
    body = text.rpartition("_")[2]
    if len(body) != _ID_CHARACTERS:
        raise ValueError("not an id: 26 characters expected after the prefix")
    value = 0
    for character in body:
        digit = _VALUES.get(character)
        if digit is None:
            raise ValueError("not an id: unknown character")
        value = value << 5 | digit
    if value >> 128:
        raise ValueError("not an id: too large")
    return value >> 80


def random_code(prefix: str, length: int = 8) -> str:
    """Return `prefix_` + `length` random characters of a-z2-7 (5 bits each), for ids that people copy by hand.

    The caller checks that it is not taken yet.
    """
    return f"{prefix}_{''.join(secrets.choice(_CODE_ALPHABET) for _ in range(length))}"
