"""`kill -9` of a device while it downloads and records: no half file is used, nothing acknowledged is lost or doubled.

The benchmark-sized run (50 kills) is the same code with LATEBIND_TEST_KILLS=50.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.sdk.simulator import ACCOUNT, COLLECTION, ENROLMENT_KEY, Simulator

KILLS = int(os.environ.get("LATEBIND_TEST_KILLS", "6"))
SEED = 20261122

DEVICE = """
import sys, threading
import numpy as np
from latebind import Manager, ModelConfig
from latebind.device.options import DeviceOptions

server, folder, account, collection, key, rounds = sys.argv[1:]
config = ModelConfig(account, collection)
options = DeviceOptions(retry_base_s=0.01, retry_cap_s=0.05, reserve_bytes=0, open_attempts=20)
with Manager(server=server, enrolment_key=key, cache_dir=folder, background=False, options=options) as manager:
    handle = manager.open_blocking(config)
    print("open", handle.info.version, flush=True)

    def update():
        while True:
            manager.check_for_updates(config)

    threading.Thread(target=update, daemon=True).start()
    for _ in range(int(rounds)):
        for number in range(20):
            result = handle.run(np.full((1, 4), number, np.float32))
            assert result["y"][0, 0] == number + result.info.version, "a mixed-up result"
        agent = manager._agent(account)
        agent.flush()
        print("stored 20", flush=True)
        agent.send()
"""


def start(simulator: Simulator, folder: Path, rounds: int) -> subprocess.Popen[str]:
    arguments = [simulator.url, str(folder), ACCOUNT, COLLECTION, ENROLMENT_KEY, str(rounds)]
    return subprocess.Popen([sys.executable, "-c", DEVICE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_cache(folder: Path) -> None:
    """Every file is whole or absent, and a sealed package has all of its files."""
    root = folder / ACCOUNT
    blobs = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "blobs").glob("*/*")}
    assert all(name == digest for name, digest in blobs.items())
    for seal in (root / "packages").glob("*/seal.json"):
        manifest = json.loads((seal.parent / "manifest.json").read_bytes())
        assert {file["sha256"] for file in manifest["files"]} <= set(blobs)


def test_kills_at_random_moments(simulator: Simulator, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    folder = tmp_path / "device"
    packages = [simulator.add_adder(version, ballast=400_000) for version in range(1, KILLS + 3)]
    simulator.assign(packages[0])
    simulator.faults.blob_delay_s = 0.004
    stored = 0
    for number in range(KILLS):
        device = start(simulator, folder, 100_000)
        lines: list[str] = []
        reader = threading.Thread(target=lambda output=device.stdout, lines=lines: lines.extend(output))
        reader.start()
        deadline = time.monotonic() + 60
        while not lines and rng.random() > 0.2 and device.poll() is None and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.0, 0.5))
        simulator.assign(packages[number + 1])
        time.sleep(rng.uniform(0.0, 0.3))
        assert device.poll() is None, device.communicate()[1]
        device.send_signal(signal.SIGKILL)
        device.wait()
        reader.join()
        stored += sum(line == "stored 20\n" for line in lines) * 20
        check_cache(folder)
    device = start(simulator, folder, 3)
    output, errors = device.communicate(timeout=60)
    assert device.returncode == 0, errors
    stored += output.count("stored 20") * 20
    check_cache(folder)
    runs = sum(count for (_, phase), count in simulator.samples().items() if phase != 1)
    assert runs >= stored > 0
    # What a kill may take is at most what had been run since the last flush: never a stored batch, and no batch counts twice.
    assert runs <= stored + 20 * KILLS
    assert len(simulator.installs) == 1


KILLER = """
import os, signal, sys
import numpy as np
from latebind.device.agent import DeviceAgent
from latebind.device.engines.onnx import OnnxRuntimeEngine

server, folder, account, collection, key, deadly = sys.argv[1:]

class Engine(OnnxRuntimeEngine):
    # Version 2 takes the process down, as a fault in native code does: while it is loaded, or while it runs.
    def load(self, manifest, graph, paths, *, threads):
        model = super().load(manifest, graph, paths, threads=threads)
        if manifest.version == 2 and deadly == "load":
            os.kill(os.getpid(), signal.SIGKILL)
        if manifest.version == 2 and deadly == "run":
            run = model.run  # the golden test passes a mapping, the app below an array
            model.run = lambda inputs: run(inputs) if isinstance(inputs, dict) else os.kill(os.getpid(), signal.SIGKILL)
        return model

agent = DeviceAgent(server=server, account=account, cache_dir=folder, enrolment_key=key, engines={"onnxruntime": Engine()})
handle = agent.open(collection)
agent.poll_once(collection)
print(handle.run(np.zeros((1, 4), np.float32)).info.version)
agent.close()
"""


@pytest.mark.parametrize("deadly", ["load", "run"])
def test_a_package_that_kills_the_process_is_given_up(deadly: str, simulator: Simulator, tmp_path: Path) -> None:
    def start() -> str:
        arguments = [simulator.url, str(tmp_path / "device"), ACCOUNT, COLLECTION, ENROLMENT_KEY, deadly]
        done = subprocess.run([sys.executable, "-c", KILLER, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        return done.stdout.strip() if done.returncode == 0 else "killed"

    simulator.assign(simulator.add_adder(1))
    assert start() == "1"
    simulator.assign(simulator.add_adder(2))
    assert [start() for _ in range(5)] == ["killed"] * 3 + ["1"] * 2
    assert {event["code"] for event in simulator.events if event["state"] == "failed"} == {"CRASH_LOOP"}
