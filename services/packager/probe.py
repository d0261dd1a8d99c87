"""Runs a model once on generated input and judges what comes out: the golden input and output of a package.

Runs only in the one-shot child. The generated values depend on nothing but the tensors' declarations, so that a repeated job makes
the same golden files on the same machine. It does not load the model; it is given a function that runs it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.packager.domain import Tensor
from services.packager.errors import ModelRejected, Reason

#: A model run: input name to array, output name to array.
Run = Callable[[Mapping[str, Any]], dict[str, Any]]

#: Sizes tried for dimensions that nobody fixed, other than the batch; the batch is 1.
SIZES = (16, 64, 224, 1, 8, 128)
STYLES = ("spread", "ones", "zeros")
MAX_INPUT_BYTES = 512 * 2**20
MAX_GOLDEN_BYTES = 256 * 2**20

# A prime period: the values do not line up with any usual stride, and the golden input still packs well.
_PERIOD = 1021
_STRIDE = 101
_BATCH_NAMES = frozenset({"n", "b", "batch", "batch_size", "batchsize", "batch_dim"})

#: precision -> (rtol, atol per unit of the largest output). A device's arithmetic may differ from ours by this much.
_TOLERANCES = {"fp32": (0.01, 0.001), "fp64": (0.01, 0.001), "fp16": (0.02, 0.01), "bf16": (0.05, 0.02)}
_COARSE = (0.05, 0.02)
_OR_GIVE = "; where only certain values make sense together, give them as golden.input"


@dataclass(frozen=True, slots=True)
class Probe:
    """One good run: what went in, what came out, and how closely a device has to agree (|a - b| <= atol + rtol * |b|)."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    rtol: float
    atol: float
    notes: tuple[str, ...]


def probe(
    run: Run,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    precision: str,
    *,
    seconds: float,
    given: dict[str, Any] | None = None,
) -> Probe:
    """Find input on which the model runs to finite outputs, twice alike: the owner's, else generated.

    Args:
        run: runs the loaded model once.
        inputs: what it takes; dimensions without a number are tried in several sizes.
        outputs: what it must give: every dimension that is a number is compared.
        precision: decides the tolerances.
        seconds: no new attempt starts after this long.
        given: the owner's golden input; then nothing is generated.

    Raises:
        ModelRejected: no attempt ran, or the outputs are not finite, not repeatable, too large, or not what was declared.
    """
    started = time.monotonic()
    refusal: ModelRejected | None = None
    usual = next(attempts(inputs))
    advice = _OR_GIVE if given is None else ""
    for style, size in attempts(inputs) if given is None else [usual]:
        if refusal is not None and time.monotonic() - started > seconds:
            break
        feed = generate(inputs, size, style) if given is None else given
        try:
            first = _run(run, feed, advice)
        except ModelRejected as error:
            # The first failure is the most telling one: later attempts use odder input.
            refusal = refusal or error
            continue
        check_outputs(outputs, first, advice)
        if not _finite(first):
            refusal = _not_finite(first, advice)
            continue
        rtol, atol = tolerances(first, precision)
        atol = min(atol, 1e299)  # what an answer may say
        second = _run(run, feed, advice)
        if not close(second, first, rtol, atol):
            raise ModelRejected(
                Reason.MODEL_NOT_DETERMINISTIC,
                "Two runs on the same input gave different outputs, so no device could check that it runs the model right. "
                "Give random operators a seed, or make the noise an input.",
            )
        notes = () if (style, size) == usual else (f"ran on input generated as {style}, free dimensions of {size}",)
        return Probe(feed, first, rtol, atol, notes)
    assert refusal is not None
    raise refusal


def generate(inputs: tuple[Tensor, ...], size: int, style: str, sample: int = 0) -> dict[str, Any]:
    """Make one array per input: floats in [0, 1), 8-bit integers over their range, wider ones 0 or 1, unless a range is declared.

    `sample` numbers different values for the same shapes.
    """
    symbols: dict[str, int] = {}
    feed = {}
    total = 0
    for index, tensor in enumerate(inputs):
        shape = _shape(tensor, size, symbols)
        total += math.prod(shape) * (32 if tensor.dtype == "string" else np.dtype(tensor.dtype).itemsize)
        if total > MAX_INPUT_BYTES:
            raise ModelRejected(
                Reason.TENSOR_TOO_LARGE, f"One set of inputs is larger than {MAX_INPUT_BYTES >> 20} MiB ({tensor.name}: {list(shape)})."
            )
        # A comparison of an array without dimensions gives no array.
        feed[tensor.name] = np.asarray(_values(tensor, shape, index + sample * _STRIDE, style))
    return feed


def tolerances(outputs: Mapping[str, Any], precision: str) -> tuple[float, float]:
    """Choose (rtol, atol) by precision and by the largest output, rounded up to one digit so that noise does not move it."""
    rtol, unit = _TOLERANCES.get(precision, _COARSE)
    largest = max((float(np.max(np.abs(array.astype(np.float64)))) for array in outputs.values() if _numeric(array)), default=0.0)
    if largest < 1e-9:
        return rtol, unit
    step = 10.0 ** math.floor(math.log10(largest))
    return rtol, float(f"{unit * math.ceil(largest / step) * step:.3g}")


