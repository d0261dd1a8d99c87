"""What every job of a child begins with: its steps, its declared tensors, the model's data files, and the model in its runtime."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.packager.answer import tensor_from_json
from services.packager.domain import Tensor
from services.packager.errors import ModelRejected, Reason

#: Where the model lies for its runtime, with its data files beside it; no data file has a name that begins with a dot.
MODEL = Path("in/model/.model")


def step(name: str) -> None:
    """Tell the service how far the job is."""
    print(f"@{name}", file=sys.stderr, flush=True)  # noqa: T201 - the child's progress channel


def version_of(distribution: str) -> str:
    """Return the version of an installed distribution. Raises `ModelRejected` when it is not there."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - only the child needs it

    try:
        return version(distribution)
    except PackageNotFoundError as error:
        raise ModelRejected(
            Reason.ENGINE_NOT_INSTALLED, f"This server has no {distribution}. Its operator installs the extra [packager]."
        ) from error


def check_external(external: Mapping[str, int], data: Mapping[str, str]) -> None:
    """Check the files that a model keeps tensor data in: name to bytes needed, against name to place. Raises `ModelRejected`."""
    for name, needed in external.items():
        if name not in data:
            have = ", ".join(sorted(data)) or "none"
            raise ModelRejected(
                Reason.EXTERNAL_DATA_MISSING,
                f'The model keeps tensor data in "{name}", which was not uploaded with this variant (data files: {have}). '
                "Upload it beside the model under exactly this name.",
            )
        size = Path(data[name]).stat().st_size
        if needed > size:
            raise ModelRejected(
                Reason.EXTERNAL_DATA_MISSING, f'The model needs {needed} bytes of "{name}", which has {size}. Upload the file again.'
            )


def load(kind: str) -> tuple[Any, Any]:
    """Load the runtime and the model, which the service laid out with its data files beside it under the names it knows them by."""
    try:
        if kind == "onnx":
            from services.packager.formats import onnx_engine  # noqa: PLC0415 - loaded after the limits are set

            return onnx_engine, onnx_engine.OnnxRunner(MODEL)
        from services.packager.formats import tflite_engine  # noqa: PLC0415 - loaded after the limits are set

        return tflite_engine, tflite_engine.TfliteRunner(MODEL)
    except ModelRejected as rejected:
        if isinstance(memory_error(rejected), MemoryError):
            raise MemoryError from rejected
        raise


def load_ort(path: Path) -> Any:
    """Load a model in ONNX Runtime's own format."""
    from services.packager.formats import onnx_engine  # noqa: PLC0415 - loaded after the limits are set

    return onnx_engine.OnnxRunner(path, ort_format=True)


def memory_error(error: Exception) -> Exception:
    """Return a `MemoryError` in place of what the runtimes say when memory runs out."""
    text = str(error).lower()
    return MemoryError() if "bad_alloc" in text or "failed to allocate" in text or "out of memory" in text else error


def tensors(entries: list[Any] | None) -> tuple[Tensor, ...] | None:
    """Read tensors of a job; None stays None."""
    return None if entries is None else tuple(tensor_from_json(entry) for entry in entries)
