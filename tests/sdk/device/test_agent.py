"""Many devices in one process, driven by hand, as `latebind simulate-fleet` does."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from latebind._transport import HttpTransport
from latebind.device.agent import DeviceAgent
from latebind.device.decision import PollResult
from latebind.device.engines import Engine
from latebind.errors import LatebindError
from latebind_proto.telemetry_pb2 import FAILURE_PHASE_LOAD, PHASE_STEADY
from tests.sdk.conftest import quick
from tests.sdk.simulator import ACCOUNT, COLLECTION, ENROLMENT_KEY, Simulator


class OldRuntime:
    """An engine by its description only: a simulated device does not run anything."""

    name, version, max_ir, max_opset = "onnxruntime", "1.10.0", 8, 15

    def load(self, *_: object, **__: object) -> object:
        raise AssertionError("a light device loads nothing")


def test_a_fleet_of_light_devices_shares_a_transport(simulator: Simulator, tmp_path: Path) -> None:
    simulator.assign(simulator.add_adder(1))
    transport = HttpTransport()
    threads = threading.active_count()
    engines: dict[str, Engine] = {"onnxruntime": OldRuntime()}  # type: ignore[dict-item]
    fleet = [
        DeviceAgent(
            server=simulator.url,
            account=ACCOUNT,
            cache_dir=tmp_path / str(number),
            enrolment_key=ENROLMENT_KEY,
            context={"device": {"model": f"kind {number % 8}"}, "os": {"name": "android", "version": "16"}},
            transport=transport,
            engines=engines,
            rng=random.Random(number),
            options=quick(install_files=False),
        )
        for number in range(20)
    ]
    for number, agent in enumerate(fleet):
        outcome = agent.poll_once(COLLECTION)
        assert (outcome.result, outcome.reason, outcome.rule_id) == (PollResult.SWITCHED, "TARGETING_MATCH", "r1")
        assert outcome.package is not None and outcome.package.version == 1
        for run in range(number):
            agent.record(COLLECTION, PHASE_STEADY, 1000 + run)
        agent.fail(COLLECTION, FAILURE_PHASE_LOAD, "LOAD_FAILED")
        agent.flush()
        assert agent.send().error is None
        assert agent.poll_once(COLLECTION).result is PollResult.UNCHANGED
    assert simulator.blob_bytes_sent == 0
    assert len(simulator.installs) == 20
    assert simulator.samples() == {(1, 3): sum(range(20))}
    assert len(simulator.failures()) == 20
    assert {context["runtimes"][0]["version"] for context in simulator.contexts} == {"1.10.0"}
    assert simulator.states().count("running") == 20
    assert threading.active_count() <= threads + 1 + len(fleet)
    for agent in fleet:
        agent.close()
    transport.close()


def test_measuring_needs_something_that_is_installed(simulator: Simulator, tmp_path: Path) -> None:
    with (
        DeviceAgent(server=simulator.url, account=ACCOUNT, cache_dir=tmp_path, engines={}) as agent,
        pytest.raises(LatebindError) as caught,
    ):
        agent.record(COLLECTION, PHASE_STEADY, 5)
    assert caught.value.code == "NOT_INSTALLED"


@pytest.mark.parametrize("account", ["", "..", "a/b", "a b", "x" * 200])
def test_an_account_is_a_name(account: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="account"):
        DeviceAgent(server="http://localhost", account=account, cache_dir=tmp_path)
