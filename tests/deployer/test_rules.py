"""The rules document: everything wrong is named with its field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.deployer.predicate_syntax import MAX_DEPTH
from services.deployer.rules import MAX_RULES, RulesProblem, parse_rules

SERVE = {"model": "yolo", "version": 7}


def errors_of(document: Any) -> set[tuple[str, str]]:
    try:
        parse_rules(document)
    except RulesProblem as problem:
        return {(error["field"], error["code"]) for error in problem.errors}
    return set()


def when(predicate: Any) -> dict[str, Any]:
    return {"rules": [{"id": "a", "when": predicate, "serve": SERVE}]}


def nested(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {"attr": "country", "op": "eq", "value": "DE"}
    for _ in range(depth):
        node = {"not": node}
    return node


def test_the_document_of_the_product_page_is_right() -> None:
    rules = parse_rules(
        {
            "rules": [
                {
                    "id": "flagships",
                    "when": {
                        "all": [
                            {"attr": "device.soc", "op": "in", "value": ["sm8650", "sm8750"]},
                            {"attr": "os.api_level", "op": "gte", "value": 29},
                        ]
                    },
                    "active": {"from": "2026-12-01T00:00:00Z", "until": None},
                    "rollout": {"percent": 25.0, "salt": "r7"},
                    "serve": {"model": "tiny-yolo-v2", "version": 7},
                },
                {
                    "id": "ab",
                    "when": {"attr": "groups", "op": "contains_any", "value": ["beta"]},
                    "serve": {
                        "split": [
                            {"weight": 1, "model": "tiny-yolo-v2", "version": 7, "variant": "onnx-int8"},
                            {"weight": 1, "model": "tiny-yolo-v2", "version": 7, "variant": "onnx-fp32"},
                        ],
                        "salt": "ab-1",
                    },
                },
            ],
            "default": {"model": "tiny-yolo-v2", "alias": "stable"},
        }
    )
    assert [rule.id for rule in rules.rules] == ["flagships", "ab"]
    assert rules.rules[0].rollout is not None
    assert rules.rules[0].rollout.threshold == 25_000
    assert rules.default is not None
    assert rules.default.alias == "stable"


def rule(**more: Any) -> dict[str, Any]:
    return {"rules": [{"id": "a", "serve": SERVE, **more}]}


@pytest.mark.parametrize(
    ("document", "field", "code"),
    [
        ([], "", "WRONG_TYPE"),
        (None, "", "WRONG_TYPE"),
        ({"rule": []}, "rule", "UNKNOWN_FIELD"),
        ({"rules": None}, "rules", "WRONG_TYPE"),
        ({"rules": [7]}, "rules[0]", "WRONG_TYPE"),
        ({"rules": [{}]}, "rules[0].id", "REQUIRED"),
        ({"rules": [{"id": "a"}]}, "rules[0].serve", "REQUIRED"),
        ({"rules": [{"id": "a b", "serve": SERVE}]}, "rules[0].id", "INVALID_ID"),
        ({"rules": [{"id": 5, "serve": SERVE}]}, "rules[0].id", "INVALID_ID"),
        ({"rules": [{"id": "a", "serve": SERVE}, {"id": "a", "serve": SERVE}]}, "rules[1].id", "DUPLICATE_ID"),
        ({"rules": [{"id": "a", "serve": SERVE}] * (MAX_RULES + 1)}, "rules", "TOO_MANY"),
        (rule(priority=1), "rules[0].priority", "UNKNOWN_FIELD"),
        (rule(active={"from": "tomorrow"}), "rules[0].active.from", "INVALID_TIME"),
        (rule(active={"from": "2026-12-01T00:00:00"}), "rules[0].active.from", "INVALID_TIME"),
        (rule(active={"from": "2026-12-01"}), "rules[0].active.from", "INVALID_TIME"),
        (rule(active={"since": None}), "rules[0].active.since", "UNKNOWN_FIELD"),
        (rule(active={"from": "2026-12-02T00:00:00Z", "until": "2026-12-01T00:00:00Z"}), "rules[0].active.until", "NEVER_OPEN"),
        (rule(active=[]), "rules[0].active", "WRONG_TYPE"),
        (rule(rollout={"percent": 120, "salt": "s"}), "rules[0].rollout.percent", "OUT_OF_RANGE"),
        (rule(rollout={"percent": -0.1, "salt": "s"}), "rules[0].rollout.percent", "OUT_OF_RANGE"),
        (rule(rollout={"percent": float("nan"), "salt": "s"}), "rules[0].rollout.percent", "OUT_OF_RANGE"),
        (rule(rollout={"percent": True, "salt": "s"}), "rules[0].rollout.percent", "WRONG_TYPE"),
        (rule(rollout={"percent": "25", "salt": "s"}), "rules[0].rollout.percent", "WRONG_TYPE"),
        (rule(rollout={"percent": 0.0001, "salt": "s"}), "rules[0].rollout.percent", "TOO_FINE"),
        (rule(rollout={"percent": 5}), "rules[0].rollout.salt", "REQUIRED"),
        (rule(rollout={"percent": 5, "salt": ""}), "rules[0].rollout.salt", "INVALID_SALT"),
        (rule(serve=None), "rules[0].serve", "WRONG_TYPE"),
        (rule(serve={"version": 1}), "rules[0].serve.model", "REQUIRED"),
        (rule(serve={"model": "yolo"}), "rules[0].serve", "VERSION_OR_ALIAS"),
        (rule(serve={"model": "yolo", "version": 1, "alias": "x"}), "rules[0].serve", "VERSION_OR_ALIAS"),
        (rule(serve={"model": "yolo", "version": 0}), "rules[0].serve.version", "WRONG_TYPE"),
        (rule(serve={"model": "yolo", "version": True}), "rules[0].serve.version", "WRONG_TYPE"),
        (rule(serve={"model": "Yolo!", "version": 1}), "rules[0].serve.model", "INVALID_NAME"),
        (rule(serve={"model": "yolo", "version": 1, "weight": 1}), "rules[0].serve.weight", "UNKNOWN_FIELD"),
        (rule(serve={"split": [], "salt": "s"}), "rules[0].serve.split", "EMPTY"),
        (rule(serve={"split": {}, "salt": "s"}), "rules[0].serve.split", "WRONG_TYPE"),
        (rule(serve={"split": [{"weight": 0, **SERVE}], "salt": "s"}), "rules[0].serve.split", "NO_WEIGHT"),
        (rule(serve={"split": [{"weight": 1.5, **SERVE}], "salt": "s"}), "rules[0].serve.split[0].weight", "INVALID_WEIGHT"),
        (rule(serve={"split": [{**SERVE}], "salt": "s"}), "rules[0].serve.split[0].weight", "REQUIRED"),
        (rule(serve={"split": [{"weight": 1, **SERVE}]}), "rules[0].serve.salt", "REQUIRED"),
        (
            rule(serve={"split": [{"weight": 1, **SERVE}], "salt": "s"}, rollout={"percent": 5, "salt": "s"}),
            "rules[0].serve.salt",
            "SAME_SALT",
        ),
        ({"default": {"split": [], "salt": "s"}}, "default.split", "UNKNOWN_FIELD"),
        (when([]), "rules[0].when", "WRONG_TYPE"),
        (when({}), "rules[0].when.attr", "REQUIRED"),
        (when({"all": []}), "rules[0].when.all", "EMPTY"),
        (when({"any": []}), "rules[0].when.any", "EMPTY"),
        (when({"any": {}}), "rules[0].when.any", "WRONG_TYPE"),
        (when({"not": []}), "rules[0].when.not", "WRONG_TYPE"),
        (when({"all": [nested(0)], "any": [nested(0)]}), "rules[0].when", "MIXED_PREDICATE"),
        (when({"all": [nested(0)], "attr": "country"}), "rules[0].when", "MIXED_PREDICATE"),
        (when({"all": [nested(0)] * 257}), "rules[0].when.all", "TOO_MANY"),
        (when({"attr": "device.sco", "op": "eq", "value": "x"}), "rules[0].when.attr", "UNKNOWN_ATTRIBUTE"),
        (when({"attr": "runtimes", "op": "exists", "value": True}), "rules[0].when.attr", "UNKNOWN_ATTRIBUTE"),
        (when({"attr": "attributes.", "op": "exists", "value": True}), "rules[0].when.attr", "UNKNOWN_ATTRIBUTE"),
        (when({"attr": 5, "op": "exists", "value": True}), "rules[0].when.attr", "UNKNOWN_ATTRIBUTE"),
        (when({"attr": "country", "op": "matches", "value": ".*"}), "rules[0].when.op", "UNKNOWN_OPERATOR"),
        (when({"attr": "country", "op": ["eq"], "value": "x"}), "rules[0].when.op", "UNKNOWN_OPERATOR"),
        (when({"attr": "country", "op": "gt", "value": 5}), "rules[0].when.op", "WRONG_OPERATOR"),
        (when({"attr": "os.api_level", "op": "prefix", "value": "2"}), "rules[0].when.op", "WRONG_OPERATOR"),
        (when({"attr": "groups", "op": "eq", "value": "beta"}), "rules[0].when.op", "WRONG_OPERATOR"),
        (when({"attr": "os.api_level", "op": "eq", "value": "29"}), "rules[0].when.value", "WRONG_TYPE"),
        (when({"attr": "os.api_level", "op": "gte", "value": True}), "rules[0].when.value", "WRONG_TYPE"),
        (when({"attr": "os.api_level", "op": "gte", "value": 1e300}), "rules[0].when.value", "OUT_OF_RANGE"),
        (when({"attr": "country", "op": "eq", "value": None}), "rules[0].when.value", "WRONG_TYPE"),
        (when({"attr": "country", "op": "eq", "value": "x" * 1025}), "rules[0].when.value", "TOO_LONG"),
        (when({"attr": "country", "op": "in", "value": []}), "rules[0].when.value", "EMPTY"),
        (when({"attr": "country", "op": "in", "value": "DE"}), "rules[0].when.value", "WRONG_TYPE"),
        (when({"attr": "country", "op": "in", "value": ["DE", 5]}), "rules[0].when.value[1]", "WRONG_TYPE"),
        (when({"attr": "country", "op": "in", "value": ["DE"] * 1001}), "rules[0].when.value", "TOO_MANY"),
        (when({"attr": "groups", "op": "contains_any", "value": [1]}), "rules[0].when.value[0]", "WRONG_TYPE"),
        (when({"attr": "os.api_level", "op": "between", "value": [1]}), "rules[0].when.value", "WRONG_TYPE"),
        (when({"attr": "os.api_level", "op": "between", "value": [30, 29]}), "rules[0].when.value", "EMPTY_RANGE"),
        (when({"attr": "os.version", "op": "semver_gte", "value": "1.2.3.4"}), "rules[0].when.value", "INVALID_VERSION"),
        (when({"attr": "os.version", "op": "exists", "value": 1}), "rules[0].when.value", "WRONG_TYPE"),
        (when({"attr": "country", "op": "eq", "value": "DE", "case": False}), "rules[0].when.case", "UNKNOWN_FIELD"),
        (when(nested(MAX_DEPTH + 1)), "rules[0].when" + ".not" * MAX_DEPTH, "TOO_DEEP"),
    ],
)
def test_what_is_wrong_is_named(document: Any, field: str, code: str) -> None:
    assert (field, code) in errors_of(document)


def test_eight_deep_is_still_right() -> None:
    assert errors_of(when(nested(MAX_DEPTH))) == set()


def test_all_problems_are_reported_at_once_and_the_list_is_bounded() -> None:
    with pytest.raises(RulesProblem) as caught:
        parse_rules({"rules": [{"id": f"r{n}", "serve": {}} for n in range(200)]})
    assert len(caught.value.errors) == 100
    assert caught.value.total == 400


NAMES = ["rules", "default", "id", "when", "all", "any", "not", "attr", "op", "value", "serve", "split", "salt", "model", "version"]
NAMES += ["weight", "rollout", "percent", "active", "from", "until", "x"]


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["rules", "in", "country", "DE"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
        max_leaves=30,
    )
)
def test_no_json_value_crashes_the_parser(value: Any) -> None:
    errors_of(value)
    errors_of({"rules": [value]})
    errors_of(when(value))