def close(actual: Mapping[str, Any], expected: Mapping[str, Any], rtol: float, atol: float) -> bool:
    """Whether two sets of outputs agree: same names, dtypes, shapes, and values within the tolerance; texts and booleans exactly."""
    if actual.keys() != expected.keys():
        return False
    for name, want in expected.items():
        have = actual[name]
        if have.dtype.kind != want.dtype.kind or have.shape != want.shape:
            return False
        if want.dtype.kind in "Ub":
            if not np.array_equal(have, want):
                return False
        elif not np.allclose(have.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True):
            return False
    return True


def check_outputs(declared: tuple[Tensor, ...], outputs: Mapping[str, Any], advice: str = "") -> None:
    """Compare what came out with what the model or its owner promised. Raises `ModelRejected` with OUTPUT_MISMATCH or TENSOR_TOO_LARGE.

    `advice`: what else to do, where the input was generated and may be why.
    """
    for tensor in declared:
        array = outputs.get(tensor.name)
        dtype = "none" if array is None else dtype_of(array)
        shape = () if array is None else array.shape
        fits = tensor.shape is None or (
            len(tensor.shape) == len(shape)
            and all(not isinstance(dim, int) or dim == real for dim, real in zip(tensor.shape, shape, strict=True))
        )
        if dtype != tensor.dtype or not fits:
            raise ModelRejected(
                Reason.OUTPUT_MISMATCH,
                f'The output "{tensor.name}" is declared as {tensor.describe()}, but the model gave {dtype} {list(shape)} when it ran'
                f"{' on generated input' if advice else ''}. Correct the declaration, or the shape in the model{advice}.",
            )
    total = sum(array.nbytes for array in outputs.values())
    if total > MAX_GOLDEN_BYTES:
        raise ModelRejected(
            Reason.TENSOR_TOO_LARGE,
            f"One set of outputs takes {total >> 20} MiB; at most {MAX_GOLDEN_BYTES >> 20} MiB can be kept as golden output.",
        )


def observed(tensor: Tensor, array: Any, *, fixed: bool) -> Tensor:
    """Fill in the shape of an output of unknown rank from a run; `fixed`: no input dimension was free, so the numbers hold."""
    if tensor.shape is not None:
        return tensor
    return Tensor(tensor.name, tensor.dtype, tuple(array.shape) if fixed else (None,) * array.ndim, tensor.range)


def dtype_of(array: Any) -> str:
    """Return the contract's name of an array's dtype."""
    return "string" if array.dtype.kind == "U" else str(array.dtype)


def attempts(inputs: tuple[Tensor, ...]) -> Iterator[tuple[str, int]]:
    """Yield what to try in turn for input that nobody gave: how values are chosen, and the size of free dimensions."""
    free = any(not isinstance(dim, int) for tensor in inputs for dim in tensor.shape or ())
    for style in STYLES:
        for size in SIZES if free else SIZES[:1]:
            yield style, size


def _shape(tensor: Tensor, size: int, symbols: dict[str, int]) -> tuple[int, ...]:
    if tensor.shape is None:
        return ()
    shape = []
    for axis, dim in enumerate(tensor.shape):
        batch = axis == 0 and len(tensor.shape) > 1
        if isinstance(dim, int):
            shape.append(dim)
        elif isinstance(dim, str):
            shape.append(symbols.setdefault(dim, 1 if batch or dim.lower() in _BATCH_NAMES else size))
        else:
            shape.append(1 if batch else size)
    return tuple(shape)


def _values(tensor: Tensor, shape: tuple[int, ...], index: int, style: str) -> Any:
    count = math.prod(shape)
    if tensor.dtype == "string":
        return np.full(shape, "latebind")
    # Knuth's multiplicative hash of the position, in [0, 1).
    block = ((np.arange(1 + index, 1 + index + _PERIOD, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)) / 2.0**32
    unit = np.resize(block, count).reshape(shape)
    dtype = np.dtype(tensor.dtype)
    if tensor.range is not None:
        low, high = tensor.range
        values = low + unit * (high - low)
        return values.astype(dtype) if dtype.kind == "f" else np.clip(np.rint(values), math.ceil(low), math.floor(high)).astype(dtype)
    if style != "spread":
        return np.full(shape, 1 if style == "ones" else 0, dtype=dtype)
    if dtype.kind == "f":
        return unit.astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return np.floor(limits.min + unit * 256).astype(dtype)
    return (unit >= 0.5).astype(dtype)


def _run(run: Run, feed: Mapping[str, Any], advice: str) -> dict[str, Any]:
    try:
        return run(feed)
    except (ModelRejected, MemoryError):
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {dtype_of(array)} {list(array.shape)}" for name, array in feed.items()) or "no input"
        raise ModelRejected(
            Reason.MODEL_RUN_FAILED,
            f"The model loads but does not run on {shapes[:200]}. Declare the inputs with fixed shapes, "
            f'and with a "range" when not every value is allowed{advice}. The runtime says: {error}',
        ) from error


def _numeric(array: Any) -> bool:
    return array.dtype.kind in "fiu" and array.size > 0


def _finite(outputs: Mapping[str, Any]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f")


def _not_finite(outputs: Mapping[str, Any], advice: str) -> ModelRejected:
    names = ", ".join(f'"{name}"' for name, array in outputs.items() if array.dtype.kind == "f" and not np.isfinite(array).all())
    return ModelRejected(
        Reason.MODEL_OUTPUT_NOT_FINITE,
        f"The model gave NaN or infinity in {names}, which no device can be held against. If it only takes certain values, declare them: "
        f'"range": [low, high] on the input{advice}.',
    )
