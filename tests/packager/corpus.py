"""`make corpus`: SEC-B4. Every model of the `onnx` package's backend test data through the whole packager; prints what became of them.

python -m tests.packager.corpus [--stride 1]

A model is pushed as a user pushes it: alone, with an evaluation set of the inputs and outputs that the data has for it, and the data's
tolerances. When the packager finds no input that the model runs on and says so, its advice is followed: the same again with the data's
input as golden input.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latebind_proto import events_pb2
from services.packager.environments import Environments
from services.packager.settings import PackagerSettings
from tests.packager.running import Packaging, packaging

#: Refusals that say "give the model's input", and the next push does.
WANTS_INPUT = frozenset({"MODEL_RUN_FAILED", "OUTPUT_MISMATCH", "MODEL_OUTPUT_NOT_FINITE", "MODEL_NOT_DETERMINISTIC"})
#: What no package of ours can be, whatever is given with it: other operators, other types at its ends, nothing in the runtime to run it.
OUTSIDE = frozenset({"OPERATOR_NOT_ALLOWED", "TENSOR_NOT_SUPPORTED", "MODEL_LOAD_FAILED", "ENGINE_TOO_OLD"})

#: Refused although the runtime knows their operators, each for a reason that is in the detail.
REFUSED = {
    # The largest or the logarithm of nothing is infinite, and of booleans it does not exist.
    "node/test_reduce_log_sum_empty_set": "MODEL_OUTPUT_NOT_FINITE",
    "node/test_reduce_log_sum_empty_set_expanded": "MODEL_OUTPUT_NOT_FINITE",
    "node/test_reduce_log_sum_exp_empty_set": "MODEL_OUTPUT_NOT_FINITE",
    "node/test_reduce_log_sum_exp_empty_set_expanded": "MODEL_OUTPUT_NOT_FINITE",
    "node/test_reduce_max_empty_set": "MODEL_OUTPUT_NOT_FINITE",
    "node/test_reduce_min_empty_set": "MODEL_OUTPUT_NOT_FINITE",
    "node/test_reduce_max_empty_set_bool": "MODEL_RUN_FAILED",
    # They give out their masked scores, which are minus infinity.
    "node/test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal_expanded": "MODEL_OUTPUT_NOT_FINITE",
    "node/test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal_expanded": "MODEL_OUTPUT_NOT_FINITE",
    # ONNX Runtime 1.32 refuses its own input: masks shorter than the keys, zero points per channel.
    "node/test_attention_4d_diff_heads_mask4d_padded_kv": "MODEL_RUN_FAILED",
    "node/test_convinteger_with_padding": "MODEL_RUN_FAILED",
}
#: ONNX Runtime 1.32 answers otherwise than the data says. The packager is not in this: the runtime alone does the same.
DIFFERENT = {
    # Zeros that are 1e-4 and less, beside sums near 100; the data allows 1e-7.
    *(f"node/test_dft{end}" for end in ("", "_axis", "_inverse", "_irfft", "_rfft", "_opset19")),
    *(f"node/test_dft_{which}_opset19" for which in ("axis", "inverse", "irfft", "rfft")),
    "node/test_stft",
    "node/test_stft_with_window",
    # One unit in the last place of float16.
    "node/test_attention_4d_causal_fp16",
    # The lowest number for minus infinity in masked scores.
    "node/test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "node/test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
    # Another random generator.
    *(f"node/test_training_dropout{end}" for end in ("", "_default", "_default_mask", "_mask")),
    # Rounded sizes and places.
    "node/test_resize_downsample_scales_cubic_align_corners",
    "node/test_resize_downsample_scales_linear_align_corners",
    "node/test_maxunpool_export_with_output_shape",
}

#: A job's pause between looks, and how many jobs wait at once: enough to keep two runners busy.
_LOOK_S = 0.05
#: How long a commit may be on its way to the packager on a crowded machine.
_PATIENCE_S = 60.0
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a model. `code` and `detail`: why it was refused. `equal`: its outputs are the data's; None without such data."""

    name: str
    code: str | None
    detail: str = ""
    given: bool = False
    equal: bool | None = None


def write_corpus(folder: Path) -> list[dict[str, Any]]:
    """Write the models and their data, by the interpreter of the environment `onnx`; return the list of them."""
    ready = asyncio.run(Environments(PackagerSettings().environments).ready("onnx", lambda line: None))
    command = [str(ready.python), str(Path(__file__).with_name("onnx_corpus.py")), str(folder)]
    subprocess.run(command, check=True, timeout=600)
    listed: list[dict[str, Any]] = json.loads((folder / "corpus.json").read_text())
    return listed


async def package_all(corpus: Path, models: Sequence[dict[str, Any]], folder: Path) -> list[Ended]:
    """Package models through one running packager. Raises `AssertionError` where a job ends as none may."""
    ended: list[Ended] = []
    rest = iter(models)
    async with packaging(folder, jobs_at_once=2) as one:

        async def work() -> None:
            for model in rest:
                last = await _push(one, corpus, model, given=False)
                if last.code in WANTS_INPUT and model["set"]:
                    assert "golden.input" in last.detail, last
                    last = await _push(one, corpus, model, given=True)
                ended.append(last)
                if len(ended) % 100 == 0:
                    print(f"{len(ended)} of {len(models)} models", flush=True)

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return sorted(ended, key=lambda one: one.name)


