"""`kill -9` at random moments: what was acknowledged is counted once, nothing is half there, the next start needs no help."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latebind.device.agent import DeviceAgent
from latebind_proto.telemetry_pb2 import Phase
from tests.e2e.world import World, eventually
from tests.models import onnx_add, onnx_mlp
from tests.server import ROOT, ServerProcess

KILLS = int(os.environ.get("LATEBIND_TEST_KILLS", "50"))
DEVICES = 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    # Twenty devices behind one address, and what each does in a second of this test is a day's worth elsewhere.
    rates = {f"LATEBIND_GATEWAY_{who}_REQUESTS_PER_MINUTE": "1000000" for who in ("DEVICE", "ANONYMOUS")}
    with ServerProcess(tmp_path / "data", environment=rates) as server:
        made = World(server)
        yield made
        made.close()


class Sender(threading.Thread):
    """A device that measures and sends until told to stop; counts what it recorded."""

    def __init__(self, world: World, folder: Path, key: str, collection: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.agent = world.device(folder, key)
        self.agent.enrol()
        outcome = self.agent.poll_once(collection)
        assert self.agent.current(collection) is not None, outcome
        self.collection, self.stopping = collection, stop
        self.recorded = 0
        self.unanswered = 0

    def run(self) -> None:
        rng = random.Random(self.agent.install_id)
        while not self.stopping.is_set():
            for _ in range(rng.randint(1, 40)):
                self.agent.record(self.collection, Phase.PHASE_STEADY, rng.randint(100, 90_000))
                self.recorded += 1
            self.agent.flush()
            if self.agent.send().error is not None:
                self.unanswered += 1
            time.sleep(0.1 + rng.random() * 0.4)

    def finish(self) -> None:
        self.agent.flush()
        eventually(lambda: sent_all(self.agent), within_s=60)
        self.agent.close()


def sent_all(agent: DeviceAgent) -> bool:
    """Whether a round of sending ended with nothing left."""
    outcome = agent.send()
    return outcome.error is None and outcome.sent == 0


def test_the_server_is_killed_while_devices_send(world: World, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {KILLS} kills")
    rng = random.Random(seed)
    world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
    key = world.enrolment_key()
    stop = threading.Event()
    senders = [Sender(world, tmp_path / f"device{number}", key, collection, stop) for number in range(DEVICES)]
    for sender in senders:
        sender.start()
    for _ in range(KILLS):
        time.sleep(rng.random() * 1.5)
        world.server.kill()
        world.server.start()
    stop.set()
    for sender in senders:
        sender.join()
        sender.finish()
    recorded = sum(sender.recorded for sender in senders)
    print(f"recorded {recorded}, sends that failed {sum(sender.unanswered for sender in senders)}")
    eventually(lambda: world.inferences() >= recorded, within_s=60)
    time.sleep(2)  # a batch that counted twice would still arrive
    assert world.inferences() == recorded
    assert sum(int(row["count"]) for row in world.rows("/v1/analytics/latency", phase="steady")) == recorded
    rows = world.rows("/v1/analytics/active-installs")
    assert max(int(row["active_installs"]) for row in rows) == DEVICES
    assert world.server.stop() == 0


DEVICE_PROGRAM = """
import sys, pathlib
from tests.e2e.world import World
from latebind.device.agent import DeviceAgent
from latebind.device.options import DeviceOptions
from latebind_proto.telemetry_pb2 import Phase
server, account, key, folder, collection, history = sys.argv[1:]
agent = DeviceAgent(server=server, account=account, cache_dir=folder, enrolment_key=key, options=DeviceOptions(start_spread_s=0.0))
agent.enrol()
handle = agent.open(collection)
import numpy
with open(history, "ab", buffering=0) as log:
    while True:
        for _ in range(5):
            handle.run({"features": numpy.ones((1, 8), numpy.float32)})
        agent.flush()
        log.write(b"r" * 5)
        agent.send()
        agent.poll_once(collection)
"""


def test_a_device_process_is_killed_while_it_downloads_and_records(world: World, tmp_path: Path) -> None:
    """The cache never holds a half file, what was flushed to disk arrives once, and each start goes on by itself."""
    rng = random.Random(20261122)
    versions = [world.push("adder", {"onnx-fp32": ("model.onnx", onnx_mlp(hidden=60_000, seed=number))}) for number in range(2)]
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": versions[0]}})
    key = world.enrolment_key()
    folder, history = tmp_path / "device", tmp_path / "history"
    command = [sys.executable, "-c", DEVICE_PROGRAM, world.server.url, world.account, key, str(folder), collection, str(history)]
    for number in range(KILLS):
        if number % 3 == 0:
            world.publish(collection, {"rules": [], "default": {"model": "adder", "version": versions[number // 3 % 2]}})
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
        time.sleep(0.2 + rng.random() * 1.2)
        assert process.poll() is None, process.communicate()[1].decode()
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
        for path in folder.rglob("*"):
            if path.is_file() and len(path.name) == 64:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    agent = world.device(folder, key)
    agent.enrol()
    with agent.open(collection) as handle:
        handle.run({"features": np.ones((1, 8), np.float32)})
    agent.flush()

    eventually(lambda: sent_all(agent))
    agent.close()
    # What the program wrote down is on its disk; each kill may have come between the disk and the writing down of five runs.
    least = len(history.read_bytes()) + 1
    eventually(lambda: world.inferences() >= least, within_s=60)
    time.sleep(2)
    assert least <= world.inferences() <= least + 5 * KILLS
    assert world.server.stop() == 0
