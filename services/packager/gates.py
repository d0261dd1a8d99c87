"""What stands between a variant and `ready`: parity with its source, accuracy on the owner's evaluation set. Pure.

Speed and memory are estimates of the machine that packaged; they are told, never judged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from services.packager.answer import Measured
from services.packager.errors import ModelRejected, Reason

#: precision -> (worst, mean): how far an output may be from the source's, in units of the source's largest value (at least 1e-3).
#: For coarse precisions the worst single value says little, so that their mean is held tighter.
LIMITS = {"fp32": (1e-4, 1e-4), "fp64": (1e-4, 1e-4), "fp16": (2e-2, 5e-3), "bf16": (1e-1, 2e-2)}
_QUANTISED = (1.0, 1e-1)
_LEAST_SCALE = 1e-3
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output against the source's: differences and what they may be."""

    name: str
    worst: float
    mean: float
    worst_allowed: float
    mean_allowed: float

    @property
    def passed(self) -> bool:
        """Whether both are within bounds."""
        return self.worst <= self.worst_allowed and self.mean <= self.mean_allowed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a variant's report says, and why it may not be served (None: it may)."""

    report: dict[str, Any]
    problem: ModelRejected | None


def judge(measured: Measured, precision: str, *, floor: float | None) -> Verdict:
    """Hold what was measured against the limits of the precision and the owner's floor."""
    parity = None if measured.parity is None else [_parity(*row, precision) for row in measured.parity]
    failed = [one for one in parity or () if not one.passed]
    report: dict[str, Any] = {
        "parity": None if parity is None else {
            "passed": not failed,
            "samples": measured.samples,
            "outputs": [{**asdict(one), "passed": one.passed} for one in sorted(parity, key=_badness, reverse=True)[:_SHOWN]],
        },
        "accuracy": None,
        "speed": {**measured.speed, "threads": 1, "estimate": "on the machine that packaged"},
        "memory": {"peak_mb": measured.peak_mb, "estimate": "of the whole process that ran it, runtime included"},
    }  # fmt: skip
    problems = []
    if measured.accuracy is not None:
        passed = floor is None or measured.accuracy["value"] >= floor
        report["accuracy"] = {**measured.accuracy, "floor": floor, "passed": passed}
        if not passed:
            problems.append(_too_inaccurate(measured.accuracy, floor))
    if failed:
        problems.append(_too_far(failed, precision))
    if not problems:
        return Verdict(report, None)
    return Verdict(report, ModelRejected(problems[0].reason, " ".join(one.detail for one in problems)))


def _parity(name: str, worst: float, mean: float, scale: float, precision: str) -> OutputParity:
    most_worst, most_mean = LIMITS.get(precision, _QUANTISED)
    unit = max(scale, _LEAST_SCALE)
    return OutputParity(name, worst, mean, most_worst * unit, most_mean * unit)


def _badness(one: OutputParity) -> float:
    return max(one.worst / one.worst_allowed, one.mean / one.mean_allowed)


def _too_far(failed: list[OutputParity], precision: str) -> ModelRejected:
    rows = "; ".join(
        f'"{one.name}" differs by {one.worst:.3g} at worst (allowed {one.worst_allowed:.3g}) and {one.mean:.3g} on average '
        f"(allowed {one.mean_allowed:.3g})"
        for one in failed[:4]
    )
    return ModelRejected(Reason.PARITY_TOO_LOW, f"The variant does not give what its source gives ({precision}): {rows}.")


def _too_inaccurate(accuracy: dict[str, Any], floor: float | None) -> ModelRejected:
    return ModelRejected(
        Reason.ACCURACY_TOO_LOW,
        f"On the {accuracy['samples']} evaluation samples its accuracy ({accuracy['metric']}) is {accuracy['value']:.4f}, "
        f"but at least {floor:.4f} was asked for.",
    )