async def _push(one: Packaging, corpus: Path, model: dict[str, Any], *, given: bool) -> Ended:
    place = corpus / model["name"]
    golden: dict[str, Any] = {"rtol": model["rtol"], "atol": model["atol"]}
    declaration: dict[str, Any] = {"variants": [{"files": [await one.put("model.onnx", (place / "model.onnx").read_bytes())]}]}
    if model["set"]:
        declaration["evaluation"] = {"file": await one.put("set.npz", (place / "set.npz").read_bytes())}
    if given:
        golden["input"] = await one.put("golden.npz", (place / "input.npz").read_bytes())
    job = await _job(one, {**declaration, "golden": golden})
    if job["state"] != "succeeded":
        problem = job["problem"]
        assert job["state"] == "failed" and problem["code"] and len(problem["detail"]) > 20, (model["name"], job)
        return Ended(model["name"], problem["code"], problem["detail"], given)
    if not model["set"]:
        return Ended(model["name"], None, given=given)
    (built,) = (events_pb2.PackageBuilt.FromString(record.value) for record in await one.told(job["job_id"]))
    (row,) = json.loads(built.report_json)["variants"]
    equal = row["accuracy"] == {"metric": "agreement", "samples": 1, "value": 1.0, "floor": None, "passed": True}
    expected, golden_input = np.load(place / "set.npz"), np.load(place / "input.npz")
    if given and all(np.array_equal(golden_input[name], expected[name]) for name in golden_input.files):
        # Then the package holds the outputs, and nobody's word is needed.
        golden_output = json.loads(built.packages[0].manifest_json)["golden"]["output"]
        files = {file["path"]: file["sha256"] for file in json.loads(built.packages[0].manifest_json)["files"]}
        body = b"".join([chunk async for chunk in one.ports.blobs.open("acme", files[golden_output])])
        assert equal == _are_equal(np.load(io.BytesIO(body)), expected, model), model
    return Ended(model["name"], None, given=given, equal=equal)


async def _job(one: Packaging, declaration: dict[str, Any]) -> dict[str, Any]:
    """Commit a version and wait for the end of its job, through the route that people ask."""
    job_id = await one.commit(declaration)
    on_its_way = time.monotonic() + _PATIENCE_S
    async with one.client() as client:
        while True:
            answer = await client.get(f"/v1/jobs/{job_id}")
            if answer.status_code == 404 and time.monotonic() < on_its_way:
                continue  # the route has waited already
            assert answer.status_code == 200, answer.text
            job: dict[str, Any] = answer.json()
            if job["state"] in {"succeeded", "failed", "cancelled"}:
                return {**job, "job_id": job_id}
            await asyncio.sleep(_LOOK_S)


def _are_equal(outputs: Any, expected: Any, model: dict[str, Any]) -> bool:
    for name in outputs.files:
        have, want = outputs[name], expected[name][0]
        if have.shape != want.shape or have.dtype.kind != want.dtype.kind:
            return False
        exact = want.dtype.kind in "Ub"
        if not (np.array_equal(have, want) if exact else np.allclose(have, want, model["rtol"], model["atol"], equal_nan=True)):
            return False
    return True


def check(ended: Sequence[Ended]) -> None:
    """Hold what became of models against what may. Raises `AssertionError`."""
    refused = {one.name: one.code for one in ended if one.code is not None and one.code not in OUTSIDE}
    assert refused.items() <= REFUSED.items(), refused.items() - REFUSED.items()
    different = {one.name for one in ended if one.equal is False}
    assert different <= DIFFERENT, different - DIFFERENT


def show(ended: Sequence[Ended]) -> None:
    """Print what became of the models, per kind of ending."""
    good = [one for one in ended if one.code is None]
    outside = [one for one in ended if one.code in OUTSIDE]
    inside = len(ended) - len(outside)
    print(f"{len(ended)} valid models: {len(outside)} outside of what packages can be, {inside} inside")
    print(
        f"{len(good)} of {inside} accepted ({100 * len(good) / max(1, inside):.2f} %), {sum(one.given for one in good)} with a golden input"
    )
    equal = Counter(one.equal for one in good)
    print(f"outputs: {equal[True]} equal the data's, {equal[False]} differ, {equal[None]} have none to compare")
    for code, count in Counter(one.code for one in ended if one.code is not None).most_common():
        example = next(one for one in ended if one.code == code)
        print(f"{count:6}  {code:26} e.g. {example.name}: {example.detail[:150]}")
    by_code = defaultdict(list)
    for one in ended:
        if one.code is not None and one.code not in OUTSIDE:
            by_code[one.code].append(one)
    for code, ones in by_code.items():
        for one in ones:
            print(f"refused inside: {code}: {one.name}: {one.detail[:400]}")
    for one in good:
        if one.equal is False:
            print(f"differs: {one.name}")


def main(stride: int) -> int:
    """Package every `stride`-th model, print what they came to and check it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        models = write_corpus(folder / "corpus")[::stride]
        started = time.monotonic()
        ended = asyncio.run(package_all(folder / "corpus", models, folder / "data"))
        print(f"{time.monotonic() - started:.0f} s")
    show(ended)
    check(ended)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--stride", type=int, default=1)
    sys.exit(main(parser.parse_args().stride))
