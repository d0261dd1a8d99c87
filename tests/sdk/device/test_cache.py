"""What lies on the disk: whole packages, checked when opened, evicted when nobody needs them."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latebind.device.agent import DeviceAgent
from latebind.device.decision import PollResult
from latebind.errors import CacheDamaged, DiskFull, FirstStartOffline
from tests.sdk.conftest import quick
from tests.sdk.simulator import ACCOUNT, COLLECTION, Package, Simulator, sha256

MakeAgent = Callable[..., DeviceAgent]
X = np.zeros((1, 4), np.float32)


def blob(tmp_path: Path, digest: str) -> Path:
    return tmp_path / "device" / ACCOUNT / "blobs" / digest[:2] / digest


def stored(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "device" / ACCOUNT / "packages").iterdir()}


def graph_of(package: Package) -> str:
    return str(package.parsed["files"][0]["sha256"])


def install(simulator: Simulator, make_agent: MakeAgent, *versions: int) -> list[Package]:
    packages = [simulator.add_adder(version) for version in versions]
    with make_agent() as agent:
        for package in packages:
            simulator.assign(package)
            handle = agent.open(COLLECTION)
            agent.poll_once(COLLECTION)
            handle.run(X)
            handle.close()
            del handle
            gc.collect()
    return packages


def test_only_the_current_and_the_previous_package_stay(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    packages = install(simulator, make_agent, 1, 2, 3, 4)
    assert stored(tmp_path) == {package.digest for package in packages[-2:]}
    kept = {file["sha256"] for package in packages[-2:] for file in package.parsed["files"]}
    assert {path.name for path in (tmp_path / "device" / ACCOUNT / "blobs").glob("*/*")} == kept


def test_files_that_packages_share_are_fetched_once(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    first = simulator.add_adder(1)
    simulator.assign(first)
    agent = make_agent()
    handle = agent.open(COLLECTION)
    sent = simulator.blob_bytes_sent
    same = simulator.sign({**first.parsed, "version": 2})
    simulator.assign(same)
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    assert handle.run(X).info.version == 2
    assert simulator.blob_bytes_sent == sent


def test_a_result_keeps_the_files_of_its_package(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    simulator.assign(simulator.add_adder(1))
    handle = agent.open(COLLECTION)
    result = handle.run(X)
    for version in (2, 3, 4):
        simulator.assign(simulator.add_adder(version))
        agent.poll_once(COLLECTION)
        handle.run(X)
    assert handle.load_hyper_param_file("labels") == b"labels of version 4\n"
    assert result.info.load_hyper_param_file("labels") == b"labels of version 1\n"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "signature", "seal"])
def test_damage_is_found_at_the_next_start_and_repaired(damage: str, simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    (package,) = install(simulator, make_agent, 1)
    path = blob(tmp_path, graph_of(package))
    data = path.read_bytes()
    folder = tmp_path / "device" / ACCOUNT / "packages" / package.digest
    match damage:
        case "flip":
            with path.open("r+b") as file:  # same inode, same size
                file.seek(len(data) // 2)
                file.write(bytes([data[len(data) // 2] ^ 1]))
        case "truncate":
            with path.open("r+b") as file:
                file.truncate(10)
        case "remove":
            path.unlink()
        case "manifest":
            raw = (folder / "manifest.json").read_bytes()
            (folder / "manifest.json").write_bytes(raw.replace(b"adder", b"other"))
        case "signature":
            (folder / "signature.json").unlink()
        case "seal":
            (folder / "seal.json").write_text("{")
    agent = make_agent()
    assert np.array_equal(agent.open(COLLECTION).run(X)["y"], X + 1)
    assert sha256(path.read_bytes()) == path.name


def test_damage_without_a_server_falls_back_to_the_previous_package(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    _, second = install(simulator, make_agent, 1, 2)
    blob(tmp_path, graph_of(second)).write_bytes(b"rubbish")
    simulator.faults.refuse_connections = True
    agent = make_agent()
    handle = agent.open(COLLECTION)
    assert handle.run(X).info.version == 1
    simulator.faults.refuse_connections = False
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    assert handle.run(X).info.version == 2


def test_damage_without_server_or_previous_package_is_a_clear_error(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    (package,) = install(simulator, make_agent, 1)
    blob(tmp_path, graph_of(package)).unlink()
    simulator.faults.refuse_connections = True
    with pytest.raises(FirstStartOffline):
        make_agent().open(COLLECTION)


def test_a_restored_backup_needs_no_download(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    install(simulator, make_agent, 1)
    shutil.copytree(tmp_path / "device", tmp_path / "copy")
    simulator.faults.refuse_connections = True
    agent = make_agent(cache_dir=tmp_path / "copy")
    assert agent.open(COLLECTION).run(X).info.version == 1


def test_the_full_check_finds_what_the_quick_one_cannot(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    agent.open(COLLECTION)
    labels = blob(tmp_path, sha256(b"labels of version 1\n"))
    with labels.open("r+b") as file:
        file.write(b"LABELS")
    with pytest.raises(CacheDamaged):
        agent.updater(COLLECTION).handles[0].load_hyper_param_file("labels")
    agent.updater(COLLECTION).check_files()
    assert not labels.exists()
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    assert agent.updater(COLLECTION).handles[0].run(X)["y"][0, 0] == 1
    agent.flush()
    agent.send()
    assert (3, "CACHE_DAMAGED") in simulator.failures()


def test_no_room_is_known_before_the_download(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent(options=quick(reserve_bytes=1 << 60))
    with pytest.raises(DiskFull, match="only 0 are free"):
        agent.open(COLLECTION)
    assert simulator.blob_bytes_sent == 0
    agent.flush()
    agent.send()
    assert simulator.events[-1]["code"] == "DISK_FULL"
