"""How ranges are cut, and when the writer loses patience."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.telemetry.domain import MIN_INSTALLS, Cut, Patience, Plan, TooManyRejects, cut
from tests.telemetry.factories import NOW


@dataclass(frozen=True)
class At:
    offset: int


def records(first: int, last: int) -> list[At]:
    return [At(offset) for offset in range(first, last + 1)]


def plan(first: int, last: int, *, done: bool = False) -> Plan:
    return Plan("telemetry.received", 2, first, last, NOW, done)


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        (None, Cut(records(10, 19), ())),
        (plan(0, 9), Cut(records(10, 19), ())),  # committed, the process died before it said so
        (plan(10, 14, done=True), Cut(records(10, 19), ())),
        (plan(10, 14), Cut(records(10, 14), records(15, 19))),
        (plan(10, 19), Cut(records(10, 19), [])),
        (plan(10, 25), Cut(records(10, 19), [], missing=True)),
        (plan(5, 14), Cut(records(10, 19), ())),  # its beginning is gone: no longer that range
    ],
)
def test_an_unfinished_plan_decides_where_to_cut(existing: Plan | None, expected: Cut[At]) -> None:
    assert cut(records(10, 19), existing) == expected


def test_gaps_in_offsets_do_not_matter() -> None:
    assert cut([At(10), At(12), At(17)], plan(10, 14)) == Cut([At(10), At(12)], [At(17)])
    assert cut([At(10), At(12)], plan(10, 12)) == Cut([At(10), At(12)], [])


def test_the_token_names_the_range() -> None:
    assert plan(3, 9).token == "telemetry.received:2:3-9"


def test_patience_ends_after_so_many_rejects_of_many_installs() -> None:
    patience = Patience(30)
    for number in range(29):
        patience = patience.after([f"acme/i{number}"], {0: "MALFORMED"})
    with pytest.raises(TooManyRejects, match="30 batches in a row could not be decoded; the last because of PHASE"):
        patience.after(["acme/i1"], {0: "PHASE"})


def test_one_broken_device_does_not_stop_the_others() -> None:
    patience = Patience(30)
    for _ in range(1000):
        patience = patience.after(["acme/broken"] * 3, {0: "MALFORMED", 1: "MALFORMED", 2: "MALFORMED"})


def test_zero_never_loses_patience() -> None:
    patience = Patience(0).after([f"acme/i{number}" for number in range(5000)], dict.fromkeys(range(5000), "MALFORMED"))
    assert patience.row == 5000


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=200), st.integers(1, 40), st.integers(1, 20))
def test_patience_does_not_depend_on_how_batches_are_grouped(told: list[tuple[int, bool]], most: int, size: int) -> None:
    keys = [f"i{install}" for install, _ in told]
    rejects = {place: "X" for place, (_, bad) in enumerate(told) if bad}

    def outcome(step: int) -> object:
        patience = Patience(most)
        try:
            for start in range(0, len(keys), step):
                part = {place - start: why for place, why in rejects.items() if start <= place < start + step}
                patience = patience.after(keys[start : start + step], part)
        except TooManyRejects as error:
            return str(error)
        return patience

    assert outcome(size) == outcome(max(1, len(keys)))


def test_patience_needs_no_more_installs_than_rejects() -> None:
    assert MIN_INSTALLS == 20
    with pytest.raises(TooManyRejects):
        Patience(2).after(["a", "b"], {0: "X", 1: "X"})
