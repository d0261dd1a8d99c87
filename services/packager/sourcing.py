"""Reads a source for conversions and runs it on the samples. Only in the one-shot child.

Job `source`: `{"files": {path: place}, "names": {ours: theirs}, "inputs": [tensor] | null, "outputs": [tensor] | null, "samples": place |
null, "golden": place | null}`. It leaves `out/calibration.npz` when the owner gave samples, and `out/samples.npz` for TensorFlow, which
answers them later. Job `reference`, for formats that the engines here run: `{"format", "inputs": [port], "outputs": [port], "samples":
place | null, "golden": place | null, "seconds"}`. It leaves `out/samples.npz` and `out/reference.npz`.

The samples are generated ones, or the golden input where the owner gave one, and some of the owner's samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from services.packager import samples
from services.packager.answer import source_to_json, tensor_from_json
from services.packager.converters.arrays import read_npz, write_npz
from services.packager.domain import Port, Tensor, check_tensors
from services.packager.errors import ModelRejected, Reason
from services.packager.formats.source import read_source
from services.packager.loading import check_external, load, memory_error, step, tensors, version_of
from services.packager.probe import Run, attempts

_SAMPLES = Path("out/samples.npz")


def read(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do the job `source`. Raises `ModelRejected`."""
    step("reading")
    files = {path: Path(place) for path, place in job["files"].items()}
    inputs, outputs = tensors(job["inputs"]), tensors(job["outputs"])
    main, source = read_source(files, job["names"], inputs, outputs, version_of)
    check_external(source.external, {path.rpartition("/")[2]: place for path, place in job["files"].items() if path != main})
    step("checking")
    source = replace(
        source,
        inputs=_merged(Reason.INPUT_MISMATCH, "input", inputs, source.inputs),
        outputs=_merged(Reason.OUTPUT_MISMATCH, "output", outputs, source.outputs),
    )
    wanted = tuple(port.tensor for port in source.inputs)
    owners = None
    if job["samples"] is not None:
        step("sampling")
        owners = samples.spread(samples.read_samples(Path(job["samples"]), wanted), samples.MAX_CALIBRATION)
        write_npz(Path("out/calibration.npz"), owners, packed=False)
    if source.format in {"saved-model", "graphdef"}:
        write_npz(_SAMPLES, _with_owners(wanted, owners, _golden(job, wanted)), packed=False)
    return {"ok": True, "source": source_to_json(source), "main": main, "calibration": 0 if owners is None else samples.count(owners)}


def reference(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do the job `reference`. Raises `ModelRejected`."""
    step("loading")
    engine, runner = load(job["format"])
    inputs = [(port["called"], _tensor(port)) for port in job["inputs"]]
    names = {port["called"]: port["name"] for port in job["outputs"]}
    called = {tensor.name: theirs for theirs, tensor in inputs}

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        try:
            results = runner.run({called[name]: engine.as_input(array) for name, array in feed.items()})
        except Exception as error:
            raise memory_error(error) from error
        return {names[name]: engine.as_output(array) for name, array in results.items() if name in names}

    step("running")
    owners = None if job["samples"] is None else read_npz(Path(job["samples"]))
    tensors = tuple(tensor for _, tensor in inputs)
    columns, rows = _answered(run, tensors, owners, _golden(job, tensors), job["seconds"] / 2)
    write_npz(_SAMPLES, columns, packed=False)
    write_npz(Path("out/reference.npz"), {name: np.stack([row[name] for row in rows]) for name in names.values()}, packed=False)
    return {"ok": True}


def _golden(job: Mapping[str, Any], inputs: tuple[Tensor, ...]) -> samples.Columns | None:
    return None if job["golden"] is None else {name: array[None] for name, array in samples.read_one(Path(job["golden"]), inputs).items()}


def _answered(
    run: Run, inputs: tuple[Tensor, ...], owners: samples.Columns | None, golden: samples.Columns | None, seconds: float
) -> tuple[samples.Columns, list[dict[str, Any]]]:
    """Find samples that the source runs on. Raises `ModelRejected` with what it said to the first ones."""
    started = time.monotonic()
    first: Exception | None = None
    known = golden or owners
    for style, size in attempts(inputs if known is None else samples.shaped(inputs, known)):
        columns = _with_owners(inputs, owners, golden, size, style)
        try:
            return columns, [run(feed) for feed in samples.feeds(columns)]
        except (ModelRejected, MemoryError):
            raise
        except Exception as error:
            first = first or error
        if golden is not None or time.monotonic() - started > seconds:
            break
    raise ModelRejected(
        Reason.MODEL_RUN_FAILED,
        f"The source does not run on its samples: {first}. Declare the inputs with fixed shapes and a range, or give a golden.input.",
    )


def _with_owners(
    inputs: tuple[Tensor, ...], owners: samples.Columns | None, golden: samples.Columns | None, size: int = 16, style: str = "spread"
) -> samples.Columns:
    first = golden or samples.generated(inputs if owners is None else samples.shaped(inputs, owners), size, style)
    return first if owners is None else samples.join(first, owners, samples.OWNERS)


def _merged(reason: Reason, kind: str, declared: tuple[Tensor, ...] | None, found: tuple[Port, ...]) -> tuple[Port, ...]:
    called = {port.tensor.name: port.called for port in found}
    merged = check_tensors(reason, kind, declared, tuple(port.tensor for port in found))
    return tuple(Port(called[tensor.name], tensor) for tensor in merged)


def _tensor(port: Mapping[str, Any]) -> Tensor:
    return tensor_from_json({key: value for key, value in port.items() if key != "called"})
