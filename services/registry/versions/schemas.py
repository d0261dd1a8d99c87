"""Request and response models of versions and packages. The declaration is docs/topics.md's."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, StrictBool, model_serializer

from kit.web import Model
from services.registry.schemas import Why
from services.registry.versions.declaration import with_roles
from services.registry.versions.domain import Package, PackageSummary, Version, VersionState

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Size = Annotated[int, Field(ge=0, lt=1 << 53, strict=True)]
_Path = Annotated[str, Field(min_length=1, max_length=300)]
_Count = Annotated[int, Field(ge=0, strict=True)]


class SharedFile(Model):
    """An auxiliary file that every variant carries. The bytes are an upload of the account."""

    path: _Path
    sha256: _Digest
    size: _Size


class VariantFile(SharedFile):
    """A file of one variant: the model itself (`graph`) or data that it refers to (`graph-data`)."""

    role: Literal["graph", "graph-data"] | None = None


class Convert(Model):
    """How a variant is made of the source. docs/packaging.md has the kinds and profiles."""

    to: Literal["onnx-fp32", "onnx-fp16", "onnx-int8", "tflite-fp32", "tflite-int8", "ort"]
    profile: Literal["portable", "modern"] = "portable"
    slim: StrictBool = True


class Variant(Model):
    """One runnable form: uploaded ready-made (`files`) or made of the source (`convert`).

    Without a name it is called by engine and precision. `required`: when it fails, the version fails; otherwise the others go on
    without it. Ready-made variants are required unless they say otherwise.
    """

    name: str | None = None
    files: Annotated[list[VariantFile], Field(min_length=1)] | None = None
    convert: Convert | None = None
    required: StrictBool | None = None


class Source(Model):
    """What training produced: the files of a SavedModel folder with their relative paths, a GraphDef, a TFLite or ONNX file.

    `names`: name of an input or output in the package to its name in the source, where they differ.
    """

    files: Annotated[list[SharedFile], Field(min_length=1, max_length=1000)]
    names: dict[Annotated[str, Field(min_length=1, max_length=256)], Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=dict, max_length=512
    )


class Evaluation(Model):
    """An .npz with inputs and `labels` or expected outputs, and the accuracy (0 to 1) below which no variant is served."""

    file: SharedFile
    min_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    output: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class Parameter(Model):
    """A typed constant. The value must be of the type as it is; nothing is converted.

    `default` is the value that stands in for it where an older version of the model lacks it (docs/contract.md).
    """

    type: Literal["int", "float", "bool", "string", "int[]", "float[]", "string[]", "json", "file"]
    value: Any
    default: Any = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown: dict[str, Any] = handler(self)
        return {name: value for name, value in shown.items() if name != "default" or value is not None}


class Tensor(Model):
    """An input or output. A dimension is a size, null (dynamic) or the name of a symbol.

    `range` [lowest, highest] of an input: the values it takes; the packager keeps to it when it runs the model.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    dtype: str
    shape: list[_Count | str | None]
    range: tuple[float, float] | None = None


class Requires(Model):
    """What a device must have: memory in MiB, one of the ABIs, all of the accelerators."""

    ram_mb: Annotated[int, Field(gt=0, lt=1 << 24, strict=True)] | None = None
    abi: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=32)] | None = None
    accelerators: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=32)] | None = None


class Golden(Model):
    """How close the device's answer to the golden input must come (as in `numpy.allclose`).

    `input`: an .npz with the golden input itself, which then goes into the packages; without it the packager makes one up.
    """

    input: SharedFile | None = None
    rtol: Annotated[float, Field(ge=0, le=1e12)] | None = None
    atol: Annotated[float, Field(ge=0, le=1e12)] | None = None


class LineageStep(Model):
    """One tool that made the files what they are."""

    tool: Annotated[str, Field(max_length=100)]
    version: Annotated[str, Field(max_length=100)] = ""
    options: dict[str, Any] = Field(default_factory=dict)


class Lineage(Model):
    """Where the files come from."""

    source_sha256: Annotated[list[_Digest], Field(max_length=100)] = Field(default_factory=list)
    steps: Annotated[list[LineageStep], Field(max_length=100)] = Field(default_factory=list)


class Declaration(Model):
    """What its owner says of a version: variants in order of preference, files, parameters, tensors, requirements."""

    variants: Annotated[list[Variant], Field(min_length=1)]
    source: Source | None = None
    calibration: SharedFile | None = None
    evaluation: Evaluation | None = None
    files: list[SharedFile] = Field(default_factory=list)
    params: dict[str, Parameter] = Field(default_factory=dict)
    inputs: list[Tensor] | None = None
    outputs: list[Tensor] | None = None
    requires: Requires = Field(default_factory=Requires)
    golden: Golden = Field(default_factory=Golden)
    lineage: Lineage = Field(default_factory=Lineage)
    notes: Annotated[str, Field(max_length=10_000)] = ""

    def as_stored(self) -> dict[str, Any]:
        """Return the declaration as it is stored and sent to the packager: roles filled in, absent members left out."""
        return _stored(self.model_dump())  # not mode="json", which mends what is no JSON instead of leaving it to the rules


#: Members of a declaration that a change can take away.
_REMOVABLE = ("inputs", "outputs", "source", "calibration", "evaluation")


