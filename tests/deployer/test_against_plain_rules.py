"""binding.py against the plain reading of PRODUCT section 6: same answers, by the index and by explain."""

from __future__ import annotations

import random
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.deployer.binding import Bound, Catalogue, Refusal, Served, VersionEntry, bind, compile_rules, decide
from services.deployer.compatibility import ONNXRUNTIME, package_of
from services.deployer.explain import explain
from services.deployer.facts import facts_of
from services.deployer.predicates import matches
from services.deployer.rules import parse_rules
from tests.deployer import generators, plain_rules

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
DOCUMENTS = 1_200
DEVICES_EACH = 10


def catalogue_of(plain: dict[str, Any]) -> Catalogue:
    versions = {
        key: VersionEntry(
            tuple(package_of(manifest, digest=manifest["digest"], size=1) for manifest in entry["manifests"]), entry["archived"]
        )
        for key, entry in plain["versions"].items()
    }
    return Catalogue(versions, plain["aliases"])


def plain_form(answer: Served | Refusal) -> dict[str, Any]:
    if isinstance(answer, Served):
        return {"reason": answer.reason.value, "rule_id": answer.rule_id, "digest": answer.package.digest}
    return {"reason": answer.reason.value, "packages": [asdict(package) for package in answer.packages]}


def bound_of(document: dict[str, Any], catalogue: dict[str, Any], now: datetime) -> Bound:
    compiled = compile_rules(parse_rules(document))
    return bind(compiled, catalogue_of(catalogue), collection="c_test", revision=1, content="x").at(now.timestamp())


def check_device(bound: Bound, document: dict, catalogue: dict, context: dict, now: datetime) -> None:
    install_id = context["install_id"]
    facts = facts_of(context)
    expected = plain_rules.answer(document, context, catalogue, install_id, now, ONNXRUNTIME)
    decided = plain_form(decide(bound, facts, install_id))
    assert decided == expected
    explanation = explain(bound, facts, install_id, now.timestamp())
    assert plain_form(explanation.answer) == decided
    served = [entry["id"] for entry in explanation.rules if entry["served"]]
    assert served == ([decided["rule_id"]] if decided.get("rule_id") else [])
    # Index equals linear scan: no rule that matches is ever missing among the candidates.
    candidates = bound.compiled.index.everyone
    for section, key, _, table in bound.compiled.index.rows:
        candidates &= table.lookup(facts[section].get(key))
    for place, rule in enumerate(bound.compiled.rules.rules):
        if matches(rule.when, facts):
            assert candidates >> place & 1, f"the index lost {rule.id}"
        elif place not in bound.compiled.index.checked:
            assert not candidates >> place & 1, f"the index is wider than {rule.id} and nobody checks it again"


@pytest.mark.parametrize("part", range(4))
def test_twelve_thousand_random_pairs_agree(part: int) -> None:
    rng = random.Random(f"pairs {part}")
    reasons: dict[str, int] = {}
    for _ in range(DOCUMENTS // 4):
        document, catalogue = generators.document(rng), generators.catalogue(rng)
        bound = bound_of(document, catalogue, NOW)
        for _ in range(DEVICES_EACH):
            context = generators.device(rng)
            check_device(bound, document, catalogue, context, NOW)
            reason = decide(bound, facts_of(context), context["install_id"]).reason.value
            reasons[reason] = reasons.get(reason, 0) + 1
    # The pools are chosen so that every kind of answer is common; a test that never serves anything would prove nothing.
    assert min(reasons.get(name, 0) for name in ("TARGETING_MATCH", "SPLIT", "DEFAULT", "NO_MATCH", "NO_COMPATIBLE_PACKAGE")) > 50, reasons


@settings(max_examples=250, deadline=None)
@given(seed=st.integers(0, 2**32), moment=st.sampled_from([*generators.MOMENTS, "2026-10-01T00:00:00Z", "2027-01-01T00:00:00Z"]))
def test_any_seed_agrees_at_any_edge(seed: int, moment: str) -> None:
    rng = random.Random(seed)
    now = datetime.fromisoformat(moment)
    document, catalogue = generators.document(rng), generators.catalogue(rng)
    bound = bound_of(document, catalogue, now)
    for _ in range(4):
        check_device(bound, document, catalogue, generators.device(rng), now)


def test_hundreds_of_rules_agree() -> None:
    rng = random.Random("many")
    document, catalogue = {"rules": [generators.rule(rng, f"r{place}") for place in range(400)]}, generators.catalogue(rng)
    bound = bound_of(document, catalogue, NOW)
    for _ in range(60):
        check_device(bound, document, catalogue, generators.device(rng), NOW)
