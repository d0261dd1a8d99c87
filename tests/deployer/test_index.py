"""The index under memory limits, and what it is made of."""

from __future__ import annotations

import random
from typing import Any

import pytest

from services.deployer import index as index_module
from services.deployer.acceptance import disjoint, rows_of, subset
from services.deployer.facts import facts_of
from services.deployer.index import build, set_bits, sum_bits
from services.deployer.predicates import matches, semver
from services.deployer.rules import parse_rules
from tests.deployer import generators


def node_of(predicate: dict[str, Any]) -> Any:
    return parse_rules({"rules": [{"id": "a", "when": predicate, "serve": {"model": "m", "version": 1}}]}).rules[0].when


@pytest.mark.parametrize("limit", [1, 200, 4 << 20])
def test_index_equals_a_linear_scan_however_little_memory_it_has(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory ranges are merged and values made when needed: wider, never narrower, and checked again."""
    monkeypatch.setattr(index_module, "TABLE_BYTES", limit)
    rng = random.Random(limit)
    for _ in range(15):
        nodes = [node_of(generators.predicate(rng)) for _ in range(60)]
        index = build(nodes)
        for _ in range(15):
            facts = facts_of(generators.device(rng))
            for _repeat in range(2):  # the second time from what the tables remember
                bits = index.everyone
                for section, key, ready, table in index.rows:
                    value = facts[section].get(key)
                    found = ready.get(value) if type(value) in (str, int) else None
                    bits &= table.lookup(value) if found is None else found
                expected = [place for place, node in enumerate(nodes) if matches(node, facts)]
                candidates = set(set_bits(bits))
                assert candidates >= set(expected)
                assert [place for place in sorted(candidates) if place not in index.checked or matches(nodes[place], facts)] == expected


def test_tables_remember_a_bounded_number_of_strange_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "REMEMBERED", 8)
    predicates = [{"attr": "os.version", "op": "semver_gte", "value": "1.0"}, {"attr": "os.api_level", "op": "gte", "value": 5}]
    index = build([node_of(predicate) for predicate in predicates])
    for number in range(100):
        for _, _, ready, table in index.rows:
            table.lookup(f"1.{number}")
            table.lookup(number)
            assert len(ready) <= 8


def test_bits() -> None:
    assert sum_bits([0, 3, 64], 65) == 1 | 8 | 1 << 64
    assert list(set_bits(1 | 8 | 1 << 64)) == [0, 3, 64]


@pytest.mark.parametrize("seed", range(4))
def test_subset_and_disjoint_never_claim_too_much(seed: int) -> None:
    rng = random.Random(seed)
    claims = 0
    for _ in range(120):
        one, other = node_of(generators.predicate(rng)), node_of(generators.predicate(rng))
        inside, apart = subset(rows_of(one), rows_of(other)), disjoint(rows_of(one), rows_of(other))
        claims += inside + apart
        for _ in range(40):
            facts = facts_of(generators.device(rng))
            if inside and matches(one, facts):
                assert matches(other, facts)
            if apart:
                assert not (matches(one, facts) and matches(other, facts))
    assert claims > 0


@pytest.mark.parametrize(
    ("inner", "outer", "inside"),
    [
        ({"attr": "os.api_level", "op": "eq", "value": 30}, {"attr": "os.api_level", "op": "gte", "value": 29}, True),
        ({"attr": "os.api_level", "op": "gte", "value": 29}, {"attr": "os.api_level", "op": "gt", "value": 29}, False),
        ({"attr": "os.api_level", "op": "gt", "value": 29}, {"attr": "os.api_level", "op": "gte", "value": 29}, True),
        ({"attr": "os.version", "op": "in", "value": ["16", "16.1"]}, {"attr": "os.version", "op": "semver_gte", "value": "16"}, True),
        ({"attr": "country", "op": "eq", "value": "DE"}, {"attr": "country", "op": "ne", "value": "FR"}, True),
        ({"attr": "country", "op": "ne", "value": "FR"}, {"attr": "country", "op": "exists", "value": True}, False),
        (
            {"attr": "groups", "op": "contains_all", "value": ["a", "b"]},
            {"attr": "groups", "op": "contains_any", "value": ["a", "b"]},
            True,
        ),
    ],
)
def test_subset_of_common_rules(inner: Any, outer: Any, inside: bool) -> None:
    assert subset(rows_of(node_of(inner)), rows_of(node_of(outer))) is inside


SEMVER_ORDER = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"]


def test_semver_precedence_as_published() -> None:
    """The example of semver.org, item 11."""
    keys = [semver(text) for text in SEMVER_ORDER]
    assert None not in keys
    assert keys == sorted(keys)  # type: ignore[type-var]
    assert len(set(keys)) == len(keys)
    assert semver("16") == semver("16.0") == semver("16.0.0+build.7")


@pytest.mark.parametrize("text", ["", "v1", "1.", "01", "1.02", "1.2.3.4", "1.0.0-01", "1.0.0-", "1.0.0+", "1 ", "1.0.0-ä", "9" * 300, "١"])
def test_what_is_no_version(text: str) -> None:
    assert semver(text) is None
