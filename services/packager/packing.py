"""Makes the packages of one version: fetch, examine in children, keep the golden files, build manifests, sign.

It writes blobs and nothing else; that a job succeeded is decided by the transaction of `service.py` afterwards. Golden files of a job
that then fails stay behind as blobs that nothing refers to.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kit.blobs import BlobMismatch, BlobNotFound, BlobStore
from services.packager.answer import Answer, inspection, parse_answer, tensor_to_json
from services.packager.declaration import Declaration, File, Variant, parse_declaration
from services.packager.domain import Package
from services.packager.errors import ModelRejected, Reason
from services.packager.manifest import (
    GOLDEN_INPUT,
    GOLDEN_OUTPUT,
    STATEMENT_TYPE,
    Identity,
    build_manifest,
    build_statement,
    check_variants,
    variant_name,
)
from services.packager.results import Result, Results
from services.packager.sandbox import Sandbox, Workspace
from services.packager.signing import Signer

MAX_GRAPH_BYTES = 2**31
MAX_VARIANT_BYTES = 16 * 2**30

_CHUNK = 2**20
_WORDS = {
    "fetching": "fetching the files",
    "reading": "reading the model",
    "checking": "comparing it with the declaration",
    "loading": "loading it into the engine",
    "running": "running it on generated input",
    "writing": "keeping the golden output",
    "replaying": "running it again in a second process",
    "remembering": "examined before, with the same result",
}
_STEPS = tuple(_WORDS)


class Report(Protocol):
    """Tells how far a job is. Never waits."""

    def __call__(self, step: str, progress: float, text: str) -> None:
        """Say the step in words, the progress from 0 to 1, and a line for the job's log."""
        ...


@dataclass(frozen=True, slots=True)
class _Examined:
    variant: Variant
    answer: Answer
    golden_input: File
    golden_output: File


