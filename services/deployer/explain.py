"""Why a device gets what it gets: every rule, every predicate, every condition, with the values that were there.

Pure. It reads the rules one after the other, without the index, and comes to the answer of `binding.decide`; a property test holds
the two against each other. Made on request, never on the way of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.deployer.binding import Bound, Option, Reason, Refusal, Refused, Served, no_compatible_package, refused
from services.deployer.bucketing import bucket, pick, point
from services.deployer.compatibility import Package, checks
from services.deployer.predicates import All, AnyOf, Facts, Leaf, Node, Not, actual
from services.deployer.rules import Rule


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer, and how it came about: one entry per rule in reading order, and one for the default (None: there is none)."""

    answer: Served | Refusal
    rules: tuple[dict[str, Any], ...]
    default: dict[str, Any] | None


def explain(bound: Bound, facts: Facts, install_id: str, now: float) -> Explanation:
    """Explain what this device gets at `now` (Unix seconds)."""
    answer: Served | None = None
    failed: list[Refused] = []
    matched = False
    entries = []
    for rule, options in zip(bound.compiled.rules.rules, bound.options, strict=True):
        reached = answer is None
        entry, served, refusals = _rule(rule, options, facts, install_id, now)
        if reached and entry["stopped_by"] is None:
            answer = served
            entry["served"] = True
        elif reached and entry["stopped_by"] == "compatibility":
            matched = True
            failed += refusals
        entry["reached"] = reached
        entries.append(entry)
    default = None
    if bound.default is not None:
        report, package, refusals = _option(bound.default, facts)
        default = {"served": False, "reached": answer is None, "packages": report}
        if answer is None and package is not None:
            answer = Served(Reason.DEFAULT, None, package)
            default["served"] = True
        matched = True
        failed += refusals
    if answer is not None:
        return Explanation(answer, tuple(entries), default)
    if not matched:
        return Explanation(Refusal(Reason.NO_MATCH), tuple(entries), default)
    return Explanation(no_compatible_package(failed), tuple(entries), default)


def _rule(
    rule: Rule, options: tuple[Option, ...], facts: Facts, install_id: str, now: float
) -> tuple[dict[str, Any], Served | None, list[Refused]]:
    tree = _tree(rule.when, facts)
    is_open = rule.window.is_open(now)
    rollout = None
    if rule.rollout is not None:
        place = bucket(rule.rollout.salt, install_id)
        rollout = {
            "percent": rule.rollout.percent,
            "salt": rule.rollout.salt,
            "point": place / 1000,
            "included": place < rule.rollout.threshold,
        }
    arm, split = 0, None
    if rule.split is not None:
        arm = pick(rule.split.salt, install_id, rule.split.running)
        total = rule.split.running[-1]
        place = (point(rule.split.salt, install_id) * total) >> 32
        split = {"salt": rule.split.salt, "point": place, "total_weight": total, "picked": arm}
    report, package, refusals = _option(options[arm], facts)
    stopped_by = None
    if not tree["result"]:
        stopped_by = "when"
    elif not is_open:
        stopped_by = "active"
    elif rollout is not None and not rollout["included"]:
        stopped_by = "rollout"
    elif package is None:
        stopped_by = "compatibility"
    entry = {
        "id": rule.id,
        "served": False,
        "stopped_by": stopped_by,
        "when": tree,
        "active": {"from": _moment(rule.window.opens), "until": _moment(rule.window.closes), "open": is_open},
        "rollout": rollout,
        "split": split,
        "packages": report,
    }
    reason = Reason.TARGETING_MATCH if rule.split is None else Reason.SPLIT
    return entry, None if package is None else Served(reason, rule.id, package), refusals


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _tree(node: Node, facts: Facts) -> dict[str, Any]:
    if isinstance(node, Leaf):
        value = actual(node, facts)
        wanted = list(node.value) if isinstance(node.value, tuple) else node.value
        return {"attr": node.attr, "op": node.op, "value": wanted, "actual": value, "result": node.test(value)}
    if isinstance(node, Not):
        part = _tree(node.part, facts)
        return {"not": part, "result": not part["result"]}
    parts = [_tree(part, facts) for part in node.parts]
    results = [part["result"] for part in parts]
    if isinstance(node, All):
        return {"all": parts, "result": all(results)}
    assert isinstance(node, AnyOf)
    return {"any": parts, "result": any(results)}


def _option(option: Option, facts: Facts) -> tuple[list[dict[str, Any]], Package | None, list[Refused]]:
    """Return the report of each package, the package that is served, and the refusals of those that cannot run."""
    if option.missing is not None:
        gone = option.missing
        check = {"condition": gone.condition, "needed": gone.needed, "reported": gone.reported, "result": False}
        entry = {
            "model_id": gone.model_id,
            "version": gone.version,
            "variant": gone.variant,
            "digest": None,
            "runnable": False,
            "chosen": False,
            "checks": [check],
            "not_checked": [],
        }
        return [entry], None, [gone]
    report, chosen, refusals = [], None, []
    for package in option.packages:
        found = checks(package, facts)
        failing = next((check for check in found if check.result is False), None)
        if failing is not None:
            refusals.append(refused(package, failing))
        picked = failing is None and chosen is None
        if picked:
            chosen = package
        report.append(
            {
                "model_id": package.model_id,
                "version": package.version,
                "variant": package.variant,
                "digest": package.digest,
                "runnable": failing is None,
                "chosen": picked,
                "checks": [check._asdict() for check in found if check.result is not None],
                "not_checked": [{"condition": check.condition, "needed": check.needed} for check in found if check.result is None],
            }
        )
    return report, chosen, refusals
