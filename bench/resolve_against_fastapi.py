"""PERF-S2: the evaluating `resolve` of S1 against a FastAPI twin: pydantic, one async dependency, the same rules and answers.

Ours is `latebindd deployer` with all its workers; the twin decides with the same code, signs and records nothing.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from bench._deployer import deployer
from bench._measure import BUILD, AnswersDiffer, Server, free_port, interleave, serving, summarise, versions
from bench.resolve_against_raw_asgi import check_answers, measured, stale

GOALS = {"S2": "the evaluating resolve against a FastAPI twin (≥ 3); per CPU second"}


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Start both, compare answers, measure in turn."""
    port = free_port()
    with deployer() as fleet:
        documents = BUILD / "fastapi-twin.json"
        documents.write_text(json.dumps(fleet.collections))
        key = BUILD / "deployer" / "secrets" / "gateway.key"
        command = [sys.executable, "-m", "bench._fastapi_twin", str(port), str(documents), str(key)]
        with serving(command, port) as twin:
            answers = fleet.first_answers()
            check_answers(fleet, answers)
            requests = [fleet.request(number, stale(etag)) for number, (_, etag, _) in enumerate(answers)]
            bodies: dict[str, set[str]] = {"a": set(), "b": set()}

            def one(side: str, server: Server) -> float:
                done = measured(server, requests, seconds, "304")
                bodies[side].add(done.bodies)
                return done.per_cpu_second

            one("a", fleet.server)
            one("b", twin)  # warm
            pairs = interleave(lambda: one("a", fleet.server), lambda: one("b", twin))
            if bodies["a"] != bodies["b"]:
                raise AnswersDiffer("status and body of some answers differ")
    return summarise(
        pairs,
        better="higher",
        target=3.0,
        unit="requests/CPU-s",
        a={"name": "latebindd deployer", "versions": versions("uvicorn", "msgspec", "mmh3")},
        b={"name": "FastAPI twin", "versions": versions("fastapi", "pydantic", "uvicorn")},
        equality="first answers equal decisions made from the documents; all answers 304, status and body equal on both sides",
        backend="SQLite, local log, workers running; no rate limiter, no gateway",
    )
