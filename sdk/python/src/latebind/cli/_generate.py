"""Inputs for a model that somebody only wants to see running: generated from its declared tensors, or read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latebind.device.engines import Array
from latebind.device.manifest import TensorSpec
from latebind.errors import InvalidInput


def generate_inputs(specs: Sequence[TensorSpec], seed: int = 0) -> dict[str, Array]:
    """Random arrays that fit: numbers from 0 to 1, small integers, either truth. Sizes that are open become 1."""
    rng = np.random.default_rng(seed)
    return {spec.name: _generate(spec, rng) for spec in specs}


def _generate(spec: TensorSpec, rng: np.random.Generator) -> Array:
    shape = _shape(spec)
    if spec.dtype == "string":
        return np.full(shape, "latebind", dtype=object)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(0, 4, shape).astype(dtype)
    return rng.random(shape).astype(dtype)


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 1 for size in spec.shape or ())


def read_inputs(path: Path, specs: Sequence[TensorSpec]) -> Mapping[str, Any]:
    """Inputs from a file: `.npz` by tensor name, `.npy` or raw bytes for a model with one input.

    Raw bytes fill the tensor: as they are where their number fits its dtype and shape, else one element per byte, cut or filled with zeros.
    Raises InvalidInput.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise InvalidInput(f"the model has {len(specs)} inputs ({names}): give an .npz file with an array for each")
        if path.suffix == ".npy":
            return {specs[0].name: np.load(path, allow_pickle=False)}
        return {specs[0].name: _from_bytes(path.read_bytes(), specs[0])}
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInput(f"{path} cannot be read as input: {error}") from error


def _from_bytes(data: bytes, spec: TensorSpec) -> Array:
    shape = _shape(spec)
    dtype = np.dtype(spec.dtype)
    wanted = int(np.prod(shape, dtype=np.int64))
    if len(data) == wanted * dtype.itemsize:
        return np.frombuffer(data, dtype).reshape(shape).copy()
    values = np.zeros(wanted, dtype)
    read = np.frombuffer(data[:wanted], np.uint8)
    values[: read.size] = read
    return values.reshape(shape)


def summary_of(outputs: Mapping[str, Array]) -> list[dict[str, Any]]:
    """What is worth knowing of each output at a glance: dtype, shape, smallest, mean and largest value, and where the largest is."""
    return [
        {
            "output": name,
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "min": float(array.min()) if array.size and array.dtype.kind in "biuf" else None,
            "mean": float(array.mean()) if array.size and array.dtype.kind in "biuf" else None,
            "max": float(array.max()) if array.size and array.dtype.kind in "biuf" else None,
            "arg_max": int(array.argmax()) if array.size and array.dtype.kind in "biuf" else None,
        }
        for name, array in outputs.items()
    ]


def write_outputs(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write the outputs as .npz, by name."""
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(outputs))
