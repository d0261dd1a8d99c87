"""`latebind import`: from MLflow and from the Hugging Face Hub over real HTTP, and from files, into the real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.elsewhere import COMMIT, Hub, Mlflow, listening
from tests.models import blob, external_weights, onnx_add, onnx_with_external_data, tflite_add
from tests.sdk.cli.conftest import CommandLine
from tests.sdk.test_modelfiles import entry, with_files

CARD = b"""---
license: apache-2.0
pipeline_tag: object-detection
library_name: onnx
tags: [a, b]
---
# Tiny

Finds digits
in pictures.

More.
"""


def signature(**sides: Any) -> dict[str, str]:
    return {side: json.dumps(value) for side, value in sides.items()}


def tensor(name: str | None, dtype: str, *shape: int) -> dict[str, Any]:
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}, **({"name": name} if name else {})}


def mlmodel(**more: Any) -> bytes:
    onnx = {"data": "model.onnx", "onnx_version": "1.18.0", "providers": ["CPUExecutionProvider"]}
    return yaml.safe_dump({"flavors": {"onnx": onnx, "python_function": {"loader_module": "mlflow.onnx"}}, **more}).encode()


GOOD = mlmodel(
    signature=signature(
        inputs=[tensor("x", "float32", -1, 4)],
        outputs=[tensor("y", "float32", -1, 4)],
        params=[
            {"name": "threshold", "type": "float", "default": 0.5, "shape": None},
            {"name": "sizes", "type": "long", "default": [1, 2], "shape": [-1]},
            {"name": "when", "type": "datetime", "default": "2026-01-01T00:00:00", "shape": None},
        ],
    )
)


@pytest.fixture
def mlflow() -> Iterator[Mlflow]:
    server = Mlflow(models={"digits": {"3": {"MLmodel": GOOD, "model.onnx": onnx_add((None, 4))}}}, aliases={("digits", "champion"): "3"})
    with listening(server):
        yield server


def address(server: Mlflow, path: str) -> str:
    return server.url.replace("http://", "mlflow://") + path


def test_a_registered_model_comes_in_with_its_signature(cli: CommandLine, mlflow: Mlflow) -> None:
    source = address(mlflow, "/models/digits/champion")
    shown = cli.json("import", source, "--dry-run")
    declaration = shown["declaration"]
    assert (shown["model_id"], shown["description"]) == ("digits", "finds digits")
    assert declaration["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 4]}]
    assert declaration["outputs"] == [{"name": "y", "dtype": "float32", "shape": [None, 4]}]
    assert declaration["params"] == {"threshold": {"type": "float", "value": 0.5}, "sizes": {"type": "int[]", "value": [1, 2]}}
    (step,) = declaration["lineage"]["steps"]
    assert step["options"] == {"source": f"{mlflow.url}/models/digits/3", "model": "digits", "version": "3", "run_id": "a1b2"}
    cli.run("model", "show", "digits", expect=4)  # nothing was pushed
    ran = cli.run("import", source, "--alias", "stable", "--param", "threshold:float=0.7")
    assert "'when' is left out" in ran.err
    version = cli.json("model", "show", "digits", "1")
    assert version["state"] == "ready"
    manifest = version["packages"][0]["manifest"]
    assert manifest["params"]["threshold"] == {"type": "float", "value": 0.7}
    assert manifest["lineage"]["steps"][0]["tool"] == "latebind-import"
    assert cli.json("model", "show", "digits")["aliases"] == {"stable": 1}
    assert cli.json("import", address(mlflow, "/models/digits/3"))["version"] == 2  # the same by its number


def test_external_data_comes_along(cli: CommandLine, mlflow: Mlflow) -> None:
    files = {"MLmodel": mlmodel(), "model.onnx": onnx_with_external_data("big.bin"), "big.bin": external_weights()}
    mlflow.models["big"] = {"1": files}
    cli.run("import", address(mlflow, "/models/big/1"))
    files = cli.json("model", "show", "big", "1")["packages"][0]["manifest"]["files"]
    assert {"model.onnx": "graph", "big.bin": "graph-data"}.items() <= {file["path"]: file["role"] for file in files}.items()


def test_signatures_that_do_not_fit_are_left_out(cli: CommandLine, mlflow: Mlflow) -> None:
    for number, sides in enumerate(
        (
            {"inputs": [tensor(None, "float32", -1, 4)]},
            {"inputs": [tensor("other", "float32", -1, 4)]},
            {"inputs": [{"name": "x", "type": "double"}]},
            {"inputs": [tensor("x", "datetime64", -1)]},
        )
    ):
        mlflow.models["odd"] = {str(number + 1): {"MLmodel": mlmodel(signature=signature(**sides)), "model.onnx": onnx_add()}}
        ran = cli.run("import", address(mlflow, f"/models/odd/{number + 1}"), "--dry-run")
        assert "the model's own" in ran.out and "do not name the model's" in ran.err


def test_what_is_not_taken_from_mlflow(cli: CommandLine, mlflow: Mlflow) -> None:
    outside = onnx_with_external_data("../../etc/passwd")
    refused = {
        "sklearn": (
            {"MLmodel": yaml.safe_dump({"flavors": {"sklearn": {"pickled_model": "model.pkl"}, "python_function": {}}}).encode()},
            "skl2onnx",
        ),
        "torch": ({"MLmodel": yaml.safe_dump({"flavors": {"pytorch": {}}}).encode()}, "torch.onnx.export"),
        "python": ({"MLmodel": yaml.safe_dump({"flavors": {"python_function": {}}}).encode()}, "export it as ONNX"),
        "no-yaml": ({"MLmodel": b"\x00: ["}, "no YAML"),
        "no-flavors": ({"MLmodel": b"a: 1"}, "no flavors"),
        "code": ({"MLmodel": b"!!python/object/apply:os.system ['touch /tmp/latebind-was-here']"}, "no YAML"),
        "no-file": ({"MLmodel": GOOD}, "answered 404"),
        "path": ({"MLmodel": yaml.safe_dump({"flavors": {"onnx": {"data": "../../secret.onnx"}}}).encode()}, "no path inside"),
        "outside": ({"MLmodel": GOOD, "model.onnx": outside}, "no plain name"),
        "cut": ({"MLmodel": GOOD, "model.onnx": onnx_add()[:-9]}, "cut off"),
    }
    for name, (files, words) in refused.items():
        mlflow.models[name] = {"1": files}
        ran = cli.run("import", address(mlflow, f"/models/{name}/1"), "--dry-run", expect={"cut": 2, "no-file": 6}.get(name, 5))
        assert words in ran.err, name
    assert not Path("/tmp/latebind-was-here").exists()
    cli.run("import", address(mlflow, "/models/digits/challenger"), expect=6)
    cli.run("import", address(mlflow, "/models/unknown/1"), expect=6)
    for wrong in ("/models/digits", "/digits/1", "/models/digits/1?x=1", "/models/a/b/c"):
        assert "write mlflow://" in cli.run("import", address(mlflow, wrong), expect=5).err
    assert "not known here" in cli.run("import", "s3://bucket/model", expect=2).err
    cli.run("import", "mlflow://127.0.0.1:1/models/digits/1", expect=6)


def test_mlflow_s_credentials_are_used_and_only_there(cli: CommandLine, mlflow: Mlflow) -> None:
    mlflow.token = "secret-token"
    source = address(mlflow, "/models/digits/3")
    assert "not authenticated" in cli.run("import", source, "--dry-run", expect=6).err
    cli.patch.setenv("MLFLOW_TRACKING_TOKEN", "secret-token")
    cli.run("import", source, "--dry-run")
    assert "secret-token" not in json.dumps(cli.json("import", source, "--dry-run"))


def test_a_download_that_breaks_off_is_not_a_model(cli: CommandLine, mlflow: Mlflow) -> None:
    mlflow.cut = 40
    assert cli.run("import", address(mlflow, "/models/digits/3"), "--dry-run", expect=6).err


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {
        "README.md": CARD,
        "config.json": b"{}",
        "onnx/model.onnx": onnx_with_external_data("model.onnx_data") + entry("stride", "32"),
        "onnx/model.onnx_data": external_weights(),
        "pytorch_model.bin": b"\x80\x04cos\nsystem\n",
    }
    with listening(server := Hub(files=files, large={"onnx/model.onnx_data", "onnx/model.onnx"})):
        yield server


class HubLine:
    """`latebind import hf://…` in a process of its own: huggingface-hub reads its environment once."""

    def __init__(self, cli: CommandLine, hub: Hub) -> None:
        self.cli, self.hub = cli, hub
        self.environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cli.folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "latebind.cli.main", "import", *arguments]
        ran = subprocess.run(
            command, env={**os.environ, **self.environment, **environment}, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == expect, ran.stdout + ran.stderr
        return ran


@pytest.fixture
def line(cli: CommandLine, hub: Hub) -> HubLine:
    return HubLine(cli, hub)


def test_a_repository_comes_in_at_a_pinned_commit_and_offline_from_the_cache(line: HubLine, cli: CommandLine, hub: Hub) -> None:
    shown = json.loads(line.run(f"hf://{hub.repo}@main", "--dry-run", "--json").stdout)
    assert (shown["model_id"], shown["description"]) == ("tiny-yolo", "Finds digits in pictures.")
    assert shown["labels"] == {"license": "apache-2.0", "task": "object-detection", "library": "onnx"}
    assert shown["declaration"]["params"] == {"stride": {"type": "string", "value": "32"}}
    options = shown["declaration"]["lineage"]["steps"][0]["options"]
    assert (options["source"], options["commit"], options["file"]) == (f"hf://{hub.repo}@{COMMIT}", COMMIT, "onnx/model.onnx")
    assert not any("pytorch_model.bin" in path for path in hub.requests)  # a pickle is not even fetched
    before = len(hub.requests)
    offline = line.run(f"hf://{hub.repo}@{COMMIT}", "--dry-run", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout) == shown
    assert "name the commit" in line.run(f"hf://{hub.repo}@main", HF_HUB_OFFLINE="1", expect=6).stderr
    assert len(hub.requests) == before
    pushed = json.loads(line.run(f"hf://{hub.repo}@{COMMIT}", "--without", "stride", "--json", HF_HUB_OFFLINE="1").stdout)
    assert (pushed["model_id"], pushed["state"]) == ("tiny-yolo", "ready")
    model = cli.json("model", "show", "tiny-yolo")
    assert (model["labels"]["license"], model["contract"]) == ("apache-2.0", {})


def test_what_is_not_taken_from_the_hub(line: HubLine, hub: Hub) -> None:
    where = f"hf://{hub.repo}@main"
    assert "names no revision" in line.run(f"hf://{hub.repo}", expect=5).stderr
    assert "write hf://" in line.run("hf://one", expect=5).stderr
    assert "IMPORT_FAILED" in line.run(where, HF_HUB_OFFLINE="1", expect=6).stderr
    assert "IMPORT_FAILED" in line.run(f"hf://{hub.repo}@nowhere", expect=6).stderr
    assert "a pickle" in line.run(where, "--file", "pytorch_model.bin", expect=5).stderr
    assert "no file" in line.run(where, "--file", "other.onnx", expect=5).stderr
    hub.files["second.onnx"] = onnx_add()
    assert "say which with --file" in line.run(where, expect=5).stderr
    line.run(where, "--file", "second.onnx", "--dry-run")
    for name in ("onnx/model.onnx", "second.onnx"):
        del hub.files[name]
    assert "export the model with optimum-cli" in line.run(where, expect=5).stderr


@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx/model.onnx_data", "README.md"])
def test_bytes_that_are_not_what_the_hub_names_are_refused(line: HubLine, hub: Hub, name: str) -> None:
    """Of the same length, so that only the digest can tell."""
    data = bytearray(hub.files[name])
    data[-1] ^= 1
    hub.spoil[name] = bytes(data)
    assert f"{name} is not the file that the Hub names" in line.run(f"hf://{hub.repo}@main", "--dry-run", expect=6).stderr


def test_a_tflite_file_brings_its_metadata_and_labels(cli: CommandLine) -> None:
    path = cli.folder / "detector.tflite"
    model = tflite_add(metadata={0: "adder", 1: "adds one", 5: "Apache-2.0"})
    path.write_bytes(with_files(model, {"labels.txt": b"cat\ndog\n"}))
    cli.run("import", str(path), "--param", "names:file=labels.txt")
    model = cli.json("model", "show", "detector")
    assert (model["description"], model["labels"]) == ("adds one", {"license": "Apache-2.0", "title": "adder"})
    manifest = cli.json("model", "show", "detector", "1")["packages"][0]["manifest"]
    assert manifest["params"] == {"names": {"type": "file", "value": "labels.txt"}}
    assert manifest["engine"]["name"] == "litert"


def test_a_folder_that_mlflow_downloaded(cli: CommandLine) -> None:
    folder = cli.folder / "digits"
    folder.mkdir()
    (folder / "MLmodel").write_bytes(GOOD)
    (folder / "model.onnx").write_bytes(onnx_add((None, 4)) + blob(6, "adds") + entry("a key", "1"))
    ran = cli.run("import", str(folder), "--dry-run")
    assert "threshold:float=0.5" in ran.out and "'a key' is left out" in ran.err
    cli.run("import", str(cli.folder), expect=2)
    cli.run("import", str(folder / "MLmodel"), expect=2)
    cli.run("import", str(folder), "--without", "unknown", expect=2)


def test_the_model_that_came_in_runs(cli: CommandLine, mlflow: Mlflow) -> None:
    cli.run("import", address(mlflow, "/models/digits/3"), "--alias", "stable")
    collection = cli.collection({"rules": [], "default": {"model": "digits", "alias": "stable"}})
    output = cli.folder / "out.npz"
    np.save(cli.folder / "in.npy", np.zeros((1, 4), np.float32))
    cli.run("run", collection, "--input", str(cli.folder / "in.npy"), "--output", str(output), "--runs", "2")
    assert np.load(output)["y"].tolist() == [[1, 1, 1, 1]]
