"""What the SDK needs from an inference engine, and how the installed ones are found.

An engine is a class with the methods of `Engine`, named by an entry point of the group `latebind.engines`; others can bring their own.
This module imports no engine: each is an extra, and takes a third of a second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from latebind.device.manifest import Manifest, TensorSpec
from latebind.errors import EngineMissing, InvalidInput

Array = npt.NDArray[Any]

log = logging.getLogger("latebind")

ENTRY_POINT_GROUP = "latebind.engines"
_EXTRAS = {"onnxruntime": "onnx", "litert": "litert"}


class EngineModel(Protocol):
    """A loaded model. Used by one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Any) -> dict[str, Array]:
        """Run once. `inputs` is a mapping of name to array, or the array itself when there is one input.

        The arrays that come back belong to the caller. Raises InvalidInput, InferenceFailed.
        """
        ...

    def close(self) -> None:
        """Release the runtime's memory."""
        ...


class Engine(Protocol):
    """A runtime that can load models of one kind. Its constructor raises ImportError when the runtime is not installed."""

    name: str
    version: str
    max_ir: int | None
    max_opset: int | None

    def load(self, manifest: Manifest, graph: bytes, paths: Mapping[str, Path], *, threads: int | None) -> EngineModel:
        """Load a verified model. `graph` is the model file; `paths` leads to the package's other files. Raises LoadFailed."""
        ...


def find_engines() -> dict[str, Engine]:
    """The engines whose runtime is installed here, by name."""
    engines: dict[str, Engine] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            engine: Engine = point.load()()
        except ImportError:
            continue
        except Exception as error:
            # A broken installation of one engine must not take the others away.
            log.warning("the engine %s cannot be used: %s", point.name, error)
            continue
        engines[engine.name] = engine
    return engines


def choose_engine(engines: Mapping[str, Engine], manifest: Manifest) -> Engine:
    """The engine that a package needs. Raises EngineMissing, which says what to install."""
    engine = engines.get(manifest.engine)
    if engine is not None:
        return engine
    extra = _EXTRAS.get(manifest.engine)
    hint = f"; install it with: pip install 'latebind[{extra}]'" if extra else ""
    raise EngineMissing(
        f"{manifest.model_id} version {manifest.version} needs the engine {manifest.engine!r}, which is not installed here{hint}"
    )


def describe_engines(engines: Iterable[Engine]) -> list[dict[str, Any]]:
    """`runtimes` of the device context."""
    described = []
    for engine in engines:
        entry: dict[str, Any] = {"engine": engine.name, "version": engine.version}
        if engine.max_ir is not None:
            entry["max_ir"] = engine.max_ir
        if engine.max_opset is not None:
            entry["max_opset"] = engine.max_opset
        described.append(entry)
    return described


def feed_of(inputs: Any, specs: tuple[TensorSpec, ...]) -> Mapping[str, Any]:
    """Inputs by name, for a mapping or, with one declared input, for the array itself.

    Raises InvalidInput when names are missing or unknown.
    """
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InvalidInput(
                f"the model has {len(specs)} inputs ({', '.join(spec.name for spec in specs)}): pass a mapping of name to array"
            )
        return {specs[0].name: inputs}
    names = {spec.name for spec in specs}
    if inputs.keys() != names:
        missing, unknown = sorted(names - inputs.keys()), sorted(str(name) for name in inputs.keys() - names)
        raise InvalidInput(f"inputs do not fit the model: missing {missing}, unknown {unknown}")
    return inputs


def conform(value: Any, spec: TensorSpec, dtype: np.dtype[Any] | None) -> Array:
    """The value as a contiguous array of the declared dtype and shape, or InvalidInput.

    Numbers are converted only where numpy calls it "same kind" (float64 to float32, integers to floats), never the other way round.
    """
    array = np.asarray(value)
    if dtype is not None and array.dtype != dtype:
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise InvalidInput(f"input {spec.name!r} must be {spec.dtype}, not {array.dtype}")
        array = array.astype(dtype)
    shape = spec.shape
    if shape is not None and (
        array.ndim != len(shape) or any(isinstance(size, int) and size != real for size, real in zip(shape, array.shape, strict=True))
    ):
        wanted = [size if size is not None else "any" for size in shape]
        raise InvalidInput(f"input {spec.name!r} must have the shape {wanted}, not {list(array.shape)}")
    return np.require(array, requirements="C")
