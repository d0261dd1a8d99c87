"""Options in the URLs of adapters."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kit.url_options import read_options


@dataclass(frozen=True, slots=True)
class Options:
    name: str = "x"
    many: int = 3
    seconds: float = 0.5
    secure: bool = False


def test_values_take_the_type_of_their_default() -> None:
    assert read_options(Options, "", "a URL") == Options()
    assert read_options(Options, "name=&many=7&seconds=2&secure=true", "a URL") == Options("", 7, 2.0, True)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("more=7", "a URL has no option 'more'; it has name, many"),
        ("many=seven", "a URL: many is int"),
        ("seconds=soon", "a URL: seconds is float"),
        ("secure=yes", "a URL: secure is true or false"),
        ("many", "bad query field"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_options(Options, query, "a URL")
