"""A handle in several hands at once: order, ownership of results and errors, packages on probation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reactivex
from reactivex import operators as ops
from reactivex.subject import Subject

from latebind.device.agent import DeviceAgent
from latebind.device.decision import PollResult
from latebind.device.handle import Handle
from latebind.errors import Closed, InferenceFailed, InvalidInput
from tests.models import OnnxModel, onnx_node, onnx_tensor, onnx_value
from tests.sdk.simulator import COLLECTION, Package, Simulator

MakeAgent = Callable[..., DeviceAgent]


def item(value: float) -> np.ndarray:
    return np.full((1, 4), value, np.float32)


class Listener:
    """Collects what one chain delivers."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.done = threading.Event()

    def on_next(self, result: Any) -> None:
        self.values.append(float(result["y"][0, 0]))
        self.threads.add(threading.current_thread().name)

    def on_error(self, error: Exception) -> None:
        self.error = error
        self.done.set()

    def listen(self, source: Any) -> Any:
        return source.subscribe(self.on_next, self.on_error, self.done.set)


@pytest.fixture
def handle(simulator: Simulator, make_agent: MakeAgent) -> Handle:
    simulator.assign(simulator.add_adder(1))
    return make_agent().open(COLLECTION)


def picky(simulator: Simulator, version: int, *, limit: int) -> Package:
    """y = table[x]: version where x is below `limit`, and a failing run otherwise."""
    table = np.full(limit, version, np.float32)
    model = OnnxModel(
        [onnx_node("Cast", ["x"], ["i"], to=7), onnx_node("Gather", ["t", "i"], ["y"])],
        [onnx_value("x", "float32", [1, 4])],
        [onnx_value("y", "float32", [1, 4])],
        [onnx_tensor("t", table)],
    )
    return simulator.add_package(bytes(model), version=version)


def test_a_chain_gets_its_results_in_order_on_the_handles_thread(handle: Handle) -> None:
    listener = Listener()
    listener.listen(reactivex.from_iterable(range(500)).pipe(ops.map(item), handle.run_inference()))
    assert listener.done.wait(20)
    assert listener.values == [number + 1 for number in range(500)]
    assert listener.threads == {f"latebind-run-{COLLECTION}"}


