"""A fleet of simulated devices on the real SDK code: each has its own identity, cache, state, verification and telemetry.

Devices share the network connections and a few threads. *Real* ones download, verify, load and run the model with the engines of this
machine; the others do all but the files of the package, and make their latencies up. Everything that a device measures is counted here a
second time, so that the server's figures can be held against it. It prints nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latebind._transport import HttpTransport
from latebind.cli._generate import generate_inputs
from latebind.cli._kinds import Kind, spread
from latebind.device.agent import DeviceAgent
from latebind.device.decision import PollOutcome, PollResult
from latebind.device.engines import Engine, EngineModel, find_engines
from latebind.device.handle import Handle
from latebind.device.manifest import Manifest
from latebind.device.options import DeviceOptions
from latebind.device.state import PackageRef
from latebind.errors import LatebindError, LoadFailed
from latebind_proto.telemetry_pb2 import PHASE_FIRST, PHASE_LOAD, PHASE_STEADY

THREADS = 8
# Devices send what they measured about this often; the SDK's own minute would be long for somebody who watches.
SEND_S = 6.0
# Made-up latencies: log-normal around these milliseconds times the kind's slowness.
_LOAD_MS, _FIRST_MS, _STEADY_MS, _SPREAD = 40.0, 6.0, 3.0, 0.25


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What to simulate. `rate` is inferences per minute, device and collection; `poll_s` overrules the server's advice."""

    server: str
    account: str
    enrolment_key: str
    collections: tuple[str, ...]
    kinds: tuple[Kind, ...]
    devices: int
    real: int
    folder: Path
    rate: float = 60.0
    poll_s: float | None = None
    seed: int = 0


class ClaimedEngine:
    """An engine as the kind reports it. A real device runs the model on the machine's own engine of that name."""

    def __init__(self, runtime: Mapping[str, Any], real: Engine | None) -> None:
        self.name = str(runtime["engine"])
        self.version = str(runtime.get("version", ""))
        self.max_ir: int | None = runtime.get("max_ir")
        self.max_opset: int | None = runtime.get("max_opset")
        self._real = real

    def load(self, manifest: Manifest, graph: bytes, paths: Mapping[str, Path], *, threads: int | None) -> EngineModel:
        """See `Engine.load`."""
        if self._real is None:
            raise LoadFailed(f"this simulated device has no {self.name} to run {manifest.model_id} with")
        return self._real.load(manifest, graph, paths, threads=threads)


@dataclass(slots=True)
class Runs:
    """What one device ran of one package: successful inferences and the microseconds of each phase."""

    package: PackageRef
    collection: str
    load_us: list[int] = field(default_factory=list)
    first_us: list[int] = field(default_factory=list)
    steady_us: list[int] = field(default_factory=list)

    @property
    def inferences(self) -> int:
        """Runs that gave a result."""
        return len(self.first_us) + len(self.steady_us)


