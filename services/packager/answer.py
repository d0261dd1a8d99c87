"""The answer of the child as JSON, written by it and checked by the service. Pure.

The child may have been taken over by the model it ran, so nothing in its answer is believed: every field has a type, a range and a
length, and what does not fit is `CHILD_ANSWER_INVALID`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from services.packager.domain import DTYPES, MAX_DIM, MAX_NAME, MAX_RANK, Dim, Engine, Found, Port, Source, Tensor, is_symbol
from services.packager.errors import ModelRejected, Reason

MAX_ANSWER_BYTES = 2**20

_VERSION = re.compile(r"\d{1,5}(\.\d{1,9}){0,3}([.+-]?[A-Za-z0-9]{1,20})?")
_FORMATS = {"onnx": "onnxruntime", "tflite": "litert"}
_PRECISION = re.compile(r"(fp|bf|int)\d{1,2}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one good inspection says: the model with its merged inputs and outputs, the tolerances, the memory it may need."""

    found: Found
    rtol: float
    atol: float
    ram_mb: int
    engine_version: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a variant did on the samples.

    `parity`: per output its name, worst and mean difference to the source, and the source's largest value; None: there is no source.
    """

    samples: int
    parity: tuple[tuple[str, float, float, float], ...] | None
    accuracy: dict[str, Any] | None
    speed: dict[str, Any]
    peak_mb: int


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """What was read of a source: `main` is the path of its graph, `calibration` the number of samples to calibrate with."""

    source: Source
    main: str
    calibration: int


def tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    """Write a tensor as manifests and declarations do."""
    entry: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": None if tensor.shape is None else list(tensor.shape)}
    if tensor.range is not None:
        entry["range"] = list(tensor.range)
    return entry


def tensor_from_json(entry: Any) -> Tensor:
    """Read a tensor. Raises `ValueError` that says what is wrong with it."""
    if not isinstance(entry, dict) or not entry.keys() <= {"name", "dtype", "shape", "range"}:
        raise ValueError("a tensor is an object with name, dtype, shape and perhaps range")
    name, dtype, shape, limits = entry.get("name"), entry.get("dtype"), entry.get("shape"), entry.get("range")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"a tensor's name has 1 to {MAX_NAME} printable characters")
    if dtype not in DTYPES:
        raise ValueError(f'"{name}": dtype is one of {", ".join(sorted(DTYPES))}')
    if shape is not None and (not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_dim(dim) for dim in shape)):
        raise ValueError(f'"{name}": shape is a list of at most {MAX_RANK} positive numbers, names or nulls')
    if limits is not None and not (
        isinstance(limits, list) and len(limits) == 2 and all(_is_number(limit) for limit in limits) and limits[0] <= limits[1]
    ):
        raise ValueError(f'"{name}": range is [lowest, highest]')
    dims: tuple[Dim, ...] | None = None if shape is None else tuple(shape)
    return Tensor(name, dtype, dims, None if limits is None else (float(limits[0]), float(limits[1])))


def found_to_json(found: Found, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Write what was found, with `inputs` and `outputs` as merged with the declaration."""
    engine = found.engine
    return {
        "format": found.format,
        "engine": {
            "min_version": engine.min_version,
            "operators": list(engine.operators),
            "ir_version": engine.ir_version,
            "opset": engine.opset,
            "min_runtime_version": engine.min_runtime_version,
        },
        "inputs": [tensor_to_json(tensor) for tensor in inputs],
        "outputs": [tensor_to_json(tensor) for tensor in outputs],
        "precision": found.precision,
        "external": sorted(found.external),
    }