def test_chains_share_a_handle_and_keep_apart(handle: Handle) -> None:
    listeners, sources = [Listener() for _ in range(4)], [Subject() for _ in range(4)]
    for listener, source in zip(listeners, sources, strict=True):
        listener.listen(source.pipe(handle.run_inference()))

    def feed(index: int) -> None:
        for number in range(300):
            sources[index].on_next(item(1000 * index + number))
        sources[index].on_completed()

    threads = [threading.Thread(target=feed, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for index, listener in enumerate(listeners):
        assert listener.done.wait(20)
        assert listener.values == [1000 * index + number + 1 for number in range(300)]
    for thread in threads:
        thread.join()


def test_an_error_ends_its_own_chain_only(handle: Handle) -> None:
    good, bad, broken_source = Listener(), Listener(), Listener()
    first, second, third = Subject(), Subject(), Subject()
    for listener, source in ((good, first), (bad, second), (broken_source, third)):
        listener.listen(source.pipe(handle.run_inference()))
    first.on_next(item(1))
    second.on_next(item(1))
    second.on_next(np.zeros((1, 5), np.float32))
    second.on_next(item(2))
    third.on_next(item(3))
    third.on_error(RuntimeError("camera unplugged"))
    first.on_next(item(2))
    first.on_completed()
    assert all(listener.done.wait(20) for listener in (good, bad, broken_source))
    assert (good.values, good.error) == ([2, 3], None)
    assert bad.values == [2] and isinstance(bad.error, InvalidInput)
    assert broken_source.values == [4] and str(broken_source.error) == "camera unplugged"


def test_a_subscriber_that_raises_does_not_stop_the_others(handle: Handle) -> None:
    def raise_always(_: object) -> None:
        raise RuntimeError("a bug in the app")

    source: Subject[Any] = Subject()
    listener = Listener()
    source.pipe(handle.run_inference()).subscribe(raise_always)
    listener.listen(source.pipe(handle.run_inference()))
    for number in range(5):
        source.on_next(item(number))
    source.on_completed()
    assert listener.done.wait(20)
    assert listener.values == [1, 2, 3, 4, 5]


def test_keeping_only_the_latest_skips_what_waits(handle: Handle) -> None:
    gate, source, listener = threading.Event(), Subject(), Listener()
    blocked = threading.Event()

    def wait_once(_: object) -> None:
        blocked.set()
        gate.wait(20)

    stage = handle.run_inference(keep_latest=True)
    listener.listen(source.pipe(stage, ops.do_action(wait_once)))
    source.on_next(item(0))
    assert blocked.wait(20)
    for number in range(1, 50):
        source.on_next(item(number))
    gate.set()
    source.on_completed()
    assert listener.done.wait(20)
    assert listener.values == [1, 50]


def test_a_chain_that_is_disposed_hears_nothing_more(handle: Handle) -> None:
    source, listener = Subject(), Listener()
    subscription = listener.listen(source.pipe(handle.run_inference()))
    source.on_next(item(1))
    subscription.dispose()
    source.on_next(item(2))
    other = Listener()
    other.listen(reactivex.just(item(5)).pipe(handle.run_inference()))
    assert other.done.wait(20)
    assert 3 not in listener.values


def test_a_result_may_feed_the_same_handle(handle: Handle) -> None:
    """A pipeline through the handle twice, and a direct call out of a subscriber: no deadlock."""
    listener = Listener()
    twice = reactivex.from_iterable(range(10)).pipe(
        ops.map(item),
        handle.run_inference(),
        ops.map(lambda result: result["y"]),
        handle.run_inference(),
        ops.map(lambda result: handle.run(result["y"])),
    )
    listener.listen(twice)
    assert listener.done.wait(20)
    assert listener.values == [number + 3 for number in range(10)]


def test_closing_finishes_what_is_queued_and_ends_the_chains(handle: Handle) -> None:
    source, listener = Subject(), Listener()
    listener.listen(source.pipe(handle.run_inference()))
    for number in range(100):
        source.on_next(item(number))
    handle.close()
    handle.close()
    assert listener.values == [number + 1 for number in range(100)]
    assert isinstance(listener.error, Closed)
    with pytest.raises(Closed):
        handle.run(item(1))
    late = Listener()
    late.listen(reactivex.just(item(1)).pipe(handle.run_inference()))
    assert isinstance(late.error, Closed)
    assert not [thread for thread in threading.enumerate() if thread.name == f"latebind-run-{COLLECTION}"]


def test_closing_from_a_subscriber_does_not_hang(handle: Handle) -> None:
    done = threading.Event()
    reactivex.just(item(1)).pipe(handle.run_inference()).subscribe(lambda _: (handle.close(), done.set()))
    assert done.wait(20)


def test_a_new_package_that_fails_is_answered_for_and_given_up(simulator: Simulator, make_agent: MakeAgent) -> None:
    """No run fails: the package before answers, and after three failures it is back for good, without a download."""
    agent = make_agent()
    good = simulator.add_adder(1)
    simulator.assign(good)
    handle = agent.open(COLLECTION)
    handle.run(item(0))
    broken = picky(simulator, 2, limit=1)
    simulator.assign(broken)
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    assert handle.info.version == 2
    updates: list[Any] = []
    handle.updates.subscribe(updates.append)
    sent = simulator.blob_bytes_sent
    results = [handle.run(item(5)) for _ in range(4)]
    assert [result.info.version for result in results] == [1, 1, 1, 1]
    assert [float(result["y"][0, 0]) for result in results] == [6, 6, 6, 6]
    assert handle.info.version == 1
    assert [(update.kind, update.info.version, update.previous.version) for update in updates] == [("returned", 1, 2)]
    assert simulator.blob_bytes_sent == sent
    assert agent.poll_once(COLLECTION).result is PollResult.KEPT
    agent.flush()
    agent.send()
    assert simulator.states(broken)[-1] == "failed"
    assert simulator.states(good)[-1] == "returned" == simulator.states()[-1]
    assert simulator.failures().count((5, "INFERENCE_FAILED")) == 3
    assert simulator.samples()[1, 3] >= 3
    agent.close()
    assert make_agent().open(COLLECTION).run(item(5)).info.version == 1


def test_a_package_that_has_answered_stays(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    simulator.assign(simulator.add_adder(1))
    handle = agent.open(COLLECTION)
    simulator.assign(picky(simulator, 2, limit=1))
    agent.poll_once(COLLECTION)
    assert handle.run(item(0)).info.version == 2
    for _ in range(5):
        with pytest.raises(InferenceFailed):
            handle.run(item(5))
    assert handle.info.version == 2


def test_an_input_on_which_both_fail_says_nothing(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    simulator.assign(picky(simulator, 1, limit=2))
    handle = agent.open(COLLECTION)
    handle.run(item(0))
    simulator.assign(picky(simulator, 2, limit=2))
    agent.poll_once(COLLECTION)
    for _ in range(5):
        with pytest.raises(InferenceFailed):
            handle.run(item(7))
    assert handle.run(item(1)).info.version == 2


def test_after_a_restart_the_previous_package_comes_from_the_disk(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    simulator.assign(simulator.add_adder(1))
    agent.open(COLLECTION).run(item(0))
    simulator.assign(picky(simulator, 2, limit=1))
    agent.poll_once(COLLECTION)
    agent.close()
    simulator.faults.refuse_connections = True
    woken: list[str] = []
    agent = make_agent(wake=woken.append)
    handle = agent.open(COLLECTION)
    assert handle.info.version == 2
    for _ in range(3):
        with pytest.raises(InferenceFailed):
            handle.run(item(5))
    assert woken == [COLLECTION]
    agent.updater(COLLECTION).reconcile()
    assert handle.run(item(5)).info.version == 1


def test_starting_without_running_says_nothing_about_a_package(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    simulator.assign(simulator.add_adder(1))
    agent.open(COLLECTION).run(item(0))
    simulator.assign(simulator.add_adder(2))
    agent.poll_once(COLLECTION)
    agent.close()
    for _ in range(6):
        with make_agent() as agent:
            assert agent.open(COLLECTION).info.version == 2


def test_both_handles_of_a_collection_return_together(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    simulator.assign(simulator.add_adder(1))
    first, second = agent.open(COLLECTION), agent.open(COLLECTION)
    first.run(item(0))
    second.run(item(0))
    simulator.assign(picky(simulator, 2, limit=1))
    agent.poll_once(COLLECTION)
    for _ in range(3):
        first.run(item(5))
    assert (first.info.version, second.info.version) == (1, 2)
    agent.updater(COLLECTION).reconcile()
    assert second.run(item(5)).info.version == 1
