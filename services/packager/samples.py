"""Samples for conversions and gates: generated ones, the owner's, and evaluation sets. Only in the one-shot child: it reads .npz files.

A set of samples is one array per input with the samples on the first axis: `column[i]` is what one run takes. Owners write their files
either like that, or as they have their data: one row per sample, without the batch dimension of one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.packager.converters.arrays import read_npz
from services.packager.domain import Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.probe import generate

#: How many samples source and variants are compared on: generated ones, and at most so many of the owner's.
GENERATED = 4
OWNERS = 12
MAX_CALIBRATION = 512
LABELS = "labels"

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation set: inputs, and either `labels` (the right class of each sample) or `expected` outputs."""

    inputs: Columns
    labels: Any | None
    expected: Columns


def generated(inputs: tuple[Tensor, ...], size: int, style: str = "spread") -> Columns:
    """Make the generated samples; free dimensions have the given size."""
    feeds = [generate(inputs, size, style, sample) for sample in range(GENERATED)]
    return {tensor.name: np.stack([feed[tensor.name] for feed in feeds]) for tensor in inputs}


def read_samples(path: Path, inputs: tuple[Tensor, ...]) -> Columns:
    """Read an owner's samples. Raises `ModelRejected` with SAMPLES_INVALID that says what does not fit."""
    arrays = _load(path)
    unknown = sorted(arrays.keys() - {tensor.name for tensor in inputs})
    if unknown:
        raise _invalid(f'there is an array "{unknown[0]}", which is no input (inputs: {_names(inputs)})')
    return _inputs(arrays, inputs)


def read_one(path: Path, inputs: tuple[Tensor, ...]) -> Columns:
    """Read what one run takes: the first sample of a file. Raises `ModelRejected` with SAMPLES_INVALID."""
    return next(feeds(read_samples(path, inputs)))


def read_evaluation(path: Path, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Evaluation:
    """Read an owner's evaluation set: the inputs, and `labels` or one array per output. Raises `ModelRejected` with SAMPLES_INVALID."""
    arrays = _load(path)
    columns = _inputs(arrays, inputs)
    total = count(columns)
    expected = {tensor.name: _rows(arrays[tensor.name], tensor) for tensor in outputs if tensor.name in arrays}
    labels = arrays.get(LABELS)
    if labels is None and not expected:
        raise _invalid(f'the evaluation set has neither "{LABELS}" nor expected outputs (outputs: {_names(outputs)})')
    if labels is not None:
        # A run may answer for a batch; what does not fill the last batch is not run.
        each = labels.size // total
        if not each or labels.size - each * total >= each or labels.dtype.kind not in "iu":
            raise _invalid(f'"{LABELS}" needs one whole number per sample ({total} samples, {labels.size} labels of type {labels.dtype})')
        labels = labels.reshape(-1)[: each * total].reshape(total, each)
    short = [name for name, column in expected.items() if len(column) != total]
    if short:
        raise _invalid(f'"{short[0]}" has {len(expected[short[0]])} rows for {total} samples')
    return Evaluation(columns, labels, expected)


def shaped(inputs: tuple[Tensor, ...], columns: Columns) -> tuple[Tensor, ...]:
    """Give the inputs the shapes that samples have."""
    return tuple(replace(tensor, shape=columns[tensor.name].shape[1:]) for tensor in inputs)


def join(first: Columns, more: Columns, most: int) -> Columns:
    """Add at most `most` samples of the second set, spread over it, to the first. Both have the same shapes."""
    return {name: np.concatenate([first[name], column]) for name, column in spread(more, most).items()}


def spread(columns: Columns, most: int) -> Columns:
    """Take at most `most` samples, spread over the set."""
    step = max(1, -(-count(columns) // most))
    return {name: column[::step][:most] for name, column in columns.items()}


def feeds(columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what each run takes."""
    for index in range(count(columns)):
        # With the dots a sample without dimensions stays an array.
        yield {name: column[index, ...] for name, column in columns.items()}


def _load(path: Path) -> Columns:
    try:
        return read_npz(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise _invalid(f"the file is no .npz of plain arrays ({error})") from error


def _inputs(arrays: Columns, inputs: tuple[Tensor, ...]) -> Columns:
    missing = [tensor.name for tensor in inputs if tensor.name not in arrays]
    if missing:
        raise _invalid(f'there is no array for the input "{missing[0]}" (the file has: {", ".join(sorted(arrays)) or "nothing"})')
    columns = {tensor.name: _rows(arrays[tensor.name], tensor) for tensor in inputs}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise _invalid(f"every input needs the same number of samples, at least one: {counts}")
    return columns


def _rows(array: Any, tensor: Tensor) -> Any:
    """Cut an array into what single runs take or give, of the tensor's type."""
    if array.dtype.kind not in "fiub" and tensor.dtype != "string":
        raise _invalid(f'"{tensor.name}" holds {array.dtype}, not {tensor.dtype}')
    if tensor.dtype != "string" and array.dtype != np.dtype(tensor.dtype):
        array = array.astype(tensor.dtype)
    rank = None if tensor.shape is None else len(tensor.shape)
    if rank is not None and array.ndim == rank and rank > 0:
        batch = tensor.shape[0] if tensor.shape and isinstance(tensor.shape[0], int) else 1
        whole = len(array) // batch * batch
        array = array[:whole].reshape(whole // batch, batch, *array.shape[1:])
    elif rank is not None and array.ndim != rank + 1:
        raise _invalid(
            f'"{tensor.name}" has {array.ndim} dimensions, {tensor.describe()} needs {rank}, or {rank + 1} with the samples first'
        )
    sizes = array.shape[1:]
    wrong = [(have, want) for have, want in zip(sizes, tensor.shape or sizes, strict=True) if isinstance(want, int) and have != want]
    if wrong:
        raise _invalid(f'a sample of "{tensor.name}" is {list(sizes)}, but the model takes {tensor.describe()}')
    return array


def count(columns: Mapping[str, Any]) -> int:
    """Return how many samples a set has."""
    return min((len(column) for column in columns.values()), default=0)


def _names(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f'"{tensor.name}"' for tensor in tensors) or "none"


def _invalid(why: str) -> ModelRejected:
    return ModelRejected(Reason.SAMPLES_INVALID, f"The samples cannot be used: {why}.")
