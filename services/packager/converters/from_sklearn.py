"""Classical models to ONNX: XGBoost and LightGBM in their native files, scikit-learn as skops with a list of types. Environment `sk`.

Nothing that could run code is loaded: XGBoost's JSON and UBJSON and LightGBM's text hold numbers, and a skops file is looked through
before (`sk_types.py`). The source itself answers generated rows and the owner's, which the gates hold every variant against.

Job: `{"model": "in/0", "opset": 15, "names": {ours: theirs}, "range": [lowest, highest] | null, "samples": "in/1" | null}`. It leaves
`out/converted.onnx`, whose ends have the names of the converters (`features`, and `label`, `probabilities` or `variable`), and
`out/samples.npz` and `out/reference.npz` with the owner's names. Result: `{"made": {"converted.onnx": [step]}, "failed": {}}`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from services.packager.converters import Refusal, Step
from services.packager.converters.arrays import read_npz, write_npz
from services.packager.converters.sk_types import check_types

GRAPH = "converted.onnx"
INPUT = "features"
MAX_FEATURES = 100_000
MAX_CLASSES = 10_000
_ROWS = 64
_OWNERS_ROWS = 64
_SEED = 20261130

#: Rows to the source's answers, by the name of the ONNX output.
Answers = Callable[[Any], dict[str, Any]]


def sk_to_onnx(job: dict[str, Any], step: Step) -> dict[str, Any]:
    """Do a job. Raises `Refusal`: MODEL_NOT_RECOGNISED, MODEL_MALFORMED, TYPE_NOT_ALLOWED, CONVERSION_FAILED."""
    step("importing")
    path = Path(job["model"])
    kind = kind_of(path.read_bytes()[:4096])
    step("loading")
    load = {"skops": _skops, "xgboost": _xgboost, "lightgbm": _lightgbm}[kind]
    features, convert, answers = load(path)
    if not 0 < features <= MAX_FEATURES:
        raise Refusal("MODEL_TOO_COMPLEX", f"The model takes {features} features; 1 to {MAX_FEATURES} are taken.")
    step("converting")
    model = _finished(convert(job["opset"]), job["opset"])
    step("comparing")
    rows = _rows(features, job["range"], job["samples"])
    reference = _shaped(answers(rows), _run(model, rows))
    step("saving")
    called = {theirs: ours for ours, theirs in job["names"].items()}
    Path("out", GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    # One row each is a sample: the batch is the dimension behind the samples.
    for file, arrays in (("out/samples.npz", {INPUT: rows}), ("out/reference.npz", reference)):
        write_npz(Path(file), {called.get(name, name): array[:, None] for name, array in arrays.items()}, packed=False)
    tools = [{"tool": name, "version": version(name), "options": {}} for name in _TOOLS[kind]]
    return {"made": {GRAPH: [*tools[:-1], {**tools[-1], "options": {"source": kind, "opset": job["opset"]}}]}, "failed": {}}


#: What reads the source, then what converts it.
_TOOLS = {
    "skops": ("scikit-learn", "skops", "skl2onnx"),
    "xgboost": ("xgboost-cpu", "onnxmltools"),
    "lightgbm": ("lightgbm", "onnxmltools"),
}


def kind_of(head: bytes) -> str:
    """Say what a file that starts with `head` is. Raises `Refusal` (MODEL_NOT_RECOGNISED)."""
    if head.startswith(b"PK\x03\x04"):
        return "skops"
    if head.startswith((b"tree\nversion=", b"tree\r\nversion=")):
        return "lightgbm"
    if head.startswith(b"{L") or (head.lstrip().startswith(b"{") and b'"' in head):
        return "xgboost"
    raise Refusal(
        "MODEL_NOT_RECOGNISED",
        "This is no skops file, no XGBoost model (.json or .ubj of Booster.save_model) and no LightGBM model (text of Booster.save_model). "
        "Pickles and joblib files are not accepted, because loading them runs code.",
    )


def _skops(path: Path) -> tuple[int, Callable[[int], Any], Answers]:
    check_types(path)
    import skops.io  # noqa: PLC0415 - packages of the environment `sk`, which the server does not have
    from skl2onnx import to_onnx  # noqa: PLC0415
    from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415
    from sklearn.base import is_classifier  # noqa: PLC0415

    # The list of types has been checked, so what skops does not trust by itself is named to it.
    model = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    features = int(getattr(model, "n_features_in_", 0))

    def convert(opset: int) -> Any:
        options = {"zipmap": False} if is_classifier(model) else None
        types = [(INPUT, FloatTensorType([None, features]))]
        return to_onnx(model, initial_types=types, target_opset={"": opset, "ai.onnx.ml": 3}, options=options)

    def answers(rows: Any) -> dict[str, Any]:
        if not hasattr(model, "predict"):
            return {"variable": model.transform(rows)}
        found = {"label" if is_classifier(model) or hasattr(model, "labels_") else "variable": model.predict(rows)}
        if is_classifier(model) and hasattr(model, "predict_proba"):
            found["probabilities"] = model.predict_proba(rows)
        return found

    return features, convert, answers


def _xgboost(path: Path) -> tuple[int, Callable[[int], Any], Answers]:
    import json  # noqa: PLC0415

    import xgboost  # noqa: PLC0415
    from onnxmltools import convert_xgboost  # noqa: PLC0415

    booster = xgboost.Booster()
    try:
        booster.load_model(path)
    except xgboost.core.XGBoostError as error:
        raise Refusal("MODEL_MALFORMED", "The XGBoost model cannot be read. Write it again: Booster.save_model('model.json').") from error
    objective = str(json.loads(booster.save_config())["learner"]["objective"]["name"])
    if booster.feature_names is not None:
        booster.feature_names = [f"f{at}" for at in range(booster.num_features())]  # the converter knows them by number

    def answers(rows: Any) -> dict[str, Any]:
        return _by_objective(booster.predict(xgboost.DMatrix(rows, feature_names=booster.feature_names)), objective)

    return booster.num_features(), lambda opset: convert_xgboost(booster, **_features(booster.num_features(), opset)), answers


def _lightgbm(path: Path) -> tuple[int, Callable[[int], Any], Answers]:
    import lightgbm  # noqa: PLC0415
    from onnxmltools import convert_lightgbm  # noqa: PLC0415

    try:
        booster = lightgbm.Booster(model_file=path)
    except lightgbm.basic.LightGBMError as error:
        raise Refusal("MODEL_MALFORMED", "The LightGBM model cannot be read. Write it again: Booster.save_model('model.txt').") from error
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    objective = next((line.partition("=")[2] for line in lines[:100] if line.startswith("objective=")), "")

    def answers(rows: Any) -> dict[str, Any]:
        return _by_objective(booster.predict(rows), objective)

    count = booster.num_feature()
    return count, lambda opset: convert_lightgbm(booster, zipmap=False, **_features(count, opset)), answers


def _features(count: int, opset: int) -> dict[str, Any]:
    from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: PLC0415

    return {"initial_types": [(INPUT, FloatTensorType([None, count]))], "target_opset": opset}


def _by_objective(predicted: Any, objective: str) -> dict[str, Any]:
    """What a booster predicts, by the names of the converters' outputs."""
    import numpy as np  # noqa: PLC0415

    if predicted.ndim == 2 and objective.startswith("multi"):
        return {"label": predicted.argmax(axis=1), "probabilities": predicted}
    if objective.startswith("multi:softmax"):
        return {"label": predicted}
    if objective.startswith("binary"):
        return {"label": predicted > 0.5, "probabilities": np.stack([1 - predicted, predicted], axis=1)}
    return {"variable": predicted}


