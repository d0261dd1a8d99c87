"""PERF-R3: an edited rule live, among 100,000 rules, against compiling all of them.

A is what a publish does to memory: the document of the touched collection is checked, compiled and bound, its reference swapped. B does
the same for every collection. Both end with the same answers. The rules stand in 100 collections of 1,000.
"""

from __future__ import annotations

import copy
import gc
import random
import time
from typing import Any

from bench._measure import SEED, AnswersDiffer, Pair, pairs_wanted, summarise
from bench._rules import bound, catalogue, device, document
from services.deployer.binding import Bound, decide
from services.deployer.facts import facts_of
from services.deployer.snapshot import Live, Snapshot

GOALS = {"R3": "edited rule live among 10⁵ rules against a full compile (≤ 1/50)"}
_COLLECTIONS = 100
_RULES = 1_000


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Edit a rule of another collection each time; every pair makes the same edit on both sides."""
    rng = random.Random(SEED)
    found = catalogue()
    documents = {f"c{number}": document(rng, _RULES) for number in range(_COLLECTIONS)}
    live = Snapshot()
    for name, content in documents.items():
        live.swap("acme", name, Live(bound(content, found, collection=name), 0, ""))
    gc.freeze()
    devices = [(facts_of(one), one["install_id"]) for one in (device(rng, _RULES) for _ in range(20))]
    pairs = []
    for number in range(pairs_wanted()):
        name = f"c{rng.randrange(_COLLECTIONS)}"
        edited = copy.deepcopy(documents[name])
        edited["rules"][rng.randrange(_RULES)]["serve"]["version"] = rng.randint(1, 3)
        documents[name] = edited
        start = time.perf_counter()
        live.swap("acme", name, Live(bound(edited, found, collection=name), number + 1, ""))
        one = time.perf_counter() - start
        start = time.perf_counter()
        everything = Snapshot()
        for other, content in documents.items():
            everything.swap("acme", other, Live(bound(content, found, collection=other), 0, ""))
        pairs.append(Pair(one * 1e3, (time.perf_counter() - start) * 1e3))
        _same(_bounds(live, documents), _bounds(everything, documents), devices)
    return summarise(
        pairs,
        better="lower",
        target=1 / 50,
        unit="ms",
        a={"name": "check, compile, bind and swap one collection"},
        b={"name": "the same for all collections"},
        equality="after each pair all collections answer 20 devices alike on both sides",
        rules=_COLLECTIONS * _RULES,
    )


def _bounds(snapshot: Snapshot, names: Any) -> list[Bound]:
    found = [snapshot.find("acme", name) for name in names]
    return [live.bound for live in found if live is not None]


def _same(one: list[Bound], other: list[Bound], devices: list[Any]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        for facts, install in devices:
            if str(decide(mine, facts, install)) != str(decide(theirs, facts, install)):
                raise AnswersDiffer("the touched and the full compile answer differently")
