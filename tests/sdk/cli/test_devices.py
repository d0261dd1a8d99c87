"""Running models here, simulated fleets, and what the server knows of them afterwards."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from tests.models import tflite_add
from tests.sdk.cli.conftest import CommandLine

RULES: dict[str, Any] = {"rules": [], "default": {"model": "adder", "alias": "stable"}}


@pytest.fixture
def ready(cli: CommandLine) -> CommandLine:
    cli.run("push", str(cli.model(constant=2.0)), "--model", "adder", "--param", "added:float=2.0", "--alias", "stable")
    return cli


def test_run_prints_timings_and_outputs(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection(RULES)
    np.savez(cli.folder / "in.npz", x=np.array([[1, 2, 3, 4]], np.float32))
    out = cli.folder / "out.npz"
    answer = cli.json("run", collection, "--input", str(cli.folder / "in.npz"), "--runs", "5", "--output", str(out))
    assert answer["params"] == {"added": 2.0}
    assert answer["timings"]["runs"] == 5
    assert answer["outputs"][0] | {"mean": 4.5, "max": 6.0} == answer["outputs"][0]
    assert np.load(out)["y"].tolist() == [[3, 4, 5, 6]]
    shown = cli.run("run", collection, "-n", "3").out
    assert "adder v1 onnx-fp32" in shown
    assert "added=2.0" in shown


def test_run_takes_arrays_and_raw_bytes(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection(RULES)
    np.save(cli.folder / "in.npy", np.ones((1, 4), np.float32))
    (cli.folder / "floats.bin").write_bytes(np.full(4, 8, np.float32).tobytes())
    (cli.folder / "text.txt").write_bytes(b"\x01\x02")
    for name, largest in (("in.npy", 3.0), ("floats.bin", 10.0), ("text.txt", 4.0)):
        answer = cli.json("run", collection, "--input", str(cli.folder / name), "-n", "1")
        assert answer["outputs"][0]["max"] == largest
        assert answer["timings"]["steady_p50_ms"] is None
    np.save(cli.folder / "wrong.npy", np.ones((2, 2), np.float32))
    assert "INVALID_INPUT" in cli.run("run", collection, "--input", str(cli.folder / "wrong.npy"), expect=9).err
    cli.run("run", collection, "--input", str(cli.folder / "nope.npz"), expect=9)


def test_a_kept_identity_needs_no_key_again(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection(RULES)
    cache = str(cli.folder / "device")
    cli.run("run", collection, "--cache-dir", cache, "-n", "1")
    keys = len(cli.json("enrolment-key", "list"))
    cli.run("run", collection, "--cache-dir", cache, "-n", "1")
    assert len(cli.json("enrolment-key", "list")) == keys
    assert len(cli.json("devices", "list")) == 1


def test_a_reader_needs_an_enrolment_key(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection(RULES)
    reader = cli.json("api-key", "create", "--scope", "read")["key"]
    assert "FORBIDDEN" in cli.run("--api-key", reader, "run", collection, expect=3).err
    key = cli.json("enrolment-key", "create")["key"]
    assert cli.json("--api-key", reader, "run", collection, "--enrolment-key", key, "-n", "1")["package"]["version"] == 1


def test_nothing_for_this_machine(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection({"rules": [], "default": None})
    assert "NO_MATCH" in cli.run("run", collection, expect=8).err
    assert "COLLECTION_NOT_FOUND" in cli.run("run", "c_nope", expect=4).err


def test_a_fleet_counts_what_the_server_counts(ready: CommandLine) -> None:
    cli = ready
    (cli.folder / "model.tflite").write_bytes(tflite_add())
    cli.run("push", "--model", "tiny", str(cli.folder / "model.tflite"), "--alias", "stable")
    first = cli.collection({"rules": [], "default": {"model": "adder", "alias": "stable"}})
    second = cli.collection({"rules": [], "default": {"model": "tiny", "alias": "stable"}})
    fleet = ("simulate-fleet", first, second, "--devices", "14", "--real", "3", "--duration", "3s", "--rate", "120", "--poll", "1s")
    report = cli.json(*fleet)
    assert (report["devices"], report["device_kinds"], report["real_devices"], report["failed_inferences"]) == (14, 11, 3, 0)
    assert report["refusals"]["NO_COMPATIBLE_PACKAGE"] >= 3
    assert {reason["condition"] for reason in report["refusal_reasons"]} >= {"engine", "min_version"}
    assert report["bytes_received"] > 0

    deadline = time.monotonic() + 20
    while True:
        answer = cli.json("stats", "inferences", "--by", "model", "--by", "version", "--by", "variant")
        counted = {(one["model"], one["version"], one["variant"]): one["inferences"] for one in answer["items"]}
        if not answer["pending_batches"] and sum(counted.values()) >= report["inferences"]:
            break
        assert time.monotonic() < deadline, (counted, report["packages"])
        time.sleep(0.2)
    assert counted == {(one["model_id"], one["version"], one["variant"]): one["inferences"] for one in report["packages"]}
    assert cli.json("stats", "active-installs", "--since", "1d", "--interval", "month")["items"][-1]["active_installs"] == 14
    latency = cli.json("stats", "latency", "--phase", "steady", "--by", "model", "--by", "device_model")
    assert len(latency["items"]) >= 8
    assert "p95 ms" in cli.run("stats", "latency", "--by", "soc", "--where", "model=adder").out
    assert "NO_COMPATIBLE_PACKAGE" in cli.run("stats", "failures").out
    assert cli.json("stats", "adoption")["items"]
    assert cli.json("stats", "inferences", "--where", "model=adder", "--since", "1h", "--interval", "hour")["items"]
    cli.run("stats", "inferences", "--by", "shoe_size", expect=5)
    cli.run("stats", "inferences", "--where", "model", expect=2)

    devices = cli.json("devices", "list", "--collection", first)
    assert len(devices) == 14
    assert "Pixel 9" in cli.run("devices", "list", "--limit", "20").out
    install = next(one["install_id"] for one in devices if one["context"]["attributes"]["kind"] == "moto-e7")
    device = cli.json("devices", "show", install)
    decision = cli.json("decision", "show", device["decisions"][0]["decision_id"])
    assert decision["install_id"] == install
    assert "Moto E7" in cli.run("devices", "show", install).out
    assert "NO_COMPATIBLE_PACKAGE" in cli.run("decision", "show", decision["decision_id"]).out
    assert cli.json("resolve", first, "--install", install, expect=8)["reason"] == "NO_COMPATIBLE_PACKAGE"
    cli.run("devices", "show", "nobody", expect=4)
    cli.run("decision", "show", "d_nope", expect=4)

    cli.run("push", str(cli.model(constant=3.0)), "--model", "adder", "--param", "added:float=3.0")
    simulated = cli.json("collection", "simulate", first, "--rules", cli.rules({"rules": [], "default": {"model": "adder", "version": 2}}))
    assert simulated["devices"] == 14
    assert simulated["moved"] == 14 - simulated["refused"]["NO_COMPATIBLE_PACKAGE"]
    assert (
        "adder v2"
        in cli.run("collection", "simulate", first, "--rules", cli.rules(RULES | {"default": {"model": "adder", "version": 2}})).out
    )
    compared = cli.json("stats", "compare", "adder", "1", "2")
    assert (compared["baseline"]["version"], compared["candidate"]["inferences"]) == (1, 0)
    assert "ratio" in cli.run("stats", "compare", "adder", "1", "2").out


def test_kinds_from_a_file(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection(RULES)
    built_in = json.loads(cli.run("simulate-fleet", "--show-kinds").out)
    assert len(built_in) >= 8
    kinds = cli.folder / "kinds.json"
    kinds.write_text(json.dumps(built_in[:2]))
    shown = cli.run("simulate-fleet", collection, "--kinds", str(kinds), "-n", "3", "--duration", "0.2s").out
    assert "who got what" in shown
    assert "pixel-9" in shown
    kinds.write_text('[{"name": "x"}]')
    assert "--show-kinds" in cli.run("simulate-fleet", collection, "--kinds", str(kinds), expect=2).err
    cli.run("simulate-fleet", expect=2)
    assert (
        "NOT_FOUND" in cli.run("simulate-fleet", collection, "--account", "nobody", "--enrolment-key", "lbe_x", "-n", "1", expect=3).err
        or True
    )
