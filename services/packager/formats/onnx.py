"""Reads what a package says of an ONNX file: versions, inputs, outputs, operators, external data. Does not run it and needs no `onnx`.

`onnx_walk` gathers the facts, here they are judged.
"""

from __future__ import annotations

from collections.abc import Callable

from services.packager.domain import Engine, Found
from services.packager.errors import ModelRejected, Reason
from services.packager.formats.onnx_walk import Gathered, walk
from services.packager.formats.protowire import Buffer, WireError

#: Domains whose operators ONNX Runtime itself brings along. "" and "ai.onnx" are the same one.
ALLOWED_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
#: Operators of those domains that load other files or foreign code.
REFUSED_OPERATORS = frozenset(
    {("com.microsoft", "EPContext"), ("com.microsoft", "PyOp"), ("com.microsoft", "ATen"), ("com.microsoft", "PythonOp")}
)

_QUANTISED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeLinear",
        "QLinearAdd",
        "QLinearMul",
        "QGemm",
        "QAttention",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "DynamicQuantizeLSTM",
        "QLinearGlobalAveragePool",
    }
)

#: (ONNX Runtime version, highest opset of the default domain, highest IR), oldest first. After the runtime's release notes, read
#: carefully: where they differ on when an IR came in, the later release is named.
RUNTIMES = (
    ("1.2", 11, 6), ("1.5", 12, 7), ("1.7", 13, 7), ("1.8", 14, 7), ("1.10", 15, 8), ("1.11", 16, 8), ("1.12", 17, 8), ("1.14", 18, 8),
    ("1.16", 19, 9), ("1.17", 20, 9), ("1.18", 21, 10), ("1.21", 22, 10), ("1.23", 23, 11), ("1.24", 25, 13), ("1.25", 26, 13),
)  # fmt: skip


def read(data: Buffer, runtime_version: str) -> Found:
    """Read an ONNX model.

    Args:
        data: the file.
        runtime_version: version of the engine that will run it here; becomes `min_version` for models newer than the known table.

    Raises:
        ModelRejected: not an ONNX file, cut off, malformed, too complex, external data outside the upload, operators or tensor types
            that are not allowed.
    """
    model = Gathered(data)
    seen_graph = False
    try:
        seen_graph = walk(model)
    except WireError as error:
        raise _broken(model, error) from error
    if not seen_graph or model.ir_version is None or not 1 <= model.ir_version <= 1000:
        raise not_recognised("it has no IR version or no graph")
    _check_operators(model)
    return _found(model, runtime_version)


def not_recognised(why: str) -> ModelRejected:
    """Build the refusal of a file that is no model of a known format."""
    return ModelRejected(
        Reason.MODEL_NOT_RECOGNISED,
        f"The file is neither ONNX nor TFLite ({why}). Export the model as .onnx (for PyTorch: torch.onnx.export) or .tflite; "
        "checkpoints, pickles, Keras and TorchScript files are not accepted.",
    )


def _broken(model: Gathered, error: WireError) -> ModelRejected:
    plausible = model.ir_version is not None and 1 <= model.ir_version <= 1000 and (model.nodes or model.opset or error.cut)
    if not plausible:
        return not_recognised(str(error))
    if error.cut:
        return ModelRejected(Reason.MODEL_TRUNCATED, "The ONNX file ends in the middle of the model. Upload the whole file again.")
    return ModelRejected(
        Reason.MODEL_MALFORMED, f"The ONNX file is damaged: {error}. Export the model again and check it with onnx.checker."
    )


def _check_operators(model: Gathered) -> None:
    refused = sorted(
        f"{domain or 'ai.onnx'}:{name}"[:200]
        for domain, name in model.calls
        if (domain, name) not in model.functions and (domain not in ALLOWED_DOMAINS or (domain, name) in REFUSED_OPERATORS)
    )
    if refused:
        raise ModelRejected(
            Reason.OPERATOR_NOT_ALLOWED,
            f"The model uses operators that need more than the standard runtime: {', '.join(refused[:10])}. "
            "Export it with the operators of ai.onnx, ai.onnx.ml and com.microsoft only; custom operators are refused.",
        )


def _found(model: Gathered, runtime_version: str) -> Found:
    operators = sorted(f"{domain}:{name}" if domain else name for domain, name in model.calls - model.functions)
    opset = {domain: version for domain, version in sorted(model.opset.items()) if domain in ALLOWED_DOMAINS}
    assert model.ir_version is not None
    engine = Engine(
        name="onnxruntime",
        min_version=_min_version(opset.get("", 0), model.ir_version, runtime_version),
        operators=tuple(operators),
        ir_version=model.ir_version,
        opset=opset,
    )
    return Found("onnx", engine, tuple(model.inputs), tuple(model.outputs), _precision(model), dict(model.external))


def _min_version(opset: int, ir_version: int, runtime_version: str) -> str:
    for version, max_opset, max_ir in RUNTIMES:
        if opset <= max_opset and ir_version <= max_ir:
            return version
    return runtime_version


def _precision(model: Gathered) -> str:
    """Name the precision as variants do: by quantising operators, else by what most of the weight bits are."""
    names = {name for _, name in model.calls}
    if names & {"MatMulNBits", "GatherBlockQuantized"}:
        return "int4"
    if names & _QUANTISED:
        return "int8"
    order: list[tuple[Callable[[int], bool], str]] = [
        (lambda kind: kind in {21, 22}, "int4"),
        (lambda kind: kind in {2, 3}, "int8"),
        (lambda kind: kind == 10, "fp16"),
        (lambda kind: kind == 16, "bf16"),
        (lambda kind: kind == 11, "fp64"),
        (lambda kind: kind == 1, "fp32"),
    ]
    sums = [(sum(bits for kind, bits in model.weight_bits.items() if test(kind)), name) for test, name in order]
    most, name = max(sums, key=lambda entry: entry[0])
    return name if most else "fp32"