class DeclarationChange(Model):
    """Members of a draft's declaration to replace, each as a whole; what is left out stays. null takes away what may be absent."""

    variants: Annotated[list[Variant], Field(min_length=1)] | None = None
    source: Source | None = None
    calibration: SharedFile | None = None
    evaluation: Evaluation | None = None
    files: list[SharedFile] | None = None
    params: dict[str, Parameter] | None = None
    inputs: list[Tensor] | None = None
    outputs: list[Tensor] | None = None
    requires: Requires | None = None
    golden: Golden | None = None
    lineage: Lineage | None = None
    notes: Annotated[str, Field(max_length=10_000)] | None = None

    def as_changes(self) -> dict[str, Any]:
        """Return the members that were sent."""
        sent = {name: value for name, value in self.model_dump().items() if name in self.model_fields_set}
        removed: dict[str, Any] = {name: None for name in _REMOVABLE if name in sent and sent[name] is None}
        return {**_stored(sent), **removed}


def _stored(declaration: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is null, but never inside a parameter's value."""
    stored = {name: value for name, value in declaration.items() if value is not None}
    for name in ("requires", "golden"):
        if name in stored:
            stored[name] = {key: value for key, value in stored[name].items() if value is not None}
    for side in ("inputs", "outputs"):
        if side in stored:
            stored[side] = [{key: value for key, value in tensor.items() if key != "range" or value is not None} for tensor in stored[side]]
    if "variants" in stored:
        stored["variants"] = [_stored_variant(variant) for variant in stored["variants"]]
    if "evaluation" in stored:
        stored["evaluation"] = {key: value for key, value in stored["evaluation"].items() if value is not None}
    return stored


def _stored_variant(variant: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in variant.items() if value is not None and (key != "name" or value)}
    return {**kept, "files": with_roles(kept["files"])} if "files" in kept else kept


class PackageView(Model):
    """A package in a version's answer; `size` is the sum of its files in bytes."""

    digest: str
    variant: str
    size: int


class Problem(Model):
    """Why a version could not be packaged: a stable code, and words for its owner."""

    code: str
    detail: str


class VersionSummary(Model):
    """A version in a list."""

    model_id: str
    version: int
    state: VersionState
    job_id: str | None
    problem: Problem | None
    packages: list[PackageView]
    notes: str
    created_at: datetime
    created_by: str
    updated_at: datetime
    committed_at: datetime | None
    committed_by: str | None
    packaged_at: datetime | None
    archived_at: datetime | None

    @classmethod
    def of(cls, entry: tuple[Version, Sequence[PackageSummary]]) -> VersionSummary:
        """Show a version with its packages."""
        return cls(**_version_fields(*entry))


class VersionView(VersionSummary):
    """A version with its declaration."""

    declaration: dict[str, Any]
    report: dict[str, Any] | None

    @classmethod
    def whole(cls, version: Version, packages: Sequence[PackageSummary] = ()) -> VersionView:
        """Show a version with its declaration and packages."""
        return cls(**_version_fields(version, packages), declaration=version.declaration, report=version.report)


def _version_fields(version: Version, packages: Sequence[PackageSummary]) -> dict[str, Any]:
    names = ("model_id", "version", "state", "job_id", "created_at", "created_by", "updated_at", "committed_at", "committed_by")
    problem = None
    if version.problem_code is not None:
        problem = Problem(code=version.problem_code, detail=version.problem_detail or "")
    return {
        **{name: getattr(version, name) for name in names},
        "packaged_at": version.packaged_at,
        "archived_at": version.archived_at,
        "notes": version.declaration.get("notes", ""),
        "problem": problem,
        "packages": [PackageView(digest=one.digest, variant=one.variant, size=one.size) for one in packages],
    }


class Committed(Model):
    """A version on its way; follow `GET /v1/jobs/{job_id}`."""

    model_id: str
    version: int
    state: VersionState
    job_id: str

    @classmethod
    def of(cls, version: Version) -> Committed:
        """Show a version that was committed."""
        assert version.job_id is not None
        return cls(model_id=version.model_id, version=version.version, state=version.state, job_id=version.job_id)


class Archive(Model):
    """How to archive. `force` removes the aliases that point at the version."""

    force: StrictBool = False
    why: Why = ""


class PackageFile(Model):
    """One file of a package, and where to fetch it."""

    path: str
    role: str
    size: int
    sha256: str
    url: str


class PackageWhole(Model):
    """A package for people: `manifest_base64` are the signed bytes, `manifest` the same parsed, `signature` the DSSE envelope."""

    digest: str
    variant: str
    size: int
    manifest: dict[str, Any]
    manifest_base64: str
    signature: dict[str, Any]
    files: list[PackageFile]

    @classmethod
    def of(cls, package: Package) -> PackageWhole:
        """Show a package."""
        manifest = json.loads(package.manifest)
        files = [
            PackageFile(
                path=file["path"],
                role=file["role"],
                size=file["size"],
                sha256=file["sha256"],
                url=f"/v1/packages/{package.digest}/files/{file['path']}",
            )
            for file in manifest["files"]
        ]
        return cls(
            digest=package.digest,
            variant=package.variant,
            size=package.size,
            manifest=manifest,
            manifest_base64=base64.b64encode(package.manifest).decode(),
            signature=json.loads(package.envelope),
            files=files,
        )
