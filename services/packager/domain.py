"""What the packager talks about: tensors, what was found in a model, job states. Pure values and the rules on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.packager.errors import ModelRejected, Reason

#: A dimension: a number, a symbol's name, or None when nothing is known.
Dim = int | str | None

#: The dtypes that a package's inputs and outputs may have: numpy's names, and `string`.
DTYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "string"}
)

MAX_RANK = 16
MAX_DIM = 2**31 - 1
MAX_NAME = 256

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_.+*/ -]{0,63}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output. `shape` None: the rank is unknown. `range`: the values the owner says it takes, both ends included."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None
    range: tuple[float, float] | None = None

    def describe(self) -> str:
        """Say it in one line, as messages to the owner do."""
        if self.shape is None:
            return f"{self.dtype} of unknown rank"
        return f"{self.dtype} [{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs the model. ONNX has `ir_version` and `opset` (domain to version), TFLite may have a `min_runtime_version`."""

    name: str
    min_version: str
    operators: tuple[str, ...]
    ir_version: int | None = None
    opset: dict[str, int] | None = None
    min_runtime_version: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a reader found in a model file, before it was run.

    `external`: plain names of files that hold tensor data, each with the bytes it must have at least.
    """

    format: str
    engine: Engine
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precision: str
    external: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a source: what the source calls it (key of a signature, node, tensor), and the tensor as packages have it."""

    called: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Source:
    """A source for conversions: `saved-model` (with `signature` and `tags`), `graphdef`, `tflite` or `onnx` (with `external` data)."""

    format: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    external: dict[str, int]
    signature: str = ""
    tags: tuple[str, ...] = ()


class JobState(StrEnum):
    """`queued` and `running` go on, the others are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


@dataclass(frozen=True, slots=True)
class Package:
    """One signed package, as devices and the registry get it: `manifest` and `envelope` are the bytes as stored."""

    variant: str
    digest: str
    manifest: bytes
    envelope: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Packed:
    """What came of a version: its packages in order of preference, and the report on every variant as JSON (docs/packaging.md)."""

    packages: tuple[Package, ...]
    report: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """What is said about a job while it goes on: the step in words, the progress from 0 to 1, a line for its log."""

    at: datetime
    step: str
    progress: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A note in its place in the job's log; `position` counts from 1."""

    position: int
    note: Note


@dataclass(frozen=True, slots=True)
class Job:
    """One version on its way to packages. `version_created_at` goes into the manifests; `code` and `detail` say why it failed."""

    account: str
    job_id: str
    model_id: str
    version: int
    state: JobState
    progress: float
    step: str
    code: str | None
    detail: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version_created_at: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this process works on. `attempt` is the fence: a later claim has a higher one, and then this one's words do not count."""

    job: Job
    declaration: bytes
    holder: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may wait and run. A commit beyond a queue's length fails at once, with a code that says to commit again later."""

    queued: int = 1_000
    queued_per_account: int = 200
    running_per_account: int = 2
    #: Files that only results of conversions have; 0 keeps none.
    result_bytes: int = 2**30


def surplus_results(kept: Sequence[tuple[str, int]], most: int, most_bytes: int) -> list[str]:
    """Return the keys that are beyond `most` results or `most_bytes` of files; `kept` is (key, size), the most useful first."""
    surplus, total, count = [], 0, 0
    for key, size in kept:
        if count < most and total + size <= most_bytes:
            total, count = total + size, count + 1
        else:
            surplus.append(key)
    return surplus


def is_plain_name(name: str) -> bool:
    """Whether `name` is a plain file name: letters, digits and `._+-`, no dot at either end, at most 128 characters."""
    return _PLAIN_NAME.fullmatch(name) is not None and not name.endswith(".")


def is_symbol(name: str) -> bool:
    """Whether `name` can stand for a dimension in a manifest."""
    return _SYMBOL.fullmatch(name) is not None


def tensor_name(raw: bytes) -> str:
    """Decode a tensor's name. Raises `ModelRejected` when it is empty, too long or not printable text."""
    try:
        name = raw[: 4 * MAX_NAME + 1].decode()
    except UnicodeDecodeError:
        name = ""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ModelRejected(
            Reason.TENSOR_NOT_SUPPORTED,
            f"An input or output has a name that is empty, longer than {MAX_NAME} characters or not printable. Rename it and export again.",
        )
    return name


def agree(declared: Tensor, found: Tensor) -> bool:
    """Whether a declared tensor and one found in the model agree: same dtype, same rank, and equal dimensions where both are numbers."""
    if declared.dtype != found.dtype:
        return False
    if declared.shape is None or found.shape is None:
        return True
    return len(declared.shape) == len(found.shape) and all(
        not (isinstance(mine, int) and isinstance(theirs, int)) or mine == theirs
        for mine, theirs in zip(declared.shape, found.shape, strict=True)
    )


def merge(declared: Tensor, found: Tensor) -> Tensor:
    """Join what both sides know of a tensor: the declaration's name for a dimension is kept, a number is more than a name."""
    if declared.shape is None or found.shape is None:
        shape = declared.shape if found.shape is None else found.shape
    else:
        shape = tuple(_merge_dim(mine, theirs) for mine, theirs in zip(declared.shape, found.shape, strict=True))
    return Tensor(found.name, found.dtype, shape, declared.range)


def check_tensors(reason: Reason, kind: str, declared: tuple[Tensor, ...] | None, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Compare declared with found tensors and return them merged, in the order of the declaration (of the model, when none was given).

    Args:
        reason: `INPUT_MISMATCH` or `OUTPUT_MISMATCH`.
        kind: "input" or "output", for the message.
        declared: None when the owner declared nothing.
        found: what the model has.

    Raises:
        ModelRejected: names the tensor, what was declared and what was found.
    """
    if declared is None:
        return found
    by_name = {tensor.name: tensor for tensor in found}
    for tensor in declared:
        theirs = by_name.get(tensor.name)
        if theirs is None:
            have = ", ".join(f'"{other.name}" ({other.describe()})' for other in found) or "none"
            raise ModelRejected(
                reason,
                f'The {kind} "{tensor.name}" was declared as {tensor.describe()}, but the model has no such {kind}. It has: {have}.',
            )
        if not agree(tensor, theirs):
            raise ModelRejected(
                reason,
                f'The {kind} "{tensor.name}" was declared as {tensor.describe()}, but in the model it is {theirs.describe()}. '
                f"Correct the declaration, or export the model with the declared shape and type.",
            )
    named = {tensor.name for tensor in declared}
    for theirs in found:
        if theirs.name not in named:
            raise ModelRejected(
                reason,
                f'The model has the {kind} "{theirs.name}" ({theirs.describe()}), which was not declared. Declare every {kind}, or none.',
            )
    return tuple(merge(tensor, by_name[tensor.name]) for tensor in declared)


def _merge_dim(declared: Dim, found: Dim) -> Dim:
    for dim in (declared, found):
        if isinstance(dim, int):
            return dim
    return declared if declared is not None else found
