"""PERF-P1: one conversion of the packager (check, slim, profile, shapes, quantise, write) against the same tools as separate commands.

Ours is `Sandbox.convert` as a job does it: one child inside the sandbox, from a graph to an fp32 and an int8 file that the service holds.
Theirs are five commands of the same environment without a sandbox, each of which reads a file and writes one, as a script would have it.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench._measure import SEED, AnswersDiffer, Pair, pairs_wanted, summarise
from bench._onnx import image_network
from services.packager.answer import conversion
from services.packager.environments import Environment, Environments
from services.packager.gates import LIMITS
from services.packager.sandbox import Limits, Sandbox, open_sandbox
from services.packager.settings import PackagerSettings

GOALS = {"P1": "check, slim, preprocess, quantise, export in one process against separate commands (≤ 0.50)"}

_OPSET, _IR = 15, 8
_FILES = ("onnx-fp32.onnx", "onnx-int8.onnx")
_PORTS = {"inputs": [{"name": "x", "called": "x"}], "outputs": [{"name": "y", "called": "y"}]}
_EXPORT = f"""
import onnx, sys
model = onnx.load(sys.argv[1])
if model.opset_import[0].version > {_OPSET}:
    model = onnx.version_converter.convert_version(model, {_OPSET})
model.ir_version = min(model.ir_version, {_IR})
onnx.checker.check_model(model)
onnx.save(model, sys.argv[2])
"""
_QUANTISE = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2], weight_type=QuantType.QUInt8)
"""


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Convert the same network both ways, in turn."""
    return asyncio.run(_run())


async def _run() -> dict[str, Any]:
    graph = image_network(seed=SEED)
    environments = Environments(PackagerSettings().environments)
    environment = await environments.ready("onnx", lambda line: None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "source.onnx").write_bytes(graph)
        warm, cold, steps = [], [], {}
        async with (
            open_sandbox(folder / "warm", Limits(), environments) as sandbox,
            open_sandbox(folder / "cold", Limits(), environments, warm_s=0) as lonely,
        ):
            for number in range(pairs_wanted() + 1):
                kept, ours = await _ours(sandbox, graph)
                each, theirs = await asyncio.to_thread(_theirs, environment, folder)
                alone, same = await _ours(lonely, graph)
                for one in (ours, same):
                    _check(graph, one, theirs)
                if number:  # the first round reads the tools from the disk and starts the warm parent
                    commands = sum(each.values()) * 1e3
                    warm.append(Pair(kept * 1e3, commands))
                    cold.append(Pair(alone * 1e3, commands))
                    steps = {step: round(took * 1e3) for step, took in each.items()}
            level = sandbox.level
    shared: dict[str, Any] = {
        "better": "lower",
        "target": 0.50,
        "unit": "ms",
        "b": {"name": "check-model, onnxslim, export, preprocess, quantize_dynamic", "last_ms": steps},
        "equality": "fp32 files give the source's outputs within 1e-4, int8 files each other's within 1e-3, and the gate's mean",
        "graph_bytes": len(graph),
        "environment": environment.folder.name,
    }
    return {
        "parts": [
            summarise(warm, name="a job as usual", a={"name": "child of a warm parent", "sandbox": level}, **shared),
            summarise(cold, name="the first job", a={"name": "child that imports the tools itself", "sandbox": level}, **shared),
        ]
    }


async def _ours(sandbox: Sandbox, graph: bytes) -> tuple[float, list[bytes]]:
    start = time.perf_counter()
    async with sandbox.workspace() as workspace:
        workspace.path("0").write_bytes(graph)
        how = {"graph": "in/0", "opset": _OPSET, "ir": _IR, "slim": True}
        targets = {file: {**how, "precision": file[5:9]} for file in _FILES}
        job = {**_PORTS, "calibration": None, "targets": targets}
        result = await sandbox.convert(workspace, "onnx_variants", job, lambda _step: None, lambda _line: None)
        made, failed = conversion(result, _FILES)
        paths = [workspace.take(file, file, 2**30) for file in made]
        took = time.perf_counter() - start
        if failed:
            raise RuntimeError(str(failed))
        if any(not step["options"]["kept"] for steps in made.values() for step in steps if step["tool"] == "onnxslim"):
            raise AnswersDiffer("the packager did not slim the graph")
        return took, [path.read_bytes() for path in paths]


def _theirs(environment: Environment, folder: Path) -> tuple[dict[str, float], list[bytes]]:
    python, tools = str(environment.python), environment.python.parent
    commands = {
        "check": [str(tools / "check-model"), "source.onnx"],
        "slim": [str(tools / "onnxslim"), "source.onnx", "slim.onnx"],
        "export": [python, "-c", _EXPORT, "slim.onnx", "fp32.onnx"],
        # Of its three parts the one that ours has too; the other two would only make it slower.
        "preprocess": [python, "-m", "onnxruntime.quantization.preprocess", "--input", "fp32.onnx", "--output", "shapes.onnx",
                       "--skip_optimization", "True", "--skip_symbolic_shape", "True"],
        "quantise": [python, "-c", _QUANTISE, "shapes.onnx", "int8.onnx"],
    }  # fmt: skip
    took = {}
    for step, command in commands.items():
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        took[step] = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(f"{step}: {done.stderr[-2000:]}")
    return took, [(folder / name).read_bytes() for name in ("fp32.onnx", "int8.onnx")]


def _check(graph: bytes, ours: list[bytes], theirs: list[bytes]) -> None:
    feed = {"x": np.random.default_rng(SEED).random((1, 3, 224, 224), np.float32)}

    def answer(model: bytes) -> Any:
        return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)[0]

    source = answer(graph)
    scale = float(np.abs(source).max())
    fp32, int8 = ([answer(side[index]) for side in (ours, theirs)] for index in (0, 1))
    worst = LIMITS["fp32"][0] * scale
    if any(np.abs(one - source).max() > worst for one in fp32):
        raise AnswersDiffer("an fp32 file does not give what its source gives")
    if np.abs(int8[0] - int8[1]).max() > 1e-3 * scale or np.abs(int8[0] - source).mean() > 0.1 * scale:
        raise AnswersDiffer("the int8 files do not agree")