def parse_answer(raw: bytes) -> dict[str, Any]:
    """Parse the child's bytes into an object with `ok` true. Raises `ModelRejected`: the child's own refusal, or an invalid answer."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        _invalid("it is not JSON")
    if not isinstance(answer, dict):
        _invalid("it is not an object")
    if answer.get("ok") is True:
        return answer
    code, detail = answer.get("code"), answer.get("detail")
    if not isinstance(code, str) or code not in Reason.__members__ or not isinstance(detail, str) or len(detail) > 2_000:
        _invalid("it refuses without a reason")
    raise ModelRejected(Reason(code), "".join(character for character in detail if character.isprintable()))


def inspection(raw: bytes) -> Answer:
    """Parse and check the answer to an inspection. Raises `ModelRejected`."""
    answer = parse_answer(raw)
    try:
        golden, notes, version = answer["golden"], answer["notes"], answer["engine_version"]
        ram_mb = answer["ram_mb"]
        _require(isinstance(notes, list) and len(notes) <= 20 and all(_is_text(note, 300) for note in notes), "notes")
        _require(all(_is_number(golden[name]) and golden[name] >= 0 for name in ("rtol", "atol")), "golden")
        _require(type(ram_mb) is int and 0 < ram_mb < 2**20, "ram_mb")
        _require(_is_version(version), "engine_version")
        return Answer(_found(answer["found"]), float(golden["rtol"]), float(golden["atol"]), ram_mb, version, tuple(notes))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _invalid(str(error) if isinstance(error, ValueError) else "a field is missing or of the wrong kind")


def source_to_json(source: Source) -> dict[str, Any]:
    """Write a source."""
    sides = {
        name: [{"called": port.called, "tensor": tensor_to_json(port.tensor)} for port in side]
        for name, side in (("inputs", source.inputs), ("outputs", source.outputs))
    }
    return {"format": source.format, **sides, "external": sorted(source.external), "signature": source.signature, "tags": list(source.tags)}


def source_answer(raw: bytes, paths: Sequence[str]) -> SourceAnswer:
    """Parse and check the answer to reading a source that has files at `paths`. Raises `ModelRejected`."""
    answer = parse_answer(raw)
    try:
        entry, main, calibration = answer["source"], answer["main"], answer["calibration"]
        _require(entry["format"] in {"saved-model", "graphdef", "tflite", "onnx"} and main in paths, "format")
        _require(_is_text(entry["signature"], MAX_NAME, least=0) and all(_is_text(tag, 200) for tag in entry["tags"]), "signature")
        _require(len(entry["tags"]) <= 20 and type(calibration) is int and 0 <= calibration < 2**31, "tags")
        _require(len(entry["inputs"]) <= 256 and 0 < len(entry["outputs"]) <= 256, "tensors")
        _require(len(entry["external"]) <= 1_000 and all(_is_text(name, 200) for name in entry["external"]), "external")
        sides = []
        for side in (entry["inputs"], entry["outputs"]):
            _require(all(_is_text(port["called"], 2 * MAX_NAME) for port in side), "called")
            sides.append(tuple(Port(port["called"], tensor_from_json(port["tensor"])) for port in side))
        source = Source(entry["format"], sides[0], sides[1], dict.fromkeys(entry["external"], 0), entry["signature"], tuple(entry["tags"]))
        return SourceAnswer(source, main, calibration)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _invalid(str(error) if isinstance(error, ValueError) else "a field is missing or of the wrong kind")


def measurement(raw: bytes) -> Measured:
    """Parse and check the answer to a replay. Raises `ModelRejected`."""
    answer = parse_answer(raw)
    try:
        entry = answer["measured"]
        samples, parity, accuracy, speed, peak_mb = (entry[name] for name in ("samples", "parity", "accuracy", "speed", "peak_mb"))
        _require(type(samples) is int and 0 <= samples < 2**31 and type(peak_mb) is int and 0 <= peak_mb < 2**24, "samples")
        rows = None
        if parity is not None:
            _require(len(parity) <= 256, "parity")
            _require(all(_is_text(row["name"], MAX_NAME) for row in parity), "parity")
            _require(all(_is_number(row[key]) and row[key] >= 0 for row in parity for key in ("worst", "mean", "scale")), "parity")
            rows = tuple((row["name"], float(row["worst"]), float(row["mean"]), float(row["scale"])) for row in parity)
        _require(all(_is_number(speed[key]) and speed[key] >= 0 for key in ("median_ms", "p90_ms", "runs")), "speed")
        if accuracy is not None:
            _require(accuracy["metric"] in {"top-1", "agreement"} and type(accuracy["samples"]) is int, "accuracy")
            _require(_is_number(accuracy["value"]) and 0 <= accuracy["value"] <= 1, "accuracy")
            accuracy = {name: accuracy[name] for name in ("metric", "samples", "value")}
        pace = {"median_ms": round(speed["median_ms"], 3), "p90_ms": round(speed["p90_ms"], 3), "runs": int(speed["runs"])}
        return Measured(samples, rows, accuracy, pace, peak_mb)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _invalid(str(error) if isinstance(error, ValueError) else "a field is missing or of the wrong kind")


def conversion(result: Mapping[str, Any], targets: Sequence[str]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Check what a converter returned: for each target its lineage steps, or why there is none. Raises `ModelRejected`."""
    try:
        made, failed = result["made"], result["failed"]
        _require(set(made) | set(failed) == set(targets) and not set(made) & set(failed), "made")
        for steps in made.values():
            _require(len(steps) <= 20 and all(_is_step(step) for step in steps), "steps")
        words = {name: "".join(character for character in text if character.isprintable())[:600] for name, text in failed.items()}
        return {name: list(steps) for name, steps in made.items()}, words
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _invalid(str(error) if isinstance(error, ValueError) else "a field is missing or of the wrong kind")


