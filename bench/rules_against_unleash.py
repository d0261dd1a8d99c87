"""PERF-R1: one decision against Unleash's Rust engine from Python, the same rules as strategies.

Both run in one process (in the peer's environment), blocks in turn, over the same 200 devices. Each of our rules is a strategy with the
same constraints and a 100 % rollout; before timing, "a rule serves" is asserted equal to "the toggle is on" for every device. Ours also
says which rule, which package and that it can run on the device; Unleash only says yes or no. Both get the context as they want it:
ours by section (`facts_of`; its cost is printed beside), Unleash's with properties as texts.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

from bench._measure import ROOT, SEED, AnswersDiffer, best_of_blocks, interleave, pairs_wanted, peer_python, summarise, versions
from bench._rules import bound, catalogue, device, document
from services.deployer.binding import Served, decide
from services.deployer.facts import facts_of

GOALS = {"R1": "evaluator against Unleash's engine: decisions/s with 1,000 rules (≥ 100) and with 10 (≥ 10)"}
_TARGETS = {1_000: 100.0, 10: 10.0}
_DEVICES = 200


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Measure in the peer's environment. Raises `NotRun` when it cannot be installed, `AnswersDiffer` when the two disagree."""
    python = peer_python("unleash", "yggdrasil-engine", "mmh3>=5.3,<6")
    command = [str(python), "-m", "bench.rules_against_unleash", str(seconds), str(pairs_wanted())]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode == 3:
        raise AnswersDiffer(ended.stderr.strip())
    if ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])
    return {"parts": json.loads(ended.stdout)}


def _strategy(rule: dict[str, Any]) -> dict[str, Any]:
    names = {"device.soc": "soc", "os.api_level": "apiLevel", "country": "country", "app.version": "version"}
    constraints = []
    for leaf in rule["when"]["all"]:
        name = names[leaf["attr"]]
        if leaf["op"] == "in":
            constraints.append({"contextName": name, "operator": "IN", "values": leaf["value"]})
        elif leaf["op"] == "gte":
            # "at least" is "not below": Unleash knows greater and less than.
            constraints.append({"contextName": name, "operator": "NUM_LT", "value": str(leaf["value"]), "inverted": True})
        else:
            constraints.append({"contextName": name, "operator": "SEMVER_LT", "value": leaf["value"], "inverted": True})
    parameters = {"rollout": "100", "stickiness": "userId", "groupId": rule["id"]}
    return {"name": "flexibleRollout", "constraints": constraints, "parameters": parameters}


def _context(one: dict[str, Any]) -> dict[str, Any]:
    properties = {
        "soc": one["device"]["soc"],
        "apiLevel": str(one["os"]["api_level"]),
        "country": one["country"],
        "version": one["app"]["version"],
    }
    return {"userId": one["install_id"], "properties": properties}


def _compare(rules: int, seconds: float, pairs: int) -> dict[str, Any]:
    from yggdrasil_engine.engine import UnleashEngine

    rng = random.Random(SEED)
    content = document(rng, rules)
    devices = [device(rng, rules) for _ in range(_DEVICES)]
    ours = bound(content, catalogue())
    engine = UnleashEngine()
    toggle = {"name": "t", "type": "release", "enabled": True, "strategies": [_strategy(rule) for rule in content["rules"]]}
    engine.take_state(json.dumps({"version": 2, "features": [toggle]}))
    ask = getattr(engine, "check_enabled", engine.is_enabled)
    asked = [(facts_of(one), one["install_id"]) for one in devices]
    contexts = [_context(one) for one in devices]
    served = [isinstance(decide(ours, facts, install), Served) for facts, install in asked]
    enabled = [bool(getattr(answer := ask("t", context), "is_enabled", answer)) for context in contexts]
    if served != enabled:
        raise AnswersDiffer(f"{sum(one != other for one, other in zip(served, enabled, strict=True))} of {_DEVICES} devices differ")

    def our_block() -> None:
        for facts, install in asked:
            decide(ours, facts, install)

    def their_block() -> None:
        for context in contexts:
            ask("t", context)

    def per_second(block: Any) -> float:
        return _DEVICES / best_of_blocks(block, seconds=seconds, block=1)

    measured = interleave(lambda: per_second(our_block), lambda: per_second(their_block), pairs=pairs)
    with_facts = best_of_blocks(lambda: [decide(ours, facts_of(one), one["install_id"]) for one in devices], seconds=seconds, block=1)
    return summarise(
        measured,
        better="higher",
        target=_TARGETS[rules],
        unit="decisions/s",
        a={"name": "services.deployer.binding.decide", "versions": versions("mmh3")},
        b={"name": f"yggdrasil-engine {ask.__name__}", "versions": versions("yggdrasil-engine")},
        equality=f"{_DEVICES} devices: a rule serves ⇔ the toggle is on; {sum(served)} are served",
        name=f"{rules} rules",
        decision_us=1e6 / max(pair.a for pair in measured),
        peer_us=1e6 / max(pair.b for pair in measured),
        with_reading_the_context_us=with_facts / _DEVICES * 1e6,
    )


def _main(seconds: float, pairs: int) -> int:
    try:
        json.dump([_compare(rules, seconds, pairs) for rules in _TARGETS], sys.stdout)
    except AnswersDiffer as difference:
        sys.stderr.write(str(difference))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main(float(sys.argv[1]), int(sys.argv[2])))