class Packer:
    """Packages versions of any account, one call each."""

    def __init__(self, blobs: BlobStore, signer: Signer, sandbox: Sandbox, results: Results, tool_version: str) -> None:
        self._blobs = blobs
        self._results = results
        self._signer = signer
        self._sandbox = sandbox
        self._tool_version = tool_version

    async def pack(self, identity: Identity, raw_declaration: bytes, report: Report) -> list[Package]:
        """Return the signed packages of a version, in its order of preference.

        Raises `ModelRejected` when the version cannot be packaged, and what the blob store raises when it is not reachable.
        """
        declaration = parse_declaration(raw_declaration)
        for file in declaration.files:
            await self._check_stored(identity.account, file)
        examined = []
        for index, variant in enumerate(declaration.variants):
            label = (variant.name or variant.graph.name)[:48]
            examined.append(await self._examine(identity.account, declaration, variant, _steps(report, label, index, declaration)))
        names = [variant_name(one.variant, one.answer) for one in examined]
        check_variants(names, [one.answer for one in examined])
        report("signing", 0.97, "signing the packages")
        return [self._sign(identity, declaration, one) for one in examined]

    def _sign(self, identity: Identity, declaration: Declaration, one: _Examined) -> Package:
        manifest = build_manifest(
            identity, declaration, one.variant, one.answer, golden_input=one.golden_input, golden_output=one.golden_output
        )
        statement = build_statement(identity, manifest, self._tool_version, self._sandbox.level)
        envelope = self._signer.sign(identity.account, STATEMENT_TYPE, statement)
        return Package(
            manifest.variant, manifest.digest, manifest.body, json.dumps(envelope, separators=(",", ":")).encode(), manifest.size
        )

    async def _examine(self, account: str, declaration: Declaration, variant: Variant, on_step: Callable[[str], None]) -> _Examined:
        facts = {
            "task": "examine",
            "sandbox": self._sandbox.level,
            "limits": self._sandbox.limits.for_child(),
            "files": [(file.path, file.sha256, file.size) for file in variant.files],
            "inputs": _tensors(declaration.inputs),
            "outputs": _tensors(declaration.outputs),
            "golden": (declaration.rtol, declaration.atol),
        }
        if (known := await self._results.find(account, facts)) is not None:
            on_step("remembering")
            return _Examined(variant, _with_tolerances(inspection(known.answer), declaration), *known.files.values())
        async with self._sandbox.workspace() as workspace:
            on_step("fetching")
            places = await self._fetch(account, variant, workspace)
            limits = self._sandbox.limits
            job: dict[str, Any] = {
                "task": "inspect",
                "graph": places[variant.graph.path],
                "data": {file.name: places[file.path] for file in variant.data},
                "inputs": _tensors(declaration.inputs),
                "outputs": _tensors(declaration.outputs),
                "seconds": limits.seconds,
            }
            raw = await self._sandbox.run(workspace, job, on_step)
            answer = _with_tolerances(inspection(raw), declaration)
            most = limits.disk_bytes
            paths = [await asyncio.to_thread(workspace.take, name, name, most) for name in ("input.npz", "output.npz")]
            replay = {
                **job,
                "task": "replay",
                "format": answer.found.format,
                "inputs": _tensors(answer.found.inputs),
                "outputs": _tensors(answer.found.outputs),
                "golden": {"rtol": answer.rtol, "atol": answer.atol},
            }
            parse_answer(await self._sandbox.run(workspace, replay, on_step))
            golden = [await self._keep(account, path, name) for path, name in zip(paths, (GOLDEN_INPUT, GOLDEN_OUTPUT), strict=True)]
            await self._results.keep(account, facts, Result(raw, {file.path: file for file in golden}))
            return _Examined(variant, answer, *golden)

    async def _fetch(self, account: str, variant: Variant, workspace: Workspace) -> dict[str, str]:
        """Copy the variant's files into the workspace under names of ours. Returns path in the package to place for the child."""
        if variant.graph.size > MAX_GRAPH_BYTES or sum(file.size for file in variant.files) > MAX_VARIANT_BYTES:
            raise ModelRejected(
                Reason.MODEL_TOO_LARGE,
                f"A model file may have at most {MAX_GRAPH_BYTES >> 30} GiB (ONNX: put the weights into external data), "
                f"a variant {MAX_VARIANT_BYTES >> 30} GiB.",
            )
        places = {}
        for number, file in enumerate(variant.files):
            await self._copy(account, file, workspace.path(str(number)))
            places[file.path] = f"in/{number}"
        return places

    async def _copy(self, account: str, file: File, target: Path) -> None:
        await self._check_stored(account, file)
        digest = hashlib.sha256()
        with target.open("xb") as copy:
            async for chunk in self._blobs.open(account, file.sha256):
                await asyncio.to_thread(_write, copy, digest, chunk)
        if digest.hexdigest() != file.sha256:
            raise BlobMismatch(f"the stored bytes of {file.path} are not the ones that were uploaded")

    async def _check_stored(self, account: str, file: File) -> None:
        try:
            info = await self._blobs.stat(account, file.sha256)
        except BlobNotFound as error:
            raise ModelRejected(
                Reason.FILE_MISSING, f"{file.path} was not uploaded (sha256 {file.sha256}). Upload it and commit again."
            ) from error
        if info.size != file.size:
            raise ModelRejected(Reason.FILE_MISMATCH, f"{file.path} was declared with {file.size} bytes, but {info.size} were uploaded.")

    async def _keep(self, account: str, path: Path, name: str) -> File:
        """Store a golden file as a blob of the account."""
        info = await self._blobs.put(account, _chunks(path))
        return File(name, info.sha256, info.size, "golden")


def _steps(report: Report, label: str, index: int, declaration: Declaration) -> Callable[[str], None]:
    total = len(declaration.variants)

    def on_step(name: str) -> None:
        done = _STEPS.index(name) / len(_STEPS)
        report(f"{label}: {_WORDS[name]}", round((index + done) / total * 0.95, 4), f"{label}: {_WORDS[name]}")

    return on_step


def _with_tolerances(answer: Answer, declaration: Declaration) -> Answer:
    """Let the owner's tolerances win."""
    return replace(
        answer,
        rtol=answer.rtol if declaration.rtol is None else declaration.rtol,
        atol=answer.atol if declaration.atol is None else declaration.atol,
    )


def _tensors(tensors: Any) -> list[dict[str, Any]] | None:
    return None if tensors is None else [tensor_to_json(tensor) for tensor in tensors]


def _write(copy: Any, digest: Any, chunk: bytes) -> None:
    digest.update(chunk)
    copy.write(chunk)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