def _is_step(step: Any) -> bool:
    return (
        set(step) == {"tool", "version", "options"}
        and _is_text(step["tool"], 100)
        and _is_text(step["version"], 100)
        and len(step["options"]) <= 20
        and all(_is_text(key, 100) and (_is_number(one) or type(one) is bool or _is_text(one, 200)) for key, one in step["options"].items())
    )


def _found(entry: Mapping[str, Any]) -> Found:
    engine = entry["engine"]
    operators, opset, ir_version = engine["operators"], engine["opset"], engine["ir_version"]
    _require(entry["format"] in _FORMATS, "format")
    _require(isinstance(operators, list) and len(operators) <= 5_000 and all(_is_text(name, 300) for name in operators), "operators")
    _require(ir_version is None or (type(ir_version) is int and 0 < ir_version <= 1_000), "ir_version")
    _require(
        opset is None
        or (len(opset) <= 20 and all(_is_text(domain, 100, least=0) and type(number) is int for domain, number in opset.items())),
        "opset",
    )
    _require(_is_version(engine["min_version"]), "min_version")
    _require(engine["min_runtime_version"] is None or _is_version(engine["min_runtime_version"]), "min_runtime_version")
    _require(isinstance(entry["precision"], str) and _PRECISION.fullmatch(entry["precision"]) is not None, "precision")
    _require(len(entry["inputs"]) <= 256 and len(entry["outputs"]) <= 256, "tensors")
    _require(len(entry["external"]) <= 1_000 and all(_is_text(name, 200) for name in entry["external"]), "external")
    return Found(
        entry["format"],
        Engine(_FORMATS[entry["format"]], engine["min_version"], tuple(operators), ir_version, opset, engine["min_runtime_version"]),
        tuple(tensor_from_json(tensor) for tensor in entry["inputs"]),
        tuple(tensor_from_json(tensor) for tensor in entry["outputs"]),
        entry["precision"],
        dict.fromkeys(entry["external"], 0),
    )


def _is_dim(dim: Any) -> bool:
    if isinstance(dim, str):
        return is_symbol(dim)
    return dim is None or (type(dim) is int and 0 < dim <= MAX_DIM)


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and -1e300 < value < 1e300


def _is_text(value: Any, most: int, least: int = 1) -> bool:
    return isinstance(value, str) and least <= len(value) <= most and value.isprintable()


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"{what} is not what it should be")


def _invalid(why: str) -> NoReturn:
    raise ModelRejected(
        Reason.CHILD_ANSWER_INVALID,
        f"The process that examined the model gave an answer that cannot be used ({why}). "
        "The model may have damaged it; export it again, and tell the operator if it stays.",
    )
