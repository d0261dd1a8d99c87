"""Pauses between tries."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latebind._retry import Backoff, is_retryable, parse_retry_after


@given(st.integers(), st.integers(1, 200), st.floats(0, 1000))
def test_pauses_grow_up_to_the_cap_and_honour_the_server(seed: int, failures: int, asked: float) -> None:
    backoff = Backoff(random.Random(seed), base_s=2.0, cap_s=60.0)
    for number in range(failures):
        pause = backoff.failed(asked)
        assert asked <= pause <= asked + min(60.0, 2.0 * 2.0**number)
    backoff.succeeded()
    assert backoff.failed() <= 2.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("999999999", 86_400.0),
        ("soon", None),
        ("-3", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, 60.0) == seconds


def test_what_may_be_tried_again() -> None:
    assert [status for status in (200, 400, 401, 404, 408, 409, 413, 429, 500, 503) if is_retryable(status)] == [408, 429, 500, 503]
