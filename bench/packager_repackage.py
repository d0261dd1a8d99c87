"""PERF-P3: packaging unchanged input again against packaging it for the first time, each a whole `Packer.pack` with blobs and signature."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench._measure import SEED, AnswersDiffer, Pair, pairs_wanted, summarise, versions
from bench._onnx import image_network
from kit.clock import SystemClock
from kit.db.migrate import migrate
from kit.metrics import KIT_METRICS, PrometheusMetrics
from kit.ports import PortSettings, open_ports
from services.packager.domain import Quota
from services.packager.environments import Environments
from services.packager.manifest import Identity
from services.packager.packing import Packer
from services.packager.results import Results
from services.packager.sandbox import Limits, open_sandbox
from services.packager.service import PackagerService
from services.packager.signing import open_signer

GOALS = {"P3": "re-package unchanged input against a cold run (≤ 0.02)"}


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Package the same model for an account that never saw it, and again for the same account."""
    return asyncio.run(_run())


async def _run() -> dict[str, Any]:
    graph = image_network(seed=SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clock, metrics = SystemClock(), PrometheusMetrics(*KIT_METRICS)
        async with open_ports(PortSettings(data_dir=folder), ["packager"], clock=clock, metrics=metrics) as ports:
            own = ports["packager"]
            await migrate(own.database, "services.packager")
            signer = open_signer("", own_key=folder / "package.key")
            service = PackagerService(own.database, signer, clock, Quota())
            async with open_sandbox(folder / "scratch", Limits(), Environments(folder / "environments"), warm_s=0) as sandbox:
                packer = Packer(own.blobs, signer, sandbox, Results(service, own.blobs, {"bench": "1"}), "bench")

                async def pack(account: str) -> tuple[float, list[str]]:
                    body = {
                        "variants": [{"files": [{"path": "model.onnx", "sha256": hashlib.sha256(graph).hexdigest(), "size": len(graph)}]}]
                    }
                    identity = Identity(account, "m", 1, "job_1", "2026-11-22T10:00:00Z")
                    start = time.perf_counter()
                    packed = await packer.pack(identity, json.dumps(body).encode(), lambda _step, _progress, _text: None)
                    return (time.perf_counter() - start) * 1e3, [one.digest for one in packed.packages]

                pairs = []
                for number in range(pairs_wanted()):
                    account = f"account{number}"
                    await own.blobs.put(account, _chunks(graph))
                    cold, made = await pack(account)
                    again, same = await pack(account)
                    if made != same:
                        raise AnswersDiffer("the second package is not the first one")
                    pairs.append(Pair(again, cold))
                level = sandbox.level
    return summarise(
        pairs,
        better="lower",
        target=0.02,
        unit="ms",
        a={"name": "the same input again", "versions": versions("latebind-server", "onnxruntime")},
        b={"name": "the first time: children that nobody has warmed up for", "sandbox": level},
        equality="both give packages with the same manifest digests",
        graph_bytes=len(graph),
    )


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data
