"""What the gates make of numbers, and how the numbers come about. No child: the models are functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.packager import measuring, samples
from services.packager.answer import Measured
from services.packager.domain import Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.gates import judge
from tests.packager.converting import npz

X = (Tensor("x", "float32", (None, 3)),)
Y = (Tensor("y", "float32", (None, 2)),)
SPEED = {"median_ms": 1.0, "p90_ms": 2.0, "runs": 3}


def measured(worst: float, mean: float, scale: float, accuracy: float | None = None) -> Measured:
    found = None if accuracy is None else {"metric": "top-1", "samples": 100, "value": accuracy}
    return Measured(4, (("y", worst, mean, scale),), found, SPEED, 50)


@pytest.mark.parametrize(
    ("precision", "worst", "mean", "scale", "passed"),
    [
        ("fp32", 1e-4, 1e-5, 1.0, True),
        ("fp32", 1.1e-4, 1e-5, 1.0, False),
        ("fp32", 9e-3, 1e-3, 100.0, True),
        ("fp32", 2e-7, 1e-8, 1e-6, False),  # a model of tiny values: the unit is never below 0.001
        ("fp32", 9e-8, 1e-8, 1e-6, True),
        ("fp16", 1e-2, 1e-3, 1.0, True),
        ("fp16", 1e-2, 1e-2, 1.0, False),
        ("int8", 0.9, 0.05, 1.0, True),
        ("int8", 0.9, 0.2, 1.0, False),
        ("fp32", 1e30, 1e30, 1.0, False),
    ],
)
def test_parity_by_precision(precision: str, worst: float, mean: float, scale: float, passed: bool) -> None:
    verdict = judge(measured(worst, mean, scale), precision, floor=None)
    assert (verdict.problem is None) == verdict.report["parity"]["passed"] == passed
    if verdict.problem is not None:
        assert verdict.problem.reason is Reason.PARITY_TOO_LOW
        assert f"{worst:.3g}" in verdict.problem.detail and f"{mean:.3g}" in verdict.problem.detail


@pytest.mark.parametrize(("accuracy", "floor", "passed"), [(0.95, 0.95, True), (0.9499, 0.95, False), (0.1, None, True), (0.0, 0.0, True)])
def test_accuracy_against_the_floor(accuracy: float, floor: float | None, passed: bool) -> None:
    verdict = judge(measured(0, 0, 1, accuracy), "int8", floor=floor)
    assert (verdict.problem is None) == verdict.report["accuracy"]["passed"] == passed
    if verdict.problem is not None:
        assert verdict.problem.reason is Reason.ACCURACY_TOO_LOW and "0.9499" in verdict.problem.detail


def test_both_failures_are_told() -> None:
    problem = judge(measured(1, 1, 1, 0.2), "fp32", floor=0.9).problem
    assert problem is not None and problem.reason is Reason.ACCURACY_TOO_LOW
    assert "0.2000" in problem.detail and "differs by 1 at worst" in problem.detail


def test_differences_to_the_source() -> None:
    columns = {"x": np.arange(6, dtype=np.float32).reshape(2, 1, 3)}
    reference = {"y": np.array([[[0.0, 1.0]], [[2.0, np.nan]]], np.float32)}
    answers = iter([{"y": np.array([[0.5, 1.0]], np.float32)}, {"y": np.array([[2.0, np.nan]], np.float32)}])
    assert measuring.compare(lambda feed: next(answers), columns, reference) == [{"name": "y", "worst": 0.5, "mean": 0.125, "scale": 2.0}]
    answers = iter([{"y": np.array([[np.inf, 1.0]], np.float32)}, {"y": np.array([[2.0, 3.0]], np.float32)}])
    (row,) = measuring.compare(lambda feed: next(answers), columns, reference)
    assert row["worst"] == 1e30
    with pytest.raises(ModelRejected) as caught:
        measuring.compare(lambda feed: {"y": np.zeros((1, 3), np.float32)}, columns, reference)
    assert caught.value.reason is Reason.PARITY_TOO_LOW


def test_expected_outputs_of_every_kind(tmp_path: Path) -> None:
    """Texts, NaN where NaN is meant, values without dimensions; another shape is another answer, not a broadcast."""
    path = tmp_path / "set.npz"
    ends = (Tensor("k", "int64", ()),), (Tensor("t", "string", (2,)), Tensor("y", "float32", None))
    path.write_bytes(npz(k=np.array([3, 4]), t=np.array([["a", "b"], ["c", "d"]]), y=np.array([[1.0, np.nan], [2.0, 3.0]], np.float32)))
    given = samples.read_evaluation(path, *ends)
    right = [{"t": np.array(["a", "b"]), "y": np.array([1.0, np.nan])}, {"t": np.array(["c", "d"]), "y": np.array([2.0, 3.0])}]
    for change, value in (({}, 1.0), ({"t": np.array(["a", "x"])}, 0.5), ({"y": np.array([1.0, 1.0])}, 0.5), ({"y": np.array(1.0)}, 0.5)):
        answers = iter([{**right[0], **change}, right[1]])
        seen: list[Any] = []

        def run(feed: Any, answers: Any = answers, seen: Any = seen) -> Any:
            seen.append(feed["k"])
            return next(answers)

        assert measuring.evaluate(run, given, ends[1], None, (0.0, 0.0))["value"] == value
        assert all(isinstance(one, np.ndarray) and one.ndim == 0 for one in seen) and [int(one) for one in seen] == [3, 4]


def test_a_sample_that_the_model_does_not_run_on_is_the_owners_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(npz(x=np.zeros((2, 1, 3), np.float32), labels=np.array([0, 1])))

    def run(feed: Any) -> Any:
        raise RuntimeError("index 7 is out of bounds")

    gates = {"samples": None, "reference": None, "evaluation": str(path), "output": None}
    with pytest.raises(ModelRejected) as caught:
        measuring.measure(run, gates, {"x": np.zeros((1, 3), np.float32)}, (X, Y), tolerance=(0.1, 0.1), step=lambda _step: None)
    assert caught.value.reason is Reason.SAMPLES_INVALID and "index 7" in caught.value.detail


def evaluated(tmp_path: Path, arrays: dict[str, Any], output: str | None = None, outputs: Any = Y) -> dict[str, Any]:
    path = tmp_path / "set.npz"
    path.write_bytes(npz(**arrays))
    found = samples.read_evaluation(path, X, outputs)
    return measuring.evaluate(lambda feed: {"y": feed["x"][:, :2], "z": feed["x"]}, found, outputs, output, (0.0, 0.1))


def test_accuracy_of_labels_and_of_expected_outputs(tmp_path: Path) -> None:
    x = np.array([[0, 1, 0], [1, 0, 0], [3, 2, 0], [0, 5, 0]], np.float32)
    assert evaluated(tmp_path, {"x": x, "labels": np.array([1, 0, 0, 0])}) == {"metric": "top-1", "samples": 4, "value": 0.75}
    assert evaluated(tmp_path, {"x": x[:, None], "labels": np.array([[1], [0], [0], [1]])})["value"] == 1.0
    expected = x[:, :2] + np.array([[0.05], [0.0], [0.2], [0.0]], np.float32)
    assert evaluated(tmp_path, {"x": x, "y": expected}) == {"metric": "agreement", "samples": 4, "value": 0.75}
    two = (*Y, Tensor("z", "float32", (None, 3)))
    assert evaluated(tmp_path, {"x": x, "labels": np.array([1, 0, 0, 1])}, "z", two)["value"] == 1.0
    with pytest.raises(ModelRejected, match="several outputs"):
        evaluated(tmp_path, {"x": x, "labels": np.array([1, 0, 0, 1])}, None, two)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"labels": np.zeros(2, int)}, 'no array for the input "x"'),
        ({"x": np.zeros((2, 3), np.float32)}, 'neither "labels" nor expected'),
        ({"x": np.zeros((2, 3), np.float32), "labels": np.zeros(3, int)}, "one whole number per sample"),
        ({"x": np.zeros((2, 3), np.float32), "labels": np.zeros(2)}, "one whole number per sample"),
        ({"x": np.zeros((2, 4), np.float32), "labels": np.zeros(2, int)}, "the model takes float32"),
        ({"x": np.zeros((0, 3), np.float32), "labels": np.zeros(0, int)}, "at least one"),
        ({"x": np.zeros((2, 2, 2, 3), np.float32), "labels": np.zeros(2, int)}, "dimensions"),
        ({"x": np.array(["a", "b"]), "labels": np.zeros(2, int)}, "not float32"),
        ({"x": np.zeros((2, 3), np.float32), "y": np.zeros((3, 2), np.float32)}, "rows for 2 samples"),
    ],
)
def test_sets_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelRejected) as caught:
        evaluated(tmp_path, arrays)
    assert caught.value.reason is Reason.SAMPLES_INVALID and says in caught.value.detail


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", b"\x93NUMPY"])
def test_files_that_hold_no_plain_arrays(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(body)
    with pytest.raises(ModelRejected) as caught:
        samples.read_samples(tmp_path / "set.npz", X)
    assert caught.value.reason is Reason.SAMPLES_INVALID


def test_pickled_objects_in_a_set_are_not_loaded(tmp_path: Path) -> None:
    with (tmp_path / "set.npz").open("wb") as file:
        np.savez(file, x=np.array([print, {}], object))
    with pytest.raises(ModelRejected, match=r"no \.npz of plain arrays"):
        samples.read_samples(tmp_path / "set.npz", X)


def test_samples_keep_a_fixed_batch(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(npz(x=np.arange(21).reshape(7, 3)))
    columns = samples.read_samples(tmp_path / "set.npz", (Tensor("x", "float32", (2, 3)),))
    assert (columns["x"].shape, columns["x"].dtype, samples.count(columns)) == ((3, 2, 3), np.float32, 3)
    assert samples.spread(columns, 2)["x"].shape == (2, 2, 3)
