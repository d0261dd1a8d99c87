"""Measures a loaded model for the gates: against its source, on an evaluation set, its speed and memory. Only in the one-shot child.

It returns numbers; `gates.py` says what they mean.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.packager.converters.arrays import read_npz
from services.packager.domain import Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.probe import Run, close
from services.packager.samples import Columns, Evaluation, count, feeds, read_evaluation

_SPEED_RUNS = 30
_SPEED_SECONDS = 1.5


def measure(
    run: Run,
    gates: Mapping[str, Any],
    golden: Columns,
    ends: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    *,
    tolerance: tuple[float, float],
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Measure all that the gates ask for.

    Args:
        run: runs the loaded model once.
        gates: places of `samples` and `reference` (the source's outputs for them), of an `evaluation` set, the `output` that its labels
            belong to; each may be null.
        golden: one set of inputs, for the speed where there are no samples.
        ends: inputs and outputs of the model.
        tolerance: relative and absolute, for expected outputs.
        step: told what begins.

    Raises:
        ModelRejected: the evaluation set does not fit the model, the model does not run on samples, or outputs have other shapes than the
            source's.
    """
    run = _explained(run)
    parity = accuracy = None
    samples = {name: array[None] for name, array in golden.items()}
    if gates["reference"] is not None:
        step("comparing")
        samples = read_npz(Path(gates["samples"]))
        parity = compare(run, samples, read_npz(Path(gates["reference"])))
    if gates["evaluation"] is not None:
        step("evaluating")
        accuracy = evaluate(run, read_evaluation(Path(gates["evaluation"]), *ends), ends[1], gates["output"], tolerance)
    step("measuring")
    return {"samples": count(samples), "parity": parity, "accuracy": accuracy, "speed": speed(run, samples), "peak_mb": peak_mb()}


def _explained(run: Run) -> Run:
    def explained(feed: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return run(feed)
        except (ModelRejected, MemoryError):
            raise
        except Exception as error:
            raise ModelRejected(Reason.SAMPLES_INVALID, f"The model ran on its golden input, but not on a given sample: {error}") from error

    return explained


def compare(run: Run, samples: Columns, reference: Columns) -> list[dict[str, Any]]:
    """Run the samples and return, per output, the worst and mean difference to the source, and the source's largest value (`scale`).

    Texts and booleans count as 0 where they are equal and 1 where not. A value that is not finite on one side only is infinitely wrong.
    """
    results = [run(feed) for feed in feeds(samples)]
    return [{"name": name, **_difference([one[name] for one in results], column)} for name, column in reference.items()]


def _difference(results: list[Any], reference: Any) -> dict[str, float]:
    worst = total = scale = 0.0
    values = 0
    for have, want in zip(results, reference, strict=True):
        if have.shape != want.shape:
            raise ModelRejected(
                Reason.PARITY_TOO_LOW, f"The variant gives an output of {list(have.shape)} where the source gives {list(want.shape)}."
            )
        if want.dtype.kind not in "fiu":
            errors = (have != want).astype(np.float64)
        else:
            errors = np.abs(have.astype(np.float64) - want.astype(np.float64))
            errors[(have == want) | (np.isnan(have) & np.isnan(want))] = 0.0
            errors[np.isnan(errors)] = np.inf
            finite = np.abs(want[np.isfinite(want)].astype(np.float64))
            scale = max(scale, float(finite.max(initial=0.0)))
        worst = max(worst, float(errors.max(initial=0.0)))
        total += float(errors.sum())
        values += errors.size
    # JSON has no infinity; no model's values are near this.
    return {"worst": min(worst, 1e30), "mean": min(total / max(1, values), 1e30), "scale": min(scale, 1e30)}


def evaluate(
    run: Run, evaluation: Evaluation, outputs: tuple[Tensor, ...], output: str | None, tolerance: tuple[float, float]
) -> dict[str, Any]:
    """Return `metric`, `samples` and `value` (0 to 1).

    With labels: how often the largest value of the output is at the label (`top-1`; a single value counts as a class above one half).
    Without: the share of samples whose outputs are all within `tolerance` (`agreement`).
    """
    rtol, atol = tolerance
    if evaluation.labels is None:
        right = [
            close({name: result[name] for name in wanted}, wanted, rtol, atol)
            for result, wanted in zip(map(run, feeds(evaluation.inputs)), feeds(evaluation.expected), strict=True)
        ]
        return {"metric": "agreement", "samples": len(right), "value": sum(right) / len(right)}
    name = _judged(outputs, output)
    hits = total = 0
    for feed, labels in zip(feeds(evaluation.inputs), evaluation.labels, strict=True):
        scores = run(feed)[name]
        classes = _classes(scores, len(labels))
        hits += int((classes == labels).sum())
        total += len(labels)
    return {"metric": "top-1", "samples": total, "value": hits / total}


def _judged(outputs: tuple[Tensor, ...], output: str | None) -> str:
    names = [tensor.name for tensor in outputs]
    if output is None and len(names) != 1:
        raise ModelRejected(
            Reason.SAMPLES_INVALID, f"The evaluation set has labels, but the model has several outputs: name one of {', '.join(names)}."
        )
    if output is not None and output not in names:
        raise ModelRejected(Reason.SAMPLES_INVALID, f'The evaluation names the output "{output}"; the model has {", ".join(names)}.')
    return output or names[0]


def _classes(scores: Any, count: int) -> Any:
    """Return the class of each of `count` samples in an output: the scores themselves when they are whole numbers."""
    rows = scores.reshape(count, -1) if scores.size % count == 0 and scores.size else None
    if rows is None:
        raise ModelRejected(Reason.SAMPLES_INVALID, f"An output of {list(scores.shape)} does not give one class for {count} label(s).")
    if rows.shape[1] > 1:
        return rows.argmax(axis=1)
    return rows[:, 0] if rows.dtype.kind in "iu" else (rows[:, 0] > 0.5).astype(np.int64)


def speed(run: Run, samples: Columns) -> dict[str, Any]:
    """Return the median and 90th percentile of single runs in ms, one thread. A figure of this machine in this moment."""
    feed = next(feeds(samples), {})  # a model without inputs has no samples
    run(feed)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _SPEED_RUNS and (len(times) < 3 or time.perf_counter() - started < _SPEED_SECONDS):
        begun = time.perf_counter()
        run(feed)
        times.append((time.perf_counter() - begun) * 1000)
    ordered = sorted(times)
    return {"median_ms": statistics.median(times), "p90_ms": ordered[math.ceil(len(ordered) * 0.9) - 1], "runs": len(times)}


def peak_mb() -> int:
    """Return the most memory that this process ever held, in MiB: runtime, model and this program."""
    return -(-resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