class SimulatedDevice:
    """One device: what it is, what it has, and what it counted. Used by one thread at a time."""

    def __init__(
        self, plan: FleetPlan, number: int, kind: Kind, *, real: bool, transport: HttpTransport, engines: Mapping[str, Engine]
    ) -> None:
        self.kind = kind
        self.number = number
        self.real = real
        self.rng = random.Random(f"{plan.seed}/{number}")  # noqa: S311 - simulated behaviour, not a secret
        self.runs: dict[tuple[str, str], Runs] = {}
        self.refusals: dict[str, LatebindError] = {}
        self.failures: Counter[str] = Counter()
        self.failed_inferences = 0
        self.moves: list[tuple[str, PackageRef, PackageRef]] = []
        self.received = 0
        self._handles: dict[str, Handle] = {}
        self._inputs: dict[str, Any] = {}
        self._next_poll: dict[str, float] = {}
        self._send_at = time.monotonic() + self.rng.uniform(0.0, SEND_S)
        claimed = [ClaimedEngine(runtime, engines.get(str(runtime["engine"])) if real else None) for runtime in kind.runtimes]
        context = {**kind.context, "attributes": {**kind.context.get("attributes", {}), "simulated": not real, "kind": kind.name}}
        if kind.groups:
            context["groups"] = list(kind.groups)
        self.agent = DeviceAgent(
            server=plan.server,
            account=plan.account,
            cache_dir=plan.folder / f"{number:05d}-{kind.name}",
            enrolment_key=plan.enrolment_key,
            context=context,
            transport=transport,
            engines={engine.name: engine for engine in claimed},
            rng=self.rng,
            options=DeviceOptions(threads=1, install_files=real, close_timeout_s=0.0),
        )

    def poll(self, collection: str, *, poll_s: float | None) -> None:
        """Ask once what to run, and follow; plan the next time."""
        before = self.agent.current(collection)
        outcome = self._open(collection) if self.real and collection not in self._handles else self.agent.poll_once(collection)
        self._note(collection, outcome, before)
        advised = self.agent.updater(collection).next_delay()
        self._next_poll[collection] = time.monotonic() + (self.rng.uniform(0.5, 1.0) * poll_s if poll_s is not None else advised)

    def is_due(self, collection: str) -> bool:
        """Whether it is time to ask again."""
        return time.monotonic() >= self._next_poll.get(collection, 0.0)

    def infer(self, collection: str, count: int) -> None:
        """Run the model `count` times, or make the measurements up."""
        if not self.real:
            self._pretend(collection, count)
            return
        handle = self._handles.get(collection)
        for _ in range(count if handle is not None else 0):
            assert handle is not None
            info = handle.info
            if info.package not in self._inputs:
                self._inputs[info.package] = generate_inputs(info.inputs, self.rng.randrange(1 << 30))
            try:
                result = handle.run(self._inputs[info.package])
            except LatebindError as error:
                self.failed_inferences += 1
                self.failures[error.code] += 1
                continue
            ran = self._runs(collection, self._ref(result.info))
            (ran.steady_us if ran.first_us else ran.first_us).append(result.latency_us)

    def send(self) -> None:
        """Write what was measured to the buffer and send what the buffer holds."""
        self.agent.flush()
        outcome = self.agent.send()
        if outcome.error is not None:
            self.failures[outcome.error.code] += 1

    def send_if_due(self) -> None:
        """Send, if the last time was long enough ago."""
        if time.monotonic() >= self._send_at:
            self._send_at = time.monotonic() + self.rng.uniform(0.8, 1.2) * SEND_S
            self.send()

    def close(self) -> None:
        """Release the models and the files."""
        self.agent.close(send=False)

    def _open(self, collection: str) -> PollOutcome | None:
        try:
            self._handles[collection] = self.agent.open(collection)
        except LatebindError as error:
            return PollOutcome(
                PollResult.REFUSED if error.code in {"NO_MATCH", "NO_COMPATIBLE_PACKAGE"} else PollResult.FAILED, None, error
            )
        return self.agent.updater(collection).last_outcome

    def _note(self, collection: str, outcome: PollOutcome | None, before: PackageRef | None) -> None:
        now = self.agent.current(collection)
        if outcome is not None:
            self.received += outcome.received
            if outcome.result is PollResult.REFUSED and outcome.error is not None:
                self.refusals[collection] = outcome.error
            elif outcome.result is PollResult.FAILED and outcome.error is not None:
                self.failures[outcome.error.code] += 1
            else:
                self.refusals.pop(collection, None)
        if before is not None and now is not None and before.digest != now.digest:
            self.moves.append((collection, before, now))

    def _pretend(self, collection: str, count: int) -> None:
        ref = self.agent.current(collection)
        if ref is None or collection in self.refusals:
            return
        ran = self._runs(collection, ref)
        if not ran.load_us:
            ran.load_us.append(self._made_up(_LOAD_MS))
            self.agent.record(collection, PHASE_LOAD, ran.load_us[0])
            ran.first_us.append(self._made_up(_FIRST_MS))
            self.agent.record(collection, PHASE_FIRST, ran.first_us[0])
            count -= 1
        for _ in range(count):
            latency_us = self._made_up(_STEADY_MS)
            ran.steady_us.append(latency_us)
            self.agent.record(collection, PHASE_STEADY, latency_us)

    def _made_up(self, typical_ms: float) -> int:
        return round(1000 * typical_ms * self.kind.slowness * self.rng.lognormvariate(0.0, _SPREAD))

    def _runs(self, collection: str, ref: PackageRef) -> Runs:
        return self.runs.setdefault((collection, ref.digest), Runs(ref, collection))

    @staticmethod
    def _ref(info: Any) -> PackageRef:
        return PackageRef(info.package, info.model_id, info.version, info.variant, info.engine)