def _finished(model: Any, opset: int) -> Any:
    """Pin what runtimes look at: both operator sets, the IR version, and open first dimensions."""
    domains = {one.domain for one in model.opset_import}
    versions = {one.domain: max(one.version, 1) for one in model.opset_import}
    if "" not in domains:
        versions[""] = opset
    del model.opset_import[:]
    for domain, number in sorted(versions.items()):
        model.opset_import.add(domain=domain, version=number)
    model.ir_version = min(max(model.ir_version, 4), 8)
    for output in model.graph.output:
        dims = output.type.tensor_type.shape.dim
        if len(dims):
            dims[0].Clear()
    return model


def _rows(features: int, limits: list[float] | None, owners: str | None) -> Any:
    """Rows of several sizes, within the declared range where there is one; then the owner's."""
    import numpy as np  # noqa: PLC0415

    rng = np.random.default_rng(_SEED)
    if limits is not None:
        rows = rng.uniform(limits[0], limits[1], (_ROWS, features)).astype(np.float32)
    else:
        scales = np.array([0.1, 1.0, 10.0, 100.0], np.float32)[np.arange(_ROWS) % 4][:, None]
        rows = rng.standard_normal((_ROWS, features)).astype(np.float32) * scales
        rows[1::4] = np.abs(rows[1::4])
    # Samples that do not fit are refused by the reader of samples, which says why.
    found = [] if owners is None else [array for array in _owners(Path(owners)) if array.dtype.kind in "fiu" and array.size]
    if len(found) == 1 and found[0].size % features == 0:
        given = found[0].reshape(-1, features).astype(np.float32)
        rows = np.concatenate([rows, given[:: max(1, len(given) // _OWNERS_ROWS)][:_OWNERS_ROWS]])
    return rows


def _owners(path: Path) -> list[Any]:
    try:
        return list(read_npz(path).values())
    except (ValueError, OSError, EOFError, KeyError, BadZipFile):
        return []


def _run(model: Any, rows: Any) -> dict[str, Any]:
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: rows}), strict=True))


def _shaped(expected: dict[str, Any], actual: dict[str, Any]) -> dict[str, Any]:
    """Bring the source's answers into shape and type of the graph's outputs. Raises `Refusal` when there is none for an answer."""
    import numpy as np  # noqa: PLC0415

    reference = {}
    for name, source in expected.items():
        if name not in actual:
            raise Refusal("CONVERSION_FAILED", f'The converted model has no output "{name}", but {", ".join(actual)}.')
        given, wanted = actual[name], np.asarray(source)
        if given.size != wanted.size:
            raise Refusal("CONVERSION_FAILED", f'The output "{name}" has {given.size} numbers where the source gives {wanted.size}.')
        reference[name] = wanted.reshape(given.shape).astype(str if given.dtype.kind == "O" else given.dtype)
    return reference
