"""What devices cost: CPU seconds of gateway and service per 1,000 requests, on PostgreSQL and Kafka (docs/capacity.md).

Resolves: with a valid ETag (304), evaluated (304), and signed (200, with its record in the log). Telemetry: a batch of 100 samples that
is acknowledged when Kafka has it (202). Every answer's status is asserted. It compares nothing, so it has no goal to meet.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench._cluster import Chain, gateway, service, stores
from bench._deployer import Fleet, deployer
from bench._measure import SEED, AnswersDiffer, Server, http_request, load
from bench.resolve_against_raw_asgi import check_answers, stale
from bench.resolve_through_gateway import FOLDER, device_tokens, through_gateway
from bench.telemetry_ingest import SAMPLES, _record
from latebind_proto.events_pb2 import TelemetryReceived

GOALS = {"U1": "CPU seconds of gateway and service per 1,000 device requests, on PostgreSQL and Kafka"}
_ROUNDS = 5


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Start gateway, deployer and telemetry's API, and measure one kind of request after the other, several times."""
    settings = stores()
    with (
        deployer(settings, FOLDER) as fleet,
        service("registry", FOLDER, settings) as registry,
        service("telemetry", FOLDER, settings, "--only", "api") as telemetry,
        gateway(FOLDER, {"registry": registry, "deployer": fleet.server, "telemetry": telemetry}) as front,
    ):
        answers = fleet.first_answers()
        check_answers(fleet, answers)
        tokens = device_tokens(fleet)
        etags = [etag for _, etag, _ in answers]

        def resolves(given: Sequence[str | None]) -> list[bytes]:
            return [through_gateway(fleet.request(number, etag), tokens[number]) for number, etag in enumerate(given)]

        kinds: dict[str, tuple[Server, list[bytes], str]] = {
            "resolve, valid ETag": (fleet.server, resolves(etags), "304"),
            "resolve, evaluated": (fleet.server, resolves([stale(etag) for etag in etags]), "304"),
            "resolve, signed": (fleet.server, resolves([None] * len(etags)), "200"),
            f"telemetry batch of {SAMPLES}": (telemetry, _batches(fleet, tokens), "202"),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for _ in range(_ROUNDS):
            for name, (behind, requests, status) in kinds.items():
                found[name].append(_cost(front, behind, requests, status, seconds))
    costs = {
        name: {
            "gateway": round(statistics.median(gateway_s for gateway_s, _ in rounds), 4),
            "service": round(statistics.median(service_s for _, service_s in rounds), 4),
        }
        for name, rounds in found.items()
    }
    return {"cpu_seconds_per_1000": costs, "batch_bytes": len(_batch(random.Random(SEED), np.random.default_rng(SEED)))}


def _cost(front: Server, behind: Server, requests: list[bytes], status: str, seconds: float) -> tuple[float, float]:
    """Return CPU seconds per 1,000 requests, of the gateway and of the service."""
    chain = Chain(front.port, front.pid, behind=[behind])
    before = front.cpu_seconds(), behind.cpu_seconds()
    done = load(chain, requests, seconds=seconds)
    if set(done.statuses) != {status}:
        raise AnswersDiffer(f"expected {status} only, got {done.statuses}")
    thousands = done.requests / 1000
    return (front.cpu_seconds() - before[0]) / thousands, (behind.cpu_seconds() - before[1]) / thousands


def _batch(rng: random.Random, numbers: np.random.Generator) -> bytes:
    return TelemetryReceived.FromString(_record(rng, numbers)).body


def _batches(fleet: Fleet, tokens: Sequence[str]) -> list[bytes]:
    rng, numbers = random.Random(SEED), np.random.default_rng(SEED)
    return [
        http_request(
            "POST",
            "/v1/device/telemetry",
            headers={"authorization": f"Bearer {token}", "content-type": "application/x-protobuf", "content-encoding": "zstd"},
            body=_batch(rng, numbers),
        )
        for token in tokens
    ]
