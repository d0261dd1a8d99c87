"""What `packager_calibration.py` runs in the environment `onnx`: times three ways, compares the results, prints one JSON line."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry

from services.packager.converters.onnx_quantise import calibrate, quantise

_SOURCE, _SAMPLES, _STATIC = Path("source.onnx"), Path("samples.npz"), Path("static.onnx")


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives the samples one by one."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{"x": one} for one in columns["x"]])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample; None after the last."""
        return next(self._feeds, None)


def main(count: int, rounds: int, seed: int) -> None:
    """Measure `rounds` rounds after one that does not count."""
    columns = {"x": np.random.default_rng(seed).random((count, 1, 3, 224, 224), np.float32)}
    np.savez(_SAMPLES, **columns)
    model = onnx.load(_SOURCE)
    session = _session(_SOURCE.read_bytes())
    made: dict[str, Any] = {}

    def ours() -> None:
        made["ours"] = quantise(onnx.ModelProto.FromString(model.SerializeToString()), str(_SAMPLES))[0]

    def plain() -> None:
        for one in columns["x"]:
            session.run(None, {"x": one})

    def static() -> None:
        kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "op_types_to_quantize": sorted(QDQRegistry)}
        quantize_static(_SOURCE, _STATIC, Reader(columns), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)

    def calibrating() -> None:
        calibrate(onnx.shape_inference.infer_shapes(model), columns, set(QDQRegistry))

    calls: dict[str, Callable[[], None]] = {"ours": ours, "plain": plain, "static": static, "calibrating": calibrating}
    found = []
    with contextlib.redirect_stdout(sys.stderr):
        for number in range(rounds + 1):
            order = list(calls)[:: -1 if number % 2 else 1]
            took = {name: _ms(calls[name]) for name in order}
            if number:
                found.append(took)
    differs = _differs(session, made["ours"], onnx.load(_STATIC), columns["x"][0])
    versions = {name: version(name) for name in ("onnx", "onnxruntime", "numpy")}
    print(json.dumps({"rounds": found, "differs": differs, "versions": versions}))


def _ms(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _session(model: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _differs(session: Any, ours: onnx.ModelProto, static: onnx.ModelProto, sample: Any) -> str:
    scales = [
        {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name.endswith("_scale")}
        for model in (ours, static)
    ]
    if not scales[0] or scales[0].keys() != scales[1].keys():
        return "the int8 graphs quantise other tensors"
    apart = [name for name in scales[0] if not np.allclose(scales[0][name], scales[1][name], rtol=1e-3)]
    if apart:
        return f"the scales of {', '.join(apart[:5])} differ"
    wanted = session.run(None, {"x": sample})[0]
    for model in (ours, static):
        if np.abs(_session(model.SerializeToString()).run(None, {"x": sample})[0] - wanted).mean() > 0.1 * np.abs(wanted).max():
            return "an int8 graph does not give what fp32 gives"
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
