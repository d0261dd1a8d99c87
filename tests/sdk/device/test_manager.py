"""The manager with its threads: delivery, background updates under fire, starting offline, leaving nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reactivex import operators as ops
from reactivex.subject import Subject

from latebind import Handle, Manager, ModelConfig
from latebind.device.decision import PollResult
from latebind.errors import Closed, CollectionNotFound, FirstStartOffline, LatebindError
from tests.sdk.conftest import quick
from tests.sdk.simulator import ACCOUNT, COLLECTION, ENROLMENT_KEY, Simulator

MakeManager = Callable[..., Manager]
CONFIG = ModelConfig(account=ACCOUNT, collection=COLLECTION)
X = np.zeros((1, 4), np.float32)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def latebind_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("latebind-")]


def test_exactly_one_handle_is_delivered_on_another_thread(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1))
    manager = make_manager()
    handles: list[Handle] = []
    threads: list[str] = []
    done = threading.Event()

    def deliver(handle: Handle) -> None:
        handles.append(handle)
        threads.append(threading.current_thread().name)

    manager.create_handle(CONFIG).subscribe(deliver, on_completed=done.set)
    assert done.wait(20)
    assert len(handles) == 1 and threads == [f"latebind-open-{COLLECTION}"]
    assert handles[0].run(X)["y"].tolist() == [[1, 1, 1, 1]]


def test_the_example_of_the_documentation(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(3))
    camera: Subject[Any] = Subject()
    shown: list[tuple[float, int]] = []
    ready, done = threading.Event(), threading.Event()

    def start(handle: Handle) -> None:
        decode = ops.map(lambda result: (float(result["y"].sum()), result.info.params["C"]))
        camera.pipe(handle.run_inference(), decode).subscribe(shown.append, on_completed=done.set)
        ready.set()

    make_manager().create_handle(CONFIG).subscribe(start)
    assert ready.wait(20)
    camera.on_next(X)
    camera.on_completed()
    assert done.wait(20)
    assert shown == [(12.0, 3)]


def test_errors_arrive_where_they_are_expected(simulator: Simulator, make_manager: MakeManager) -> None:
    manager = make_manager()
    errors: list[Exception] = []
    failed = threading.Event()
    manager.create_handle(CONFIG).subscribe(lambda _: None, lambda error: (errors.append(error), failed.set()))
    assert failed.wait(20)
    assert isinstance(errors[0], CollectionNotFound)
    with pytest.raises(CollectionNotFound):
        manager.open_blocking(CONFIG)
    with pytest.raises(FirstStartOffline):
        make_manager(server="http://127.0.0.1:1").open_blocking(CONFIG)
    with pytest.raises(ValueError, match="collection"):
        ModelConfig(account="acme", collection="../x")


async def test_open_is_a_coroutine(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1))
    handle = await make_manager().open(CONFIG)
    assert handle.run(X)["y"][0, 0] == 1


async def test_an_open_that_is_cancelled_leaves_no_handle(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1, ballast=200_000))
    simulator.faults.blob_delay_s = 0.01
    manager = make_manager()
    task = asyncio.create_task(manager.open(CONFIG))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(until, lambda: not any(name.startswith("latebind-open") for name in latebind_threads()))
    assert manager._agent(ACCOUNT).updater(COLLECTION).handles == []


def test_a_busy_server_is_asked_again(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1, ballast=100_000))
    simulator.faults.statuses["/v1/device/collections/"] = [503]
    simulator.faults.cut_blobs_at = [50]
    assert make_manager().open_blocking(CONFIG).run(X)["y"][0, 0] == 1
    simulator.faults.statuses["/v1/device/collections/"] = [503] * 10
    with pytest.raises(LatebindError) as caught:
        make_manager().open_blocking(ModelConfig(ACCOUNT, "c_other"))
    assert caught.value.code == "INJECTED"
    assert len(simulator.faults.statuses["/v1/device/collections/"]) == 7


def test_the_second_start_needs_no_server(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1))
    with make_manager() as manager:
        manager.open_blocking(CONFIG)
    simulator.faults.refuse_connections = True
    handle = make_manager().open_blocking(CONFIG)
    assert handle.run(X).info.version == 1
    simulator.faults.refuse_connections = False
    simulator.assign(simulator.add_adder(2))
    until(lambda: handle.run(X).info.version == 2)


def test_it_checks_when_the_server_says_so(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.poll = {"after_s": 1, "spread_s": 0}
    simulator.assign(simulator.add_adder(1))
    handle = make_manager().open_blocking(CONFIG)
    simulator.assign(simulator.add_adder(2))
    until(lambda: handle.run(X).info.version == 2)
    until(lambda: simulator.requests[f"/v1/device/collections/{COLLECTION}:resolve"] >= 3)


def test_checking_by_hand_and_sending(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1))
    manager = make_manager(background=False)
    handle = manager.open_blocking(CONFIG)
    simulator.assign(simulator.add_adder(2))
    assert manager.check_for_updates(CONFIG).result is PollResult.SWITCHED
    handle.run(X)
    manager.flush()
    assert simulator.samples() == {(1, 1): 1, (2, 1): 1, (2, 2): 1}
    assert latebind_threads() == []


def test_measurements_leave_by_themselves_and_at_the_end(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1))
    manager = make_manager(options=quick(flush_interval_s=0.1))
    handle = manager.open_blocking(CONFIG)
    for _ in range(10):
        handle.run(X)
    until(lambda: sum(simulator.samples().values()) == 11)
    handle.run(X)
    manager.close()
    assert simulator.samples() == {(1, 1): 1, (1, 2): 1, (1, 3): 10}
    assert simulator.states()[-1] == "running"


def test_closing_releases_threads_files_and_memory(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1))
    make_manager().close()

    def once() -> None:
        manager = make_manager()
        handle = manager.open_blocking(CONFIG)
        handle.run(X)
        source: Subject[Any] = Subject()
        source.pipe(handle.run_inference()).subscribe(lambda _: None)
        source.on_next(X)
        manager.close()
        manager.close()
        with pytest.raises(Closed):
            handle.run(X)
        with pytest.raises(Closed):
            manager.open_blocking(CONFIG)

    once()
    gc.collect()
    before = open_files()
    for _ in range(5):
        once()
    gc.collect()
    until(lambda: latebind_threads() == [])
    until(lambda: open_files() <= before)


def test_closing_does_not_wait_for_a_long_download(simulator: Simulator, make_manager: MakeManager) -> None:
    simulator.assign(simulator.add_adder(1))
    manager = make_manager()
    manager.open_blocking(CONFIG)
    simulator.faults.blob_delay_s = 0.02
    simulator.assign(simulator.add_adder(2, ballast=50_000_000))
    thread = threading.Thread(target=manager.check_for_updates, args=(CONFIG,))
    thread.start()
    sent = simulator.blob_bytes_sent
    until(lambda: simulator.blob_bytes_sent > sent)
    manager.close()
    thread.join(5)
    assert not thread.is_alive()


def test_several_accounts_and_processes_share_a_folder(simulator: Simulator, make_manager: MakeManager, tmp_path: Path) -> None:
    simulator.assign(simulator.add_adder(1))
    first = make_manager(enrolment_key={ACCOUNT: ENROLMENT_KEY})
    second = make_manager(enrolment_key={ACCOUNT: ENROLMENT_KEY})
    handles = [manager.open_blocking(CONFIG) for manager in (first, second)]
    assert [handle.run(X).info.version for handle in handles] == [1, 1]
    assert len(simulator.installs) == 1
    assert [path.name for path in (tmp_path / "device").iterdir()] == [ACCOUNT]


@pytest.mark.parametrize("switches", [200])
def test_updates_under_fire(switches: int, simulator: Simulator, make_manager: MakeManager) -> None:
    """Four chains and a direct caller while the package changes: no failed, lost or mixed-up result; then a bad package changes nothing."""
    packages = [simulator.add_adder(1), simulator.add_adder(2)]
    simulator.assign(packages[0])
    manager = make_manager()
    handle = manager.open_blocking(CONFIG)
    stop = threading.Event()
    problems: list[str] = []
    counts = [0] * 5
    seen: set[int] = set()

    def check(chain: int, number: int, result: Any) -> None:
        version = result.info.version
        seen.add(version)
        if float(result["y"][0, 0]) != number + version or result.info.params["C"] != version or counts[chain] != number:
            problems.append(f"chain {chain}, item {number}: {result['y'][0, 0]} from version {version}")
        counts[chain] += 1

    sources: list[Subject[Any]] = [Subject() for _ in range(4)]
    ended = [threading.Event() for _ in range(4)]
    for chain, source in enumerate(sources):
        numbers = iter(range(10**9))
        source.pipe(handle.run_inference()).subscribe(
            lambda result, chain=chain, numbers=numbers: check(chain, next(numbers), result),
            lambda error, chain=chain: problems.append(f"chain {chain}: {error!r}"),
            ended[chain].set,
        )
    fed = [0] * 5

    def feed(chain: int) -> None:
        while not stop.is_set():
            number = fed[chain]
            fed[chain] += 1
            if chain < 4:
                sources[chain].on_next(np.full((1, 4), number, np.float32))
            else:
                check(chain, number, handle.run(np.full((1, 4), number, np.float32)))
            time.sleep(0.001)

    feeders = [threading.Thread(target=feed, args=(chain,)) for chain in range(5)]
    for feeder in feeders:
        feeder.start()
    for number in range(switches):
        simulator.assign(packages[(number + 1) % 2])
        assert manager.check_for_updates(CONFIG).result is PollResult.SWITCHED
    bad = simulator.add_adder(3, golden_constant=9)
    simulator.assign(bad)
    assert manager.check_for_updates(CONFIG).result is PollResult.FAILED
    stop.set()
    for feeder in feeders:
        feeder.join()
    for source in sources:
        source.on_completed()
    assert all(event.wait(30) for event in ended)
    assert problems == []
    assert counts == fed and seen == {1, 2}
    manager.close()
    assert "failed" in simulator.states(bad)
    assert sum(count for (_, phase), count in simulator.samples().items() if phase != 1) == sum(fed)
    assert sum(count for (_, phase), count in simulator.samples().items() if phase == 1) == switches + 1


def test_a_result_is_decoded_with_the_parameters_it_was_made_with(simulator: Simulator, make_manager: MakeManager) -> None:
    """The seed case in small: shapes and parameters change together, the client does not."""
    from tests.models import onnx_grid_detector

    def detector(version: int, cells: int, boxes: int, classes: int) -> Any:
        params = {name: {"type": "int", "value": value} for name, value in (("S", cells), ("B", boxes), ("C", classes))}
        side, channels = cells * 8, boxes * (5 + classes)
        return simulator.add_package(
            onnx_grid_detector(cells, boxes, classes),
            version=version,
            params=params,
            inputs=[{"name": "image", "dtype": "float32", "shape": [1, side, side, 3]}],
            outputs=[{"name": "grid", "dtype": "float32", "shape": [1, cells, cells, channels]}],
        )

    simulator.assign(detector(1, 13, 5, 20))
    manager = make_manager()
    handle = manager.open_blocking(CONFIG)
    decoded = []
    for version in (1, 2):
        if version == 2:
            simulator.assign(detector(2, 19, 8, 40))
            manager.check_for_updates(CONFIG)
        shape = [size if isinstance(size, int) else 1 for size in handle.info.inputs[0].shape or ()]
        result = handle.run(np.zeros(shape, np.float32))
        params = result.info.params
        decoded.append(result["grid"].reshape(params["S"], params["S"], params["B"], 5 + params["C"]).shape)
    assert decoded == [(13, 13, 5, 25), (19, 19, 8, 45)]
