"""PERF-P2: our static quantisation with 32 samples against plain inference of those samples, and against ORT's `quantize_static`.

All three in one process of the environment `onnx` on one core, imports done: `_static_quantisation.py` is what runs there.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench._measure import ROOT, SEED, AnswersDiffer, Pair, pairs_wanted, pinned, summarise
from bench._onnx import image_network
from services.packager.environments import Environments
from services.packager.settings import PackagerSettings

GOALS = {"P2": "static calibration of 32 samples against plain inference of them (≤ 3) and ORT quantize_static (≤ 0.5)"}

SAMPLES = 32


def run(goal: str, seconds: float) -> dict[str, Any]:
    """Quantise one network each way, in turn."""
    environment = asyncio.run(Environments(PackagerSettings().environments).ready("onnx", lambda line: None))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        (folder / "source.onnx").write_bytes(image_network(seed=SEED))
        script = str(Path(__file__).with_name("_static_quantisation.py"))
        command = pinned(0, [str(environment.python), script, str(SAMPLES), str(pairs_wanted()), str(SEED)])
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    if found["differs"]:
        raise AnswersDiffer(found["differs"])
    ours = {"name": "quantise with min and max reduced inside the graph", "versions": found["versions"]}
    equality = "every scale of both int8 graphs within 0.1 %, outputs of both from fp32's on average below 0.1 of the largest value"
    shared: dict[str, Any] = {"better": "lower", "unit": "ms", "a": ours, "equality": equality, "samples": SAMPLES}
    plain = [Pair(one["ours"], one["plain"]) for one in found["rounds"]]
    static = [Pair(one["ours"], one["static"]) for one in found["rounds"]]
    return {
        "parts": [
            {"name": "÷ plain inference", **summarise(plain, target=3, b={"name": f"InferenceSession.run of {SAMPLES} samples"}, **shared)},
            {
                "name": "÷ quantize_static",
                **summarise(static, target=0.5, b={"name": "onnxruntime.quantization.quantize_static"}, **shared),
            },
        ],
        "calibrating_ms": [one["calibrating"] for one in found["rounds"]],
    }
