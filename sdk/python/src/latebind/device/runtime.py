"""From an installed package to a model that runs: read and check the files, load the engine, repeat the golden test.

It touches no network and keeps no state; what to load, and what to do when it fails, is decided in `updater.py`.
"""

from __future__ import annotations

import io
import logging
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latebind.device.cache import InstalledPackage
from latebind.device.engines import Array, Engine, EngineModel, choose_engine
from latebind.device.info import ModelInfo
from latebind.device.manifest import Golden, Manifest
from latebind.errors import DeviceError, GoldenTestFailed, LoadFailed

log = logging.getLogger("latebind")

# The largest golden file that is read; the packager writes far smaller ones.
MAX_GOLDEN_BYTES = 256 << 20


@dataclass(slots=True)
class LoadedModel:
    """A model in memory. `load_us` is the time from files on disk to a model that can run, in microseconds."""

    package: InstalledPackage
    info: ModelInfo
    engine_model: EngineModel
    load_us: int

    @property
    def digest(self) -> str:
        """The package's digest."""
        return self.package.digest

    def close(self) -> None:
        """Release the engine's memory and let go of the package's files."""
        self.engine_model.close()


def load_model(package: InstalledPackage, *, collection: str, engines: Mapping[str, Engine], threads: int | None) -> LoadedModel:
    """Load a package. Raises EngineMissing, LoadFailed, CacheDamaged."""
    manifest = package.manifest
    engine = choose_engine(engines, manifest)
    started = time.perf_counter_ns()
    engine_model = _load_ort(package, engine, threads) or _load_graph(package, engine, threads)
    load_us = (time.perf_counter_ns() - started) // 1000
    info = ModelInfo.of(
        package,
        collection=collection,
        engine_version=engine.version,
        inputs=engine_model.inputs,
        outputs=engine_model.outputs,
    )
    package.keep_while(info)
    return LoadedModel(package, info, engine_model, load_us)


def _load_ort(package: InstalledPackage, engine: Engine, threads: int | None) -> EngineModel | None:
    """Load the form for one version of ONNX Runtime, when this is that version; None when the graph itself has to be loaded."""
    manifest = package.manifest
    file = manifest.file(manifest.ort.path) if manifest.ort is not None else None
    if file is None or manifest.ort is None or engine.name != "onnxruntime" or engine.version != manifest.ort.version:
        return None
    try:
        return _load(manifest, engine, package.read_verified(file), package.paths, threads)
    except LoadFailed as error:
        log.warning("%s; its ONNX file is loaded instead", error)
        return None


def _load_graph(package: InstalledPackage, engine: Engine, threads: int | None) -> EngineModel:
    graph = package.read_verified(package.manifest.graph)
    for file in package.manifest.files:
        if file.role == "graph-data":
            package.check(file)
    return _load(package.manifest, engine, graph, package.paths, threads)


def _load(manifest: Manifest, engine: Engine, graph: bytes, paths: Mapping[str, Path], threads: int | None) -> EngineModel:
    try:
        return engine.load(manifest, graph, paths, threads=threads)
    except DeviceError:
        raise
    except Exception as error:  # An engine may be anybody's: whatever it raises, the old model goes on.
        raise LoadFailed(f"{engine.name} cannot load {manifest.model_id} version {manifest.version}: {error}") from error


def run_golden_test(model: LoadedModel) -> None:
    """Run the model on the golden input and compare, as `numpy.allclose` does, with the outputs that the packager stored.

    A package without golden files passes. A model that fails is closed. Raises GoldenTestFailed, CacheDamaged.
    """
    golden = model.package.manifest.golden
    if golden is None:
        return
    try:
        _run_golden(model, golden)
    except BaseException:
        model.close()
        raise


def _run_golden(model: LoadedModel, golden: Golden) -> None:
    what = f"{model.info.model_id} version {model.info.version} ({model.info.variant})"
    inputs, expected = (_read_arrays(model, path) for path in (golden.input, golden.output))
    try:
        outputs = model.engine_model.run(inputs)
    except DeviceError as error:
        raise GoldenTestFailed(f"{what} fails on its golden input: {error}") from error
    for name, wanted in expected.items():
        if name not in outputs:
            raise GoldenTestFailed(f"{what} has no output {name!r}")
        _compare(what, name, outputs[name], wanted, golden)


def _compare(what: str, name: str, got: Array, wanted: Array, golden: Golden) -> None:
    if got.shape != wanted.shape:
        raise GoldenTestFailed(f"{what}: output {name!r} has the shape {list(got.shape)} instead of {list(wanted.shape)}")
    if wanted.dtype.kind in "fc" and got.dtype.kind in "fc":
        near = np.isclose(got.astype(np.float64), wanted.astype(np.float64), rtol=golden.rtol, atol=golden.atol, equal_nan=True)
        if not near.all():
            worst = float(np.nanmax(np.abs(got.astype(np.float64) - wanted.astype(np.float64))))
            share = 1.0 - float(near.mean())
            raise GoldenTestFailed(f"{what}: {share:.1%} of output {name!r} differ from the golden output, by up to {worst:.3g}")
    elif wanted.dtype.kind in "iu" and got.dtype.kind in "iu":
        difference = np.abs(got.astype(np.int64) - wanted.astype(np.int64))
        if not (difference <= golden.atol + golden.rtol * np.abs(wanted.astype(np.int64))).all():
            raise GoldenTestFailed(f"{what}: output {name!r} differs from the golden output by up to {int(difference.max())}")
    elif not np.array_equal(got.astype(str), wanted.astype(str)):
        raise GoldenTestFailed(f"{what}: output {name!r} differs from the golden output")


def _read_arrays(model: LoadedModel, path: str) -> dict[str, Array]:
    """The arrays of a golden .npz file, by tensor name; never pickled objects."""
    file = model.package.manifest.file(path)
    assert file is not None
    if file.size > MAX_GOLDEN_BYTES:
        raise GoldenTestFailed(f"the golden file {path!r} is larger than {MAX_GOLDEN_BYTES} bytes")
    data = model.package.read_verified(file)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise GoldenTestFailed(f"the golden file {path!r} cannot be read: {error}") from error
