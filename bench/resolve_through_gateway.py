"""PERF-S1 with the gateway's hop counted: `resolve` through `latebindd gateway` and `latebindd deployer` on PostgreSQL and Kafka.

A: the gateway's port, with a device token; the CPU time is gateway and deployer together. B: the raw ASGI application of S1, which
reads the same body and answers the same bytes. Beside it stands what the hop costs: A against the deployer's own port, in CPU
microseconds per request. The same requests get the same answers on both ways before anything is timed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from bench._cluster import Chain, gateway, service, stores
from bench._deployer import Fleet, deployer
from bench._measure import BUILD, AnswersDiffer, Server, free_port, interleave, load, serving, summarise, versions
from bench.resolve_against_raw_asgi import check_answers, measured, stale
from kit.identity import PRINCIPAL_HEADER
from services.registry.accounts.enrolment.tokens import DeviceTokens

GOALS = {"S1H": "S1 on PostgreSQL and Kafka with the gateway hop counted, against raw ASGI; per CPU second; and the cost of the hop"}
_TARGETS = {"evaluates": 0.80, "valid ETag": 0.88}
FOLDER = BUILD / "deployer-cluster"


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Start them, compare answers, measure in turn."""
    settings = stores()
    port = free_port()
    with (
        deployer(settings, FOLDER) as fleet,
        service("registry", FOLDER, settings) as registry,
        gateway(FOLDER, {"registry": registry, "deployer": fleet.server}) as front,
        serving([sys.executable, "-m", "bench._raw_twin", str(port)], port) as twin,
    ):
        chain = Chain(front.port, front.pid, behind=[fleet.server])
        answers = fleet.first_answers()
        check_answers(fleet, answers)
        tokens = device_tokens(fleet)
        etags = [etag for _, etag, _ in answers]
        asked: dict[str, Sequence[str | None]] = {
            "evaluates": [stale(etag) for etag in etags],
            "valid ETag": etags,
            "signed 200": [None] * len(etags),
        }
        ways = {
            name: (
                [through_gateway(fleet.request(number, etag), tokens[number]) for number, etag in enumerate(given)],
                [fleet.request(number, etag) for number, etag in enumerate(given)],
            )
            for name, given in asked.items()
        }
        parts = [_part(name, chain, twin, *ways[name], seconds) for name in _TARGETS]
        hops = {name: _hop(chain, fleet.server, *ways[name], seconds, "200" if name == "signed 200" else "304") for name in asked}
    return {"parts": parts, "cpu_us_per_request": hops}


def device_tokens(fleet: Fleet) -> list[str]:
    """Return a token per device, as the registry issues them."""
    issuer = DeviceTokens((FOLDER / "secrets" / "device-tokens.key").read_bytes(), timedelta(hours=2))
    return [issuer.issue("acme", one["install_id"], datetime.now(UTC))[0] for one in fleet.devices]


def through_gateway(request: bytes, token: str) -> bytes:
    """Return the request as a device sends it: a token where the gateway puts the sealed principal."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(PRINCIPAL_HEADER)]
    return b"\r\n".join([*lines, f"authorization: Bearer {token}".encode()]) + b"\r\n\r\n" + body


def _part(name: str, chain: Server, twin: Server, ours: list[bytes], plain: list[bytes], seconds: float) -> dict[str, Any]:
    bodies: dict[str, set[str]] = {"a": set(), "b": set()}

    def one(side: str, server: Server, requests: list[bytes]) -> float:
        done = measured(server, requests, seconds, "304")
        bodies[side].add(done.bodies)
        return done.per_cpu_second

    one("a", chain, ours)
    one("b", twin, plain)  # warm
    pairs = interleave(lambda: one("a", chain, ours), lambda: one("b", twin, plain))
    if bodies["a"] != bodies["b"]:
        raise AnswersDiffer("status and body of some answers differ")
    return summarise(
        pairs,
        better="higher",
        target=_TARGETS[name],
        unit="requests/CPU-s",
        a={"name": "gateway + deployer", "versions": versions("uvicorn", "httptools", "uvloop", "msgspec", "httpx2", "mmh3")},
        b={"name": "raw ASGI on uvicorn", "versions": versions("uvicorn", "httptools", "uvloop")},
        equality="first answers equal decisions made from the documents; all answers 304, status and body equal on both sides",
        name=name,
        backend="PostgreSQL, Kafka; gateway and deployer on one core, device tokens, rate limiter on",
    )


def _hop(chain: Chain, direct: Server, ours: list[bytes], plain: list[bytes], seconds: float, status: str) -> dict[str, float]:
    """Return CPU microseconds per request: alone, through the gateway, and the difference; medians of interleaved runs."""

    def one(server: Server, requests: list[bytes]) -> float:
        done = load(server, requests, seconds=seconds)
        if set(done.statuses) != {status}:
            raise AnswersDiffer(f"expected {status} only, got {done.statuses}")
        return 1e6 / done.per_cpu_second

    pairs = interleave(lambda: one(chain, ours), lambda: one(direct, plain), pairs=5)
    return {
        "through_gateway": round(statistics.median(pair.a for pair in pairs), 1),
        "deployer_alone": round(statistics.median(pair.b for pair in pairs), 1),
        "hop": round(statistics.median(pair.a - pair.b for pair in pairs), 1),
    }