class Fleet:
    """All devices of a plan. `join`, then `run`, then `finish`."""

    def __init__(self, plan: FleetPlan) -> None:
        self.plan = plan
        self._transport = HttpTransport(max_connections=2 * THREADS)
        engines = find_engines() if plan.real else {}
        kinds = spread(plan.kinds, plan.devices)
        real = _choose_real(kinds, plan.real, frozenset(engines))
        self.devices = [
            SimulatedDevice(plan, number, kind, real=number in real, transport=self._transport, engines=engines)
            for number, kind in enumerate(kinds)
        ]
        self._started = time.monotonic()

    def join(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Enrol every device and let it ask for the first time. Raises what the first contact of any device raised, if none succeeded."""
        self._started = time.monotonic()
        errors: list[LatebindError] = []

        def first_contact(device: SimulatedDevice) -> None:
            try:
                device.agent.enrol()
            except LatebindError as error:
                errors.append(error)
                device.failures[error.code] += 1
                return
            for collection in self.plan.collections:
                device.poll(collection, poll_s=self.plan.poll_s)

        self._each(first_contact, progress)
        if len(errors) == len(self.devices):
            raise errors[0]

    def run(
        self, duration_s: float, stop: threading.Event, *, tick_s: float = 2.0, progress: Callable[[float], None] = lambda share: None
    ) -> None:
        """Run models, ask when it is due, and send, until the time is up or `stop` is set."""
        ends = time.monotonic() + duration_s
        owed = 0.0
        while not stop.is_set() and (left := ends - time.monotonic()) > 0:
            began = time.monotonic()
            owed += self.plan.rate * min(tick_s, left) / 60.0
            count, owed = int(owed), owed - int(owed)
            self._each(lambda device, count=count: self._tick(device, count))  # type: ignore[misc]
            progress(min(1.0, 1.0 - (ends - time.monotonic()) / duration_s))
            stop.wait(max(0.0, min(tick_s - (time.monotonic() - began), ends - time.monotonic())))

    def finish(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Send everything and close all devices."""

        def close(device: SimulatedDevice) -> None:
            device.send()
            device.close()

        self._each(close, progress)
        self._transport.close()

    def _tick(self, device: SimulatedDevice, count: int) -> None:
        for collection in self.plan.collections:
            device.infer(collection, count)
            if device.is_due(collection):
                device.poll(collection, poll_s=self.plan.poll_s)
        device.send_if_due()

    def _each(self, work: Callable[[SimulatedDevice], None], progress: Callable[[int], None] = lambda done: None) -> None:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="latebind-fleet") as pool:
            for done, _ in enumerate(pool.map(work, self.devices), 1):
                progress(done)

    @property
    def wall_s(self) -> float:
        """Seconds since `join` began."""
        return time.monotonic() - self._started


def _choose_real(kinds: Sequence[Kind], wanted: int, engines: frozenset[str]) -> set[int]:
    """The devices that really run models: of as many kinds as possible, and only where an engine of the kind is installed here."""
    able = [number for number, kind in enumerate(kinds) if any(runtime["engine"] in engines for runtime in kind.runtimes)]
    seen: Counter[str] = Counter()
    ranked = []
    for number in able:
        ranked.append((seen[kinds[number].name], number))
        seen[kinds[number].name] += 1
    return {number for _, number in sorted(ranked)[:wanted]}
