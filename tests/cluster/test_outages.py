"""Every dependency fails while devices and people go on (SEC-D4, D12): no request past its deadline, every process alive, the
device paths that can answer do, and all is well again within 30 s. The report is printed, one line per dependency and fault.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deploy.chaos import Fault, FaultProxy
from deploy.cluster import Cluster
from deploy.servers import Server
from latebind_proto.telemetry_pb2 import Phase
from tests import real_servers
from tests.cluster.conftest import ClusterApi
from tests.cluster.outage_load import DEVICE_KINDS, KINDS, Load
from tests.e2e.world import World, eventually
from tests.models import onnx_add

pytestmark = pytest.mark.cluster
#: How long each fault lasts.
FAULT_S = float(os.environ.get("LATEBIND_TEST_OUTAGE_S", "4"))
STORES = ("database", "eventlog", "blobs", "olap")
UPSTREAMS = ("registry", "packager", "deployer", "telemetry")
#: The gateway answers devices within 15 s and people within 60 s; what is above it is the clients' own share on a busy machine.
DEVICE_DEADLINE_S, DEADLINE_S = 15.0 + 3.0, 60.0 + 3.0
RECOVERY_S = 30.0
#: What devices cannot have while a dependency is away. Everything else must be answered as always.
MISSING: Mapping[str, frozenset[str]] = {
    "eventlog": frozenset({"ask anew", "telemetry"}),
    "deployer": frozenset({"ask again", "ask anew"}),
    "telemetry": frozenset({"telemetry"}),
}
#: `LATEBIND_TEST_OUTAGES=all` has every fault.
ALL = os.environ.get("LATEBIND_TEST_OUTAGES") == "all"
STORE_FAULTS = (Fault.DOWN, Fault.SLOW, Fault.RESET, Fault.BLACKHOLE) if ALL else (Fault.DOWN, Fault.BLACKHOLE)
UPSTREAM_FAULTS = STORE_FAULTS if ALL else (Fault.BLACKHOLE,)
CASES = [(store, fault) for store in STORES for fault in STORE_FAULTS]
CASES += [(upstream, fault) for upstream in UPSTREAMS for fault in UPSTREAM_FAULTS]


@dataclass
class Stage:
    """A cluster of single processes, each dependency behind a proxy of its own."""

    cluster: Cluster
    proxies: Mapping[str, FaultProxy]
    world: World
    model: str
    collection: str

    @property
    def probes(self) -> Mapping[str, str]:
        return {process.name: f"{process.internal_url}/livez" for process in self.cluster.processes()}


def through(url: str, proxy: FaultProxy) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("outages")
    stores = real_servers.stores()
    targets = {store: urlsplit(getattr(stores, store)).port or 0 for store in STORES}
    with ExitStack() as ends:
        proxies = {store: ends.enter_context(FaultProxy(lambda store=store: targets[store])) for store in ("database", "blobs", "olap")}
        proxies |= {part: ends.enter_context(FaultProxy(lambda part=part: cluster.process(part).ports["public"])) for part in UPSTREAMS}
        # A broker tells its clients where it is, so it has to know its proxy.
        proxies["eventlog"] = ends.enter_context(FaultProxy(lambda: kafka.ports["broker"]))
        kafka = Server("kafka", folder / "kafka", advertised=proxies["eventlog"].port)
        ends.enter_context(kafka)
        stores = replace(stores, eventlog=f"{kafka.url}?partitions=4")
        gateway = {f"LATEBIND_GATEWAY_{part.upper()}_URL": f"http://127.0.0.1:{proxies[part].port}" for part in UPSTREAMS}
        behind = replace(stores, **{store: through(getattr(stores, store), proxies[store]) for store in STORES})
        cluster = Cluster(
            folder / "cluster",
            behind,
            replicas=dict.fromkeys(("registry", "packager", "deployer", "telemetry", "writer", "gateway"), 1),
            overrides={"gateway": gateway},
        )
        ends.enter_context(cluster)
        world = World(ClusterApi(cluster))
        world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
        collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
        yield Stage(cluster, proxies, world, "adder", collection)


async def test_an_outage_of_any_dependency_stays_small(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    load = Load(stage.world, stage.model, stage.collection, stage.probes)
    wrong: list[str] = []
    async with load.running():
        _, unwell = await load.settled(time.monotonic(), within_s=RECOVERY_S)
        assert not unwell
        for dependency, fault in CASES:
            began = time.monotonic()
            stage.proxies[dependency].set(fault)
            await asyncio.sleep(FAULT_S)
            open_connections = stage.proxies[dependency].connections
            stage.proxies[dependency].set(Fault.NONE)
            healed = time.monotonic()
            recovery, unwell = await load.settled(healed, within_s=RECOVERY_S)
            missing = MISSING.get(dependency, frozenset())
            line, found = examined(load, f"{dependency} {fault}", missing, began, recovery, unwell, open_connections)
            with capsys.disabled():
                print(line)
            wrong += found
    assert wrong == []


def examined(
    load: Load, case: str, missing: frozenset[str], began: float, recovery: float, unwell: Sequence[str], connections: int
) -> tuple[str, list[str]]:
    """Return the line of the report, and what does not hold."""
    during = load.since(began)
    worst = max(during, key=lambda one: one.seconds)
    # What began before the fault ended, and a moment of catching up, in which a device may be told to come again.
    failed = [one for one in during if one.kind in DEVICE_KINDS and not one.good]
    kinds = {kind: sum(one.kind == kind for one in failed) for kind in DEVICE_KINDS}
    names = ", ".join(f"{kind} {count}" for kind, count in kinds.items() if count)
    line = (
        f"{case:<22} worst answer {worst.seconds:5.2f} s ({worst.kind}), failed device requests {len(failed)} ({names or 'none'})"
        f" of {sum(one.kind in DEVICE_KINDS for one in during)}, {f'not recovered: {unwell}' if unwell else f'recovery {recovery:.2f} s'}"
    )
    wrong = []
    for kind in KINDS:
        longest = max((one.seconds for one in during if one.kind == kind), default=0.0)
        if longest > (DEVICE_DEADLINE_S if kind in DEVICE_KINDS else DEADLINE_S):
            wrong.append(f"{case}: {kind} took {longest:.1f} s")
    if unwell or recovery > RECOVERY_S:
        wrong.append(f"{case}: not well again {RECOVERY_S:.0f} s later: {', '.join(unwell) or f'took {recovery:.1f} s'}")
    if load.dead:
        wrong.append(f"{case}: not alive: {sorted(set(load.dead))}")
        load.dead.clear()
    if connections > 200:
        wrong.append(f"{case}: {connections} connections were open")
    for one in during:
        if not one.good and one.status not in {503, 504}:
            wrong.append(f"{case}: {one.kind} was answered with {one.status} after {one.seconds:.1f} s")
        if one.kind == "telemetry" and one.status == 503 and not one.retry_after:
            wrong.append(f"{case}: telemetry was refused without Retry-After")
    wrong += [f"{case}: devices were refused: {kind}" for kind in {one.kind for one in failed} - missing]
    return line, wrong


async def test_a_device_keeps_its_measurements_while_the_log_is_away(stage: Stage, tmp_path: Path) -> None:
    before = stage.world.inferences()
    with stage.world.device(tmp_path / "device", stage.world.enrolment_key()) as agent:
        await asyncio.to_thread(agent.enrol)
        outcome = await asyncio.to_thread(agent.poll_once, stage.collection)
        assert agent.current(stage.collection) is not None, outcome
        stage.proxies["eventlog"].set(Fault.DOWN)
        try:
            for _ in range(3):
                agent.record(stage.collection, Phase.PHASE_STEADY, 1000)
                agent.flush()
                assert (await asyncio.to_thread(agent.send)).error is not None
        finally:
            stage.proxies["eventlog"].set(Fault.NONE)

        def sent_all() -> bool:
            outcome = agent.send()
            return outcome.error is None and outcome.sent == 0

        await asyncio.to_thread(eventually, sent_all, within_s=60)
    await asyncio.to_thread(eventually, lambda: stage.world.inferences() >= before + 3, within_s=60)
    assert stage.world.inferences() == before + 3
