"""PERF-S1: `resolve` against a raw ASGI application on uvicorn that reads the same body and answers the same bytes.

The server is `latebindd deployer` itself with all its workers, on its own port, SQLite and the local log behind it; the principal
header comes sealed as the gateway seals it and is found in the bounded cache. 10,000 rules in 10 collections, 200 devices. Two parts:
an ETag that makes it evaluate and then answer 304, and a valid ETag. The cost of a 200 with a fresh signature and its record in the
log is printed beside. The figure is requests per CPU second of the server.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from bench._deployer import Fleet, deployer
from bench._measure import AnswersDiffer, Load, Server, free_port, interleave, load, serving, summarise, versions
from bench._rules import bound, catalogue
from services.deployer.binding import Served, decide
from services.deployer.facts import facts_of

GOALS = {"S1": "resolve that evaluates and ends in 304 (≥ 0.80) and with a valid ETag (≥ 0.88), against raw ASGI; per CPU second"}
_TARGETS = {"evaluates": 0.80, "valid ETag": 0.88}


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Start both, compare answers, measure in turn."""
    port = free_port()
    with deployer() as fleet, serving([sys.executable, "-m", "bench._raw_twin", str(port)], port) as twin:
        answers = fleet.first_answers()
        check_answers(fleet, answers)
        etags = [etag for _, etag, _ in answers]
        asked = {
            "evaluates": [fleet.request(number, stale(etag)) for number, etag in enumerate(etags)],
            "valid ETag": [fleet.request(number, etag) for number, etag in enumerate(etags)],
        }
        parts = [_part(name, fleet.server, twin, requests, seconds) for name, requests in asked.items()]
        fresh = load(fleet.server, [fleet.request(number, None) for number in range(len(etags))], seconds=seconds)
    return {"parts": parts, "signed_200_per_cpu_second": fresh.per_cpu_second, "signed_200_statuses": fresh.statuses}


def stale(etag: str) -> str:
    """Return an ETag of another epoch and request for the same package: the server must evaluate, and answers 304."""
    return f'"{"0" * 16}.{"0" * 16}.{etag.rpartition(".")[2]}'


def check_answers(fleet: Fleet, answers: list[tuple[int, str, bytes]]) -> None:
    """Compare every first answer with a decision made here from the same documents. Raises `AnswersDiffer`."""
    found = catalogue()
    names = list(fleet.collections)
    rules = [bound(fleet.collections[name], found) for name in names]
    for number, (status, _, body) in enumerate(answers):
        one = fleet.devices[number]
        expected = decide(rules[number % len(rules)], facts_of(one), one["install_id"])
        assert isinstance(expected, Served), "every collection has a default that runs everywhere"
        answer = json.loads(body)
        if status != 200 or (answer["rule_id"], answer["package"]["version"]) != (expected.rule_id, expected.package.version):
            raise AnswersDiffer(f"device {number}: {status} {body[:200]!r} instead of {expected}")


def measured(server: Server, requests: list[bytes], seconds: float, status: str) -> Load:
    """Run one load and see that every answer had the expected status."""
    done = load(server, requests, seconds=seconds)
    if set(done.statuses) != {status}:
        raise AnswersDiffer(f"expected {status} only, got {done.statuses}")
    return done


def _part(name: str, ours: Server, twin: Server, requests: list[bytes], seconds: float) -> dict[str, Any]:
    bodies: dict[str, set[str]] = {"a": set(), "b": set()}
    wall: dict[str, list[float]] = {"a": [], "b": []}

    def one(side: str, server: Server) -> float:
        done = measured(server, requests, seconds, "304")
        bodies[side].add(done.bodies)
        wall[side].append(done.per_second)
        return done.per_cpu_second

    one("a", ours)
    one("b", twin)  # warm
    pairs = interleave(lambda: one("a", ours), lambda: one("b", twin))
    if bodies["a"] != bodies["b"]:
        raise AnswersDiffer("status and body of some answers differ")
    return summarise(
        pairs,
        better="higher",
        target=_TARGETS[name],
        unit="requests/CPU-s",
        a={"name": "latebindd deployer", "versions": versions("uvicorn", "httptools", "uvloop", "msgspec", "mmh3")},
        b={"name": "raw ASGI on uvicorn", "versions": versions("uvicorn", "httptools", "uvloop")},
        equality="first answers equal decisions made from the documents; all answers 304, status and body equal on both sides",
        name=name,
        backend="SQLite, local log, workers running; no rate limiter, no gateway",
        requests_per_second={side: max(values) for side, values in wall.items()},
    )
