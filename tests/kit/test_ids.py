"""Ids sort by time, are unique, and are laid out as UUIDv7."""

from __future__ import annotations

import re
import threading
import uuid
from datetime import UTC, datetime

import pytest

from kit.clock import FakeClock, timestamp_ms
from kit.ids import CROCKFORD, id_time_ms, new_id, random_code


def test_ids_sort_by_the_time_they_were_made() -> None:
    clock = FakeClock()
    ids = []
    for _ in range(500):
        ids += [new_id("d", clock) for _ in range(3)]
        clock.advance(0.001)
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_an_id_is_a_uuid_version_7_in_base32() -> None:
    clock = FakeClock(datetime(2026, 11, 22, 10, 0, 0, 123_000, tzinfo=UTC))
    text = new_id("d", clock)
    assert re.fullmatch(r"d_[0-9a-hjkmnp-tv-z]{26}", text)
    value = 0
    for character in text[2:]:
        value = value * 32 + CROCKFORD.index(character)
    assert uuid.UUID(int=value).version == 7
    assert uuid.UUID(int=value).variant == uuid.RFC_4122
    assert id_time_ms(text) == timestamp_ms(clock.now())


def test_ids_of_many_threads_differ() -> None:
    found: list[str] = []

    def make() -> None:
        found.extend([new_id("x") for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8000


@pytest.mark.parametrize("text", ["", "d_", "d_" + "0" * 25, "d_" + "0" * 27, "d_" + "u" * 26, "d_" + "z" * 26, "d_" + "A" * 26])
def test_what_is_no_id_has_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        id_time_ms(text)


def test_codes_are_short_and_plain() -> None:
    codes = {random_code("c") for _ in range(1000)}
    assert len(codes) == 1000
    assert all(re.fullmatch(r"c_[a-z2-7]{8}", code) for code in codes)
    assert len(random_code("x", 20)) == 22
