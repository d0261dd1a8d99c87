"""Which address is asked next, and how many repeats there are. Times are numbers."""

from __future__ import annotations

from gateway.addresses import REST_S, Addresses, RepeatBudget


def test_addresses_take_turns() -> None:
    addresses = Addresses(["a", "b", "c"])
    firsts = [addresses.in_order(0.0)[0].url for _ in range(6)]
    assert sorted(firsts[:3]) == ["a", "b", "c"]
    assert firsts[3:] == firsts[:3]


def test_every_order_has_all_addresses_and_a_single_one_twice() -> None:
    assert sorted(one.url for one in Addresses(["a", "b", "c"]).in_order(0.0)) == ["a", "b", "c"]
    assert [one.url for one in Addresses(["a"]).in_order(0.0)] == ["a", "a"]


def test_one_that_broke_comes_last_while_it_rests_then_one_request_tries_it() -> None:
    addresses = Addresses(["a", "b"])
    broken = addresses.all[0]
    broken.broke(100.0)
    assert [addresses.in_order(100.0 + REST_S / 2)[0].url for _ in range(4)] == ["b"] * 4
    later = 100.0 + REST_S
    firsts = [addresses.in_order(later)[0].url for _ in range(6)]
    assert firsts.count("a") == 1
    broken.worked()
    assert [addresses.in_order(later)[0].url for _ in range(6)].count("a") == 3


def test_when_all_rest_they_are_asked_all_the_same() -> None:
    addresses = Addresses(["a", "b"])
    for one in addresses.all:
        one.broke(100.0)
    assert len(addresses.in_order(100.1)) == 2


def test_repeats_are_a_tenth_of_the_requests_in_the_long_run() -> None:
    budget = RepeatBudget()
    first = sum(budget.spend() for _ in range(1000))
    assert first <= 50
    for _ in range(1000):
        budget.earn()
    assert sum(budget.spend() for _ in range(1000)) <= 50
    repeated = 0
    for _ in range(10_000):
        budget.earn()
        repeated += budget.spend()
    assert 900 <= repeated <= 1_000
