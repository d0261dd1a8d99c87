"""Converters: what runs in a converter environment, inside the sandbox, one file per tool.

An environment is a lock file here (`<name>.lock`, made from `<name>.in`); `environments.py` makes it on the machine. A converter is a
file here and a row of `CONVERTERS`: the function `convert(job, step) -> dict` of that file, or several of them.

    import tensorflow as tf  # the server never imports this file

    def convert(job: dict[str, Any], step: Step) -> dict[str, Any]:
        step("loading")
        ...

What a converter may rely on: the current folder holds `in/` (read-only, the caller's files), `out/` (files to hand back, plain names,
no folders) and `tmp/`; the standard library and the packages of its environment; no network, no other process, no other folder, no
environment. It imports nothing of ours but this package. It returns what JSON can say, at most 1 MiB, and refuses by raising `Refusal`
with a `Reason` of `errors.py` and a detail for the model's owner. Whatever it prints is dropped. Anything else that it raises ends the
job as `CONVERSION_FAILED` with the exception's words.

The service's side is one call, which makes the environment first when it is not there:

    async with sandbox.workspace() as workspace:
        workspace.path("0").write_bytes(...)                     # inputs: names of ours, in/0
        result = await sandbox.convert(workspace, "saved_model_to_onnx", {"model": "in/0"}, on_step, tell)
        path = workspace.take("model.onnx", "converted", max_bytes)   # moved from out/ to in/converted, for later children

`result` was made by a child that read a hostile model: check it field by field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Says which step begins, a key of `STEPS`.
Step = Callable[[str], None]

#: Steps that a converter may say, and what people read for each.
STEPS = {
    "importing": "starting the converter",
    "loading": "loading the source model",
    "answering": "running the source on the samples",
    "freezing": "freezing the graph",
    "converting": "converting it to ONNX",
    "converting-tflite": "converting it to TFLite",
    "converting-ort": "writing it in ONNX Runtime's own format",
    "slimming": "slimming the graph",
    "calibrating": "running the calibration samples",
    "quantising": "quantising the weights",
    "verifying": "checking the structure of the result",
    "comparing": "comparing it with the source",
    "evaluating": "evaluating it on the given samples",
    "measuring": "measuring speed and memory",
    "saving": "writing the result",
}


@dataclass(frozen=True, slots=True)
class Converter:
    """Where a conversion lives: the environment, the file here, the function in it (the row's key when empty)."""

    environment: str
    module: str
    function: str = ""


#: What `Sandbox.convert` can be asked for.
CONVERTERS = {
    "from_tensorflow": Converter("tf", "from_tensorflow", "convert"),
    "onnx_variants": Converter("onnx", "onnx_variants", "convert"),
    "to_ort": Converter("onnx", "to_ort"),
    "describe": Converter("onnx", "describe"),
    "describe_tf": Converter("tf", "describe", "describe"),
    "describe_sk": Converter("sk", "describe", "describe"),
    "sk_to_onnx": Converter("sk", "from_sklearn"),
}

#: What the warm parent of each environment imports, so that conversions find it there.
WARM = {
    "onnx": ("services.packager.converters.onnx_variants", "services.packager.converters.onnx_quantise", "onnxslim"),
    "tf": ("services.packager.converters.from_tensorflow",),
    "sk": ("services.packager.converters.from_sklearn", "skl2onnx", "onnxmltools", "skops.io", "xgboost", "lightgbm"),
}


class Refusal(Exception):
    """The upload cannot be converted. `reason` is a name of `errors.Reason`, `detail` is for the model's owner."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
