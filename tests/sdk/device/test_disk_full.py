"""No room, in the middle of a file: a clear error, nothing half written is used, and what runs goes on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.sdk.simulator import ACCOUNT, COLLECTION, ENROLMENT_KEY, Simulator

# The file size limit makes every write beyond it fail with EFBIG, in the middle of a file, as a full disk or quota would.
DEVICE = """
import resource, sys
import numpy as np
from latebind import Manager, ModelConfig
from latebind.device.options import DeviceOptions
from latebind.errors import LatebindError

server, folder, account, collection, key, limit = sys.argv[1:]
config = ModelConfig(account, collection)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
options = DeviceOptions(reserve_bytes=0)
with Manager(server=server, enrolment_key=key, cache_dir=folder, background=False, options=options) as manager:
    try:
        handle = manager.open_blocking(config)
    except LatebindError as error:
        print(error.code)
    else:
        outcome = manager.check_for_updates(config)
        version = handle.run(np.zeros((1, 4), np.float32)).info.version
        print(version, outcome.result, outcome.error and outcome.error.code)
"""


def run(simulator: Simulator, folder: Path, limit: int) -> str:
    arguments = [simulator.url, str(folder), ACCOUNT, COLLECTION, ENROLMENT_KEY, str(limit)]
    done = subprocess.run([sys.executable, "-c", DEVICE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def check_blobs(folder: Path) -> None:
    for path in (folder / ACCOUNT / "blobs").glob("*/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert not list((folder / ACCOUNT / "partials").iterdir())


def test_a_first_start_without_room_says_so(simulator: Simulator, tmp_path: Path) -> None:
    simulator.assign(simulator.add_adder(1, ballast=200_000))
    assert run(simulator, tmp_path / "device", 100_000) == "DISK_FULL"
    check_blobs(tmp_path / "device")
    assert {event["code"] for event in simulator.events if event["state"] == "failed"} == {"DISK_FULL"}
    assert run(simulator, tmp_path / "device", 1 << 30) == "1 unchanged None"


def test_an_update_without_room_keeps_the_old_package(simulator: Simulator, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    simulator.assign(simulator.add_adder(1))
    assert run(simulator, folder, 1 << 30) == "1 unchanged None"
    simulator.assign(simulator.add_adder(2, ballast=200_000))
    assert run(simulator, folder, 100_000) == "1 failed DISK_FULL"
    check_blobs(folder)
    assert run(simulator, folder, 1 << 30) == "2 switched None"


def test_a_disk_without_any_room_does_not_stop_what_runs(simulator: Simulator, tmp_path: Path) -> None:
    """Not even the state or the telemetry can be written: the installed model still answers."""
    folder = tmp_path / "device"
    simulator.assign(simulator.add_adder(1))
    assert run(simulator, folder, 1 << 30) == "1 unchanged None"
    simulator.assign(simulator.add_adder(2))
    assert run(simulator, folder, 16).startswith("1 failed DISK_FULL")
