"""What is kept, what is dropped, and what is sent again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latebind.device.agent import DeviceAgent
from latebind.errors import ServerUnreachable
from latebind_proto.telemetry_pb2 import PHASE_STEADY
from tests.sdk.simulator import COLLECTION, Simulator

MakeAgent = Callable[..., DeviceAgent]
X = np.zeros((1, 4), np.float32)


@pytest.fixture
def agent(simulator: Simulator, make_agent: MakeAgent) -> DeviceAgent:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    agent.open(COLLECTION)
    agent.flush()
    assert agent.send().error is None
    simulator.batches.clear()
    simulator.events.clear()
    agent.record(COLLECTION, PHASE_STEADY, 123)
    agent.flush()
    return agent


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_batch_is_kept_until_the_server_has_it(status: int, simulator: Simulator, agent: DeviceAgent) -> None:
    simulator.faults.statuses["/v1/device/telemetry"] = [status] * 2
    simulator.faults.retry_after = "7"
    outcome = agent.send()
    assert outcome.error is not None and outcome.sent == 0
    if status == 503:
        assert outcome.retry_after_s == 7.0
    simulator.faults.statuses.clear()
    assert agent.send().sent == 1
    assert agent.send().sent == 0
    assert sum(simulator.samples().values()) == 1


@pytest.mark.parametrize("status", [400, 413])
def test_what_can_never_be_accepted_is_dropped_and_told(status: int, simulator: Simulator, agent: DeviceAgent) -> None:
    simulator.faults.statuses["/v1/device/telemetry"] = [status]
    outcome = agent.send()
    assert (outcome.sent, outcome.refused, outcome.error) == (0, 1, None)
    agent.record(COLLECTION, PHASE_STEADY, 5)
    agent.flush()
    assert agent.send().sent == 1
    assert [batch.dropped_samples for batch in simulator.batches.values()] == [1]


def test_an_answer_that_was_lost_repeats_the_same_batch(simulator: Simulator, agent: DeviceAgent) -> None:
    accept = simulator.telemetry

    def accept_and_cut(request: object) -> None:
        accept(request)  # type: ignore[arg-type]

    simulator.telemetry = accept_and_cut  # type: ignore[method-assign]
    records = agent._batches.peek()
    agent._api.send_telemetry(records[0].payload)
    assert agent.send().sent == 1
    assert list(simulator.batch_posts.values())[-1] == 2
    assert sum(simulator.samples().values()) == 1


def test_offline_keeps_everything_over_restarts(simulator: Simulator, agent: DeviceAgent, make_agent: MakeAgent) -> None:
    simulator.faults.refuse_connections = True
    for number in range(5):
        agent.record(COLLECTION, PHASE_STEADY, number)
        agent.flush()
    assert isinstance(agent.send().error, ServerUnreachable)
    agent.close(send=True)
    again = make_agent()
    simulator.faults.refuse_connections = False
    assert again.send().sent == 6
    assert sum(simulator.samples().values()) == 6
    assert len(simulator.batches) == 6


def test_one_bad_report_does_not_hold_up_the_others(simulator: Simulator, agent: DeviceAgent) -> None:
    for state in ("assigned", "downloading", "downloaded"):
        agent.report(COLLECTION, state, package="a" * 64)
    simulator.faults.statuses["/v1/device/events"] = [400, 400]
    outcome = agent.send()
    assert (outcome.error, outcome.refused) == (None, 1)
    assert [event["state"] for event in simulator.events] == ["downloading", "downloaded"]
    assert {event["decision_id"] for event in simulator.events} == {agent.updater(COLLECTION).state.decision_id}


def test_closing_sends_what_is_left(simulator: Simulator, agent: DeviceAgent) -> None:
    agent.close()
    assert sum(simulator.samples().values()) == 1
