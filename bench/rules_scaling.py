"""PERF-R2: a median decision among 1,000,000 rules in 1,000 collections against 10,000 in 100, in one process.

Rules are built as values (a million JSON documents would only measure the parser), compiled and bound as when they are published.
The smaller collections know fewer systems-on-chip, so that rules serve about as many devices on both sides. Guard: at least 1,000
decisions of each size equal a linear scan. Each block decides random (collection, device) pairs, so that caches are as cold as a
server's.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from typing import Any

from bench._measure import SEED, AnswersDiffer, interleave, summarise, versions
from bench._rules import COUNTRIES, LEVELS, SOCS, VERSIONS, catalogue, device
from services.deployer.binding import Bound, Served, bind, compile_rules, decide
from services.deployer.facts import facts_of
from services.deployer.predicates import All, Leaf, matches
from services.deployer.rules import Rule, Rules, Target, Window

GOALS = {"R2": "median decision with 10⁶ rules in 1,000 collections against 10⁴ in 100 (≤ 3.0)"}
_SIZES = {"a": (1_000, 1_000), "b": (100, 100)}
_DEVICES = 400
_CHECKED = 1_000
_BLOCK = 2_000


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Build both, compare each with a linear scan, measure in turn."""
    rng = random.Random(SEED)
    found = catalogue()
    built: dict[str, list[Bound]] = {}
    compile_us: dict[str, float] = {}
    asked: dict[str, list[Any]] = {}
    for side, (collections, rules) in _SIZES.items():
        socs = SOCS[: rules // 5]
        leaves = _leaves(socs)
        devices = [device(rng, 1_000) for _ in range(_DEVICES)]
        for one in devices:
            one["device"]["soc"] = rng.choice(socs)
        asked[side] = [(facts_of(one), one["install_id"]) for one in devices]
        start = time.perf_counter()
        built[side] = [
            bind(compile_rules(_rules(rng, rules, leaves)), found, collection=f"c{number}", revision=1, content="x").at(0.0)
            for number in range(collections)
        ]
        compile_us[side] = (time.perf_counter() - start) / (collections * rules) * 1e6
    gc.freeze()
    served = {side: _check(rng, bounds, asked[side]) for side, bounds in built.items()}
    pairs = interleave(lambda: _median_us(rng, built["a"], asked["a"], seconds), lambda: _median_us(rng, built["b"], asked["b"], seconds))
    return summarise(
        pairs,
        better="lower",
        target=3.0,
        unit="µs/decision",
        a={"name": "10⁶ rules, 1,000 collections", "compile_us_per_rule": compile_us["a"], "versions": versions("mmh3")},
        b={"name": "10⁴ rules, 100 collections", "compile_us_per_rule": compile_us["b"]},
        equality=f"{_CHECKED} decisions of each equal a linear scan ({served['a']} and {served['b']} served by a rule)",
    )


def _leaves(socs: list[str]) -> dict[str, list[Leaf]]:
    """Return predicates to share: what differs between rules is their combination."""
    rng = random.Random(SEED + 1)
    return {
        "soc": [Leaf("device.soc", "in", tuple(rng.sample(socs, 3))) for _ in range(500)],
        "level": [Leaf("os.api_level", "gte", level) for level in LEVELS],
        "country": [Leaf("country", "in", tuple(rng.sample(COUNTRIES, 3))) for _ in range(60)],
        "version": [Leaf("app.version", "semver_gte", version) for version in VERSIONS],
    }


def _rules(rng: random.Random, count: int, leaves: dict[str, list[Leaf]]) -> Rules:
    rules = [
        Rule(
            f"r{number}",
            All(tuple(rng.choice(leaves[name]) for name in ("soc", "level", "country", "version"))),
            Window(),
            None,
            (Target("yolo", rng.randint(1, 3)),),
            None,
        )
        for number in range(count)
    ]
    return Rules(tuple(rules), None)


def _check(rng: random.Random, bounds: list[Bound], asked: list[Any]) -> int:
    served = 0
    for _ in range(_CHECKED):
        bound, (facts, install) = rng.choice(bounds), rng.choice(asked)
        answer = decide(bound, facts, install)
        first = next((rule.id for rule in bound.compiled.rules.rules if matches(rule.when, facts)), None)
        if (answer.rule_id if isinstance(answer, Served) else None) != first:
            raise AnswersDiffer(f"the index says {answer}, a linear scan {first}")
        served += first is not None
    return served


def _median_us(rng: random.Random, bounds: list[Bound], asked: list[Any], seconds: float) -> float:
    """Return the median over blocks of the time per decision."""
    blocks = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        work = [(rng.choice(bounds), *rng.choice(asked)) for _ in range(_BLOCK)]
        start = time.perf_counter()
        for bound, facts, install in work:
            decide(bound, facts, install)
        blocks.append((time.perf_counter() - start) / _BLOCK * 1e6)
    return statistics.median(blocks)
