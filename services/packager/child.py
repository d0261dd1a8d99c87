"""Examines one model inside the sandbox: parses it, runs it, keeps the golden files.

`isolation/entry.py` calls `answer` in a process and a folder of its own. Whatever happens in here, the service only ever sees the
answer and the files in `out/`, and checks both.

Job: `{"task": "inspect" | "replay", "graph": "in/0", "data": {name: "in/1"}, "inputs": [tensor] | null, "outputs": [tensor] | null,
"golden_input": "in/…" | null, "golden": {"rtol", "atol"}, "gates": {…}, "seconds": 30}`. A replay also takes `format`, and `ort`, the place
of the model in ONNX Runtime's own format; it runs the golden input again in a fresh process, through both, and measures the model for the
gates (`measuring.py`). The jobs of sources are described in `sourcing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from services.packager.answer import found_to_json
from services.packager.domain import Found, Tensor, check_tensors
from services.packager.errors import ModelRejected, Reason
from services.packager.formats import archive, onnx, tflite
from services.packager.formats.archive_members import Caps
from services.packager.loading import MODEL, check_external, load, load_ort, memory_error, step, tensors, version_of

GOLDEN_INPUT = Path("out/input.npz")
GOLDEN_OUTPUT = Path("out/output.npz")

_MIB = 2**20
_SHOWN = 600


def answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job and return the answer, a refusal included."""
    try:
        if job["task"] == "unpack":
            return _unpack(job)
        if job["task"] in {"source", "reference"}:
            from services.packager import sourcing  # noqa: PLC0415 - numpy is loaded after the limits are set

            return sourcing.read(job) if job["task"] == "source" else sourcing.reference(job)
        return _replay(job) if job["task"] == "replay" else _inspect(job)
    except ModelRejected as rejected:
        return {"ok": False, "code": rejected.reason, "detail": _clean(rejected.detail)}


def _inspect(job: Mapping[str, Any]) -> dict[str, Any]:
    step("reading")
    graph = Path(job["graph"])
    found = _read(graph)
    check_external(found.external, job["data"])
    step("checking")
    inputs = check_tensors(Reason.INPUT_MISMATCH, "input", tensors(job["inputs"]), found.inputs)
    outputs = check_tensors(Reason.OUTPUT_MISMATCH, "output", tensors(job["outputs"]), found.outputs)
    _check_ranks(found, inputs)
    step("loading")
    engine, runner = load(found.format)
    step("running")
    from services.packager import probe as probing  # noqa: PLC0415 - numpy is loaded after the limits are set
    from services.packager import samples  # noqa: PLC0415
    from services.packager.converters.arrays import write_npz  # noqa: PLC0415

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        try:
            results = runner.run({name: engine.as_input(array) for name, array in feed.items()})
        except Exception as error:
            raise memory_error(error) from error
        return {name: engine.as_output(array) for name, array in results.items()}

    given = None if job["golden_input"] is None else samples.read_one(Path(job["golden_input"]), inputs)
    result = probing.probe(run, inputs, outputs, found.precision, seconds=job["seconds"] / 2, given=given)
    step("writing")
    write_npz(GOLDEN_INPUT, result.inputs)
    write_npz(GOLDEN_OUTPUT, result.outputs)
    fixed = all(isinstance(dim, int) for tensor in inputs for dim in tensor.shape or ())
    outputs = tuple(probing.observed(tensor, result.outputs[tensor.name], fixed=fixed) for tensor in outputs)
    weights = sum(Path(path).stat().st_size for path in (graph, *job["data"].values()))
    moved = sum(array.nbytes for array in (*result.inputs.values(), *result.outputs.values()))
    return {
        "ok": True,
        "found": found_to_json(found, inputs, outputs),
        "golden": {"rtol": result.rtol, "atol": result.atol},
        "ram_mb": -(-(48 * _MIB + 2 * weights + 4 * moved) // (16 * _MIB)) * 16,
        "engine_version": engine.version(),
        "notes": list(result.notes),
    }


def _replay(job: Mapping[str, Any]) -> dict[str, Any]:
    step("replaying")
    engine, runner = load(job["format"])
    from services.packager import measuring  # noqa: PLC0415 - numpy is loaded after the limits are set
    from services.packager import probe as probing  # noqa: PLC0415
    from services.packager.converters.arrays import read_npz  # noqa: PLC0415

    feed = read_npz(Path("in/input.npz"))
    expected = read_npz(Path("in/output.npz"))
    inputs, outputs = tensors(job["inputs"]) or (), tensors(job["outputs"]) or ()
    _check_golden("input", inputs, feed)
    _check_golden("output", outputs, expected)

    runners = [runner] if job["ort"] is None else [runner, load_ort(Path(job["ort"]))]
    tolerance = (job["golden"]["rtol"], job["golden"]["atol"])
    for one in runners:

        def run(feed: Mapping[str, Any], one: Any = one) -> dict[str, Any]:
            results = one.run({name: engine.as_input(array) for name, array in feed.items()})
            return {name: engine.as_output(array) for name, array in results.items()}

        try:
            actual = run(feed)
        except Exception as error:
            raise ModelRejected(Reason.MODEL_NOT_DETERMINISTIC, f"The model ran once, but not a second time: {error}") from error
        if not probing.close(actual, expected, *tolerance):
            raise ModelRejected(
                Reason.MODEL_NOT_DETERMINISTIC,
                "The model gave other outputs in a second process than in the first one, so no device could check its own results. "
                "Give random operators a seed, or make the noise an input.",
            )
    return {"ok": True, "measured": measuring.measure(run, job["gates"], feed, (inputs, outputs), tolerance=tolerance, step=step)}


def _unpack(job: Mapping[str, Any]) -> dict[str, Any]:
    """`{"task": "unpack", "archive": "in/0", "caps": {…}}`: leaves `out/0`, `out/1`, …, and says which path each had."""
    step("reading")
    files = archive.unpack(Path(job["archive"]), Path("out"), Caps(**job["caps"]))
    return {"ok": True, "files": [{"path": one.path, "size": one.size} for one in files]}


def _read(graph: Path) -> Found:
    if graph.stat().st_size == 0:
        raise ModelRejected(Reason.MODEL_TRUNCATED, "The model file is empty. Upload it again.")
    with graph.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if tflite.is_tflite(data[:8]):
            return tflite.read(data, version_of("ai-edge-litert"))
        return onnx.read(data, version_of("onnxruntime"))


def _check_ranks(found: Found, inputs: tuple[Tensor, ...]) -> None:
    for tensor in inputs:
        if tensor.shape is None and found.format == "onnx":
            raise ModelRejected(
                Reason.INPUT_MISMATCH,
                f'The model does not say the shape of its input "{tensor.name}". Declare the inputs with their shapes.',
            )


def _check_golden(kind: str, tensors: tuple[Tensor, ...], arrays: Mapping[str, Any]) -> None:
    from services.packager.probe import dtype_of  # noqa: PLC0415 - numpy is loaded after the limits are set

    if {tensor.name: tensor.dtype for tensor in tensors} != {name: dtype_of(array) for name, array in arrays.items()}:
        raise ModelRejected(Reason.CHILD_ANSWER_INVALID, f"The golden {kind} does not hold the declared tensors.")


def _clean(text: str) -> str:
    """Make a message safe to show: our folder's path cut out, printable, not too long."""
    text = text.replace(str(Path.cwd()) + "/", "").replace(str(MODEL), "the model")
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
