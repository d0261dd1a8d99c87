"""One device against the simulated server, driven by hand: what is installed, what is refused, what is reported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latebind.device.agent import DeviceAgent
from latebind.device.decision import PollResult
from latebind.errors import FirstStartOffline, GoldenTestFailed, NoCompatiblePackage, NoMatch
from tests.sdk.simulator import COLLECTION, Simulator

MakeAgent = Callable[..., DeviceAgent]
X = np.arange(4, dtype=np.float32).reshape(1, 4)


def test_first_start_installs_runs_and_reports(simulator: Simulator, make_agent: MakeAgent) -> None:
    package = simulator.add_adder(1)
    simulator.assign(package)
    agent = make_agent()
    handle = agent.open(COLLECTION)
    result = handle.run(X)
    assert np.array_equal(result["y"], X + 1)
    assert (result.info.model_id, result.info.version, result.info.variant) == ("adder", 1, "onnx-fp32")
    assert result.info.package == package.digest
    assert result.info.params == {"C": 1, "labels": "labels.txt"}
    assert handle.load_hyper_param_file("labels") == handle.load_hyper_param_file("labels.txt") == b"labels of version 1\n"
    agent.flush()
    assert agent.send().error is None
    assert simulator.states(package) == ["assigned", "downloading", "downloaded", "verified", "running"]
    assert simulator.samples() == {(1, 1): 1, (1, 2): 1}
    assert simulator.leaked_credentials == 0


def test_a_check_without_news_is_a_304_and_changes_nothing(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    handle = agent.open(COLLECTION)
    assert agent.poll_once(COLLECTION).result is PollResult.UNCHANGED
    assert simulator.contexts[-1]["installed"] == [{"package": f"sha256:{handle.info.package}"}]
    assert {runtime["engine"] for runtime in simulator.contexts[0]["runtimes"]} == {"onnxruntime", "litert"}


def test_an_update_switches_open_handles(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    first, second = agent.open(COLLECTION), agent.open(COLLECTION)
    updates: list[object] = []
    first.updates.subscribe(updates.append)
    simulator.assign(simulator.add_adder(2))
    outcome = agent.poll_once(COLLECTION)
    assert outcome.result is PollResult.SWITCHED
    assert [float(handle.run(X)["y"][0, 0]) for handle in (first, second)] == [2.0, 2.0]
    assert [(update.kind, update.info.version, update.previous.version) for update in updates] == [("switched", 2, 1)]


def test_a_return_by_the_operator_needs_no_download(simulator: Simulator, make_agent: MakeAgent) -> None:
    one, two = simulator.add_adder(1), simulator.add_adder(2)
    agent = make_agent()
    simulator.assign(one)
    handle = agent.open(COLLECTION)
    simulator.assign(two)
    agent.poll_once(COLLECTION)
    handle.run(X)
    sent = simulator.blob_bytes_sent
    simulator.assign(one)
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    assert handle.run(X).info.version == 1
    assert simulator.blob_bytes_sent == sent


def test_a_failed_golden_test_keeps_the_old_package_and_is_tried_once(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    handle = agent.open(COLLECTION)
    bad = simulator.add_adder(2, golden_constant=7)
    simulator.assign(bad)
    outcome = agent.poll_once(COLLECTION)
    assert outcome.result is PollResult.FAILED and isinstance(outcome.error, GoldenTestFailed)
    assert handle.run(X).info.version == 1
    requests = simulator.requests.copy()
    assert [agent.poll_once(COLLECTION).result for _ in range(3)] == [PollResult.KEPT] * 3
    assert simulator.requests - requests == {f"/v1/device/collections/{COLLECTION}:resolve": 3}
    agent.flush()
    agent.send()
    assert simulator.states(bad).count("failed") == 1
    assert [event["code"] for event in simulator.events if event["state"] == "failed"] == ["GOLDEN_TEST_FAILED"]
    assert (4, "GOLDEN_TEST_FAILED") in simulator.failures()


def test_a_refused_package_is_tried_again_after_another_assignment(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    agent.open(COLLECTION)
    bad = simulator.add_adder(2, golden_constant=7)
    simulator.assign(bad)
    agent.poll_once(COLLECTION)
    simulator.assign(simulator.add_adder(3))
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    simulator.assign(bad)
    assert agent.poll_once(COLLECTION).result is PollResult.FAILED


def test_refusals_reach_the_caller_and_leave_what_runs(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.refuse(409, "NO_COMPATIBLE_PACKAGE", packages=[{"model_id": "adder", "condition": "engine", "needed": "x", "reported": "y"}])
    agent = make_agent()
    with pytest.raises(NoCompatiblePackage) as caught:
        agent.open(COLLECTION)
    assert caught.value.packages[0]["condition"] == "engine"
    simulator.assign(simulator.add_adder(1))
    handle = agent.open(COLLECTION)
    simulator.refuse(404, "NO_MATCH")
    outcome = agent.poll_once(COLLECTION)
    assert outcome.result is PollResult.REFUSED and isinstance(outcome.error, NoMatch)
    assert handle.run(X).info.version == 1


def test_first_start_offline_is_a_clear_error(make_agent: MakeAgent) -> None:
    with pytest.raises(FirstStartOffline, match=r"nothing of the collection 'c_test' is installed yet.*127\.0\.0\.1:1"):
        make_agent(server="http://127.0.0.1:1").open(COLLECTION)


def test_second_start_offline_runs_from_the_cache(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(1))
    with make_agent() as agent:
        agent.open(COLLECTION)
    simulator.faults.refuse_connections = True
    agent = make_agent()
    assert np.array_equal(agent.open(COLLECTION).run(X)["y"], X + 1)
    assert agent.poll_once(COLLECTION).result is PollResult.FAILED


def test_a_device_tells_of_the_packages_of_all_its_collections(simulator: Simulator, make_agent: MakeAgent) -> None:
    packages = {name: simulator.add_adder(version) for version, name in enumerate((COLLECTION, "c_other"), 1)}
    for name, package in packages.items():
        simulator.assign(package, collection=name)
    agent = make_agent()
    for name in (*packages, *packages):
        agent.poll_once(name)
    both = [{"package": f"sha256:{digest}"} for digest in sorted(package.digest for package in packages.values())]
    assert [context["installed"] for context in simulator.contexts[-2:]] == [both, both]
