"""An attacker between server and device: whatever is changed on the way, the old package goes on and nothing is remembered."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latebind.device.agent import DeviceAgent
from latebind.device.decision import PollResult
from latebind.errors import VerificationFailed
from tests.sdk.simulator import COLLECTION, Key, Simulator, sha256

MakeAgent = Callable[..., DeviceAgent]
X = np.zeros((1, 4), np.float32)


@pytest.fixture
def agent(simulator: Simulator, make_agent: MakeAgent) -> DeviceAgent:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    agent.open(COLLECTION).run(X)
    return agent


def expect_refusal(agent: DeviceAgent, *codes: str) -> None:
    outcome = agent.poll_once(COLLECTION)
    assert outcome.result is PollResult.FAILED, outcome
    assert isinstance(outcome.error, VerificationFailed) and outcome.error.code in codes
    assert agent.updater(COLLECTION).handles[0].run(X).info.version == 1


def assert_verify_reported(simulator: Simulator, agent: DeviceAgent) -> None:
    agent.flush()
    agent.send()
    assert "failed" in simulator.states()
    assert 3 in {phase for phase, _ in simulator.failures()}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"account": "evil"}, "ASSIGNMENT_FOREIGN"),
        ({"install_id": "00000000-0000-4000-8000-000000000000"}, "ASSIGNMENT_FOREIGN"),
        ({"collection": "c_other"}, "ASSIGNMENT_FOREIGN"),
        ({"nonce": "a" * 32}, "ASSIGNMENT_REPLAYED"),
        ({"counter": 5}, "ASSIGNMENT_REPLAYED"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "ASSIGNMENT_EXPIRED"),
        ({"package": "0" * 64}, "ASSIGNMENT_FOREIGN"),
    ],
)
def test_a_signed_assignment_that_is_not_for_this_question(
    change: dict[str, Any], code: str, simulator: Simulator, agent: DeviceAgent
) -> None:
    simulator.assign(simulator.add_adder(2))
    simulator.faults.change_assignment = lambda payload: {**payload, **change}
    before = agent.updater(COLLECTION).state
    expect_refusal(agent, code)
    assert replace(agent.updater(COLLECTION).state, poll_after_s=None) == replace(before, poll_after_s=None)
    assert_verify_reported(simulator, agent)
    simulator.faults.change_assignment = None
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED


def test_an_older_answer_played_again(simulator: Simulator, agent: DeviceAgent) -> None:
    kept: list[dict[str, Any]] = []

    def keep(envelope: dict[str, Any]) -> dict[str, Any]:
        kept.append(envelope)
        return kept[0]

    simulator.faults.change_envelope = keep
    simulator.assign(simulator.add_adder(2))
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    simulator.assign(simulator.add_adder(3))
    outcome = agent.poll_once(COLLECTION)
    assert outcome.error is not None and outcome.error.code == "ASSIGNMENT_REPLAYED"


def test_an_answer_that_names_another_package_than_its_assignment(simulator: Simulator, agent: DeviceAgent) -> None:
    other = simulator.add_adder(9)
    simulator.assign(simulator.add_adder(2))
    simulator.faults.change_answer = lambda answer: {**answer, "package": {**answer["package"], "digest": other.digest}}
    expect_refusal(agent, "ASSIGNMENT_FOREIGN")


def test_a_key_that_this_device_does_not_know(simulator: Simulator, agent: DeviceAgent) -> None:
    simulator.assign(simulator.add_package(b"", version=2, key=Key()))
    expect_refusal(agent, "SIGNATURE_UNTRUSTED")
    simulator.assign(simulator.add_adder(3))
    simulator.assignment_key, good = Key(), simulator.assignment_key
    expect_refusal(agent, "SIGNATURE_UNTRUSTED")
    simulator.assignment_key = good
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED


def test_a_package_of_another_account(simulator: Simulator, agent: DeviceAgent) -> None:
    simulator.assign(simulator.add_package(b"", account="evil", version=2))
    expect_refusal(agent, "FOREIGN_ACCOUNT")
    assert_verify_reported(simulator, agent)


@pytest.mark.parametrize("what", ["manifest", "signature", "graph", "auxiliary", "golden"])
def test_flipped_bits_on_the_way(what: str, simulator: Simulator, make_agent: MakeAgent, agent: DeviceAgent) -> None:
    rng = random.Random(what)
    for version in range(2, 7):
        package = simulator.add_adder(version)
        if what in {"manifest", "signature"}:
            raw = bytearray(getattr(package, what))
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            simulator.faults.packages[package.digest] = replace(package, **{what: bytes(raw)})
        else:
            file = next(file for file in reversed(package.parsed["files"]) if file["role"] == what)
            data = bytearray(simulator.blobs[file["sha256"]])
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            simulator.blobs[file["sha256"]] = bytes(data)
        simulator.assign(package)
        outcome = agent.poll_once(COLLECTION)
        assert outcome.result is PollResult.FAILED and isinstance(outcome.error, VerificationFailed), outcome
        assert agent.updater(COLLECTION).handles[0].run(X).info.version == 1
    assert_verify_reported(simulator, agent)
    assert make_agent(cache_dir=agent._parts.states.parent.parent).open(COLLECTION).run(X).info.version == 1


def test_wrong_bytes_are_asked_for_three_times_and_then_no_more(simulator: Simulator, agent: DeviceAgent) -> None:
    package = simulator.add_adder(2)
    digest = sha256(b"labels of version 2\n")
    good = simulator.blobs[digest]
    simulator.blobs[digest] = b"LABELS of version 2\n"
    simulator.assign(package)
    results = [agent.poll_once(COLLECTION).result for _ in range(5)]
    assert results == [PollResult.FAILED] * 3 + [PollResult.KEPT] * 2
    simulator.blobs[digest] = good
    assert agent.poll_once(COLLECTION).result is PollResult.KEPT


def test_a_304_can_only_keep_what_is_there(simulator: Simulator, agent: DeviceAgent) -> None:
    simulator.assignment_life *= 0.01
    simulator.assign(simulator.add_adder(2))
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    simulator.faults.statuses["/v1/device/collections/"] = [304]
    outcome = agent.poll_once(COLLECTION)
    assert outcome.result is PollResult.FAILED and outcome.error is not None and outcome.error.code == "RESPONSE_INVALID"
