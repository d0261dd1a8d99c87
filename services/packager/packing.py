"""Makes the packages of one version: convert, examine in children, hold against the gates, build manifests, sign.

It writes blobs and nothing else; that a job succeeded is decided by the transaction of `service.py` afterwards. Files of a job that
then fails stay behind as blobs that nothing refers to.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from kit.blobs import BlobStore
from services.packager.answer import Answer, conversion, inspection, measurement, tensor_to_json
from services.packager.converters import STEPS
from services.packager.declaration import ORT_PATH, Declaration, File, Variant, Wanted, parse_declaration
from services.packager.domain import Package, Packed, Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.files import Files
from services.packager.gates import Verdict, judge
from services.packager.making import Made, Maker
from services.packager.manifest import (
    GOLDEN_INPUT,
    GOLDEN_OUTPUT,
    STATEMENT_TYPE,
    Identity,
    build_manifest,
    build_statement,
    check_variants,
    examination,
    variant_name,
)
from services.packager.progress import EXAMINING, Progress, Report
from services.packager.remembering import Conversions
from services.packager.results import Result, Results
from services.packager.sandbox import Sandbox, Workspace
from services.packager.signing import Signer

MAX_GRAPH_BYTES = 2**31
MAX_VARIANT_BYTES = 16 * 2**30

#: How much of a job's progress belongs to making variants of a source.
_MAKING = 0.6
_END = 0.95


@dataclass(frozen=True, slots=True)
class _Job:
    """One version on its way. `rows`: what the report says of each variant so far."""

    declaration: Declaration
    files: Files
    rows: list[dict[str, Any]]

    def report(self, made: Made | None) -> bytes:
        source = None
        if self.declaration.source is not None and made is not None:
            source = {"format": made.format, "sha256": [file.sha256 for file in self.declaration.source.files][:100]}
        return json.dumps({"source": source, "variants": self.rows}, separators=(",", ":"), ensure_ascii=False).encode()

    def reasons(self) -> str:
        return " ".join(f"{row['variant']}: {row['problem']['code']}: {row['problem']['detail']}" for row in self.rows)[:1500]


@dataclass(frozen=True, slots=True)
class _Examined:
    variant: Variant
    answer: Answer
    golden_input: File
    golden_output: File
    verdict: Verdict


class Packer:
    """Packages versions of any account, one call each."""

    def __init__(self, blobs: BlobStore, signer: Signer, sandbox: Sandbox, results: Results, tool_version: str) -> None:
        self._blobs = blobs
        self._results = results
        self._signer = signer
        self._sandbox = sandbox
        self._tool_version = tool_version

    async def pack(self, identity: Identity, raw_declaration: bytes, report: Report) -> Packed:
        """Return the signed packages of a version in its order of preference, and the report on all variants.

        Raises `ModelRejected` when the version cannot be packaged, and what the blob store raises when it is not reachable.
        """
        declaration = parse_declaration(raw_declaration)
        files = Files(self._blobs, identity.account)
        for file in (*declaration.files, *declaration.private_files):
            await files.check(file)
        job = _Job(declaration, files, [])
        async with AsyncExitStack() as stack:
            made = None
            if declaration.source is not None:
                workspace = await stack.enter_async_context(self._sandbox.workspace())
                made = await self._make(files, declaration, Progress(report, "source", 0.0, _MAKING), workspace)
            examined = [
                one
                for index, variant in enumerate(declaration.variants)
                if (one := await self._try(job, variant, made, _stretch(report, declaration, index))) is not None
            ]
        if not examined:
            raise ModelRejected(Reason.VARIANTS_FAILED, f"No variant passed. {job.reasons()}", job.report(made))
        check_variants([variant_name(one.variant, one.answer) for one in examined], [one.answer for one in examined])
        report("signing", 0.97, "signing the packages")
        return Packed(tuple(self._sign(identity, declaration, one) for one in examined), job.report(made))

    async def _make(self, files: Files, declaration: Declaration, progress: Progress, workspace: Workspace) -> Made:
        conversions = Conversions(self._sandbox, self._results, files.account)
        return await Maker(conversions, files, declaration, progress).make(workspace)

    async def _try(self, job: _Job, wanted: Variant | Wanted, made: Made | None, progress: Progress) -> _Examined | None:
        """Examine a variant and add its row to the report; None when it failed and the version can do without it."""
        row: dict[str, Any] = {"variant": wanted.name, "state": "failed", "required": wanted.required, "problem": None}
        job.rows.append(row)
        try:
            variant = wanted if isinstance(wanted, Variant) else _made(made, wanted)
            one = await self._examine(job, variant, made if isinstance(wanted, Wanted) else None, progress)
            row |= {"variant": variant_name(variant, one.answer), **_structure(one), **one.verdict.report}
            if one.verdict.problem is not None:
                raise one.verdict.problem
        except ModelRejected as rejected:
            row["problem"] = {"code": rejected.reason, "detail": rejected.detail}
            progress.say(f"not served: {rejected.reason}: {rejected.detail}"[:500], 1.0)
            if wanted.required:
                raise ModelRejected(rejected.reason, rejected.detail, job.report(made)) from rejected
            return None
        row["state"] = "ready"
        return one

    def _sign(self, identity: Identity, declaration: Declaration, one: _Examined) -> Package:
        manifest = build_manifest(
            identity,
            declaration,
            one.variant,
            one.answer,
            golden_input=one.golden_input,
            golden_output=one.golden_output,
            examined=examination(self._tool_version, self._sandbox.level),
        )
        statement = build_statement(identity, manifest, self._tool_version, self._sandbox.level)
        envelope = self._signer.sign(identity.account, STATEMENT_TYPE, statement)
        return Package(
            manifest.variant, manifest.digest, manifest.body, json.dumps(envelope, separators=(",", ":")).encode(), manifest.size
        )

    async def _examine(self, job: _Job, variant: Variant, made: Made | None, progress: Progress) -> _Examined:
        files, declaration = job.files, job.declaration
        evaluation = declaration.evaluation
        floor = None if evaluation is None else evaluation.min_accuracy
        ends = {
            "inputs": _tensors(declaration.inputs if made is None else _with_ranges(made.inputs, declaration.inputs)),
            "outputs": _tensors(declaration.outputs if made is None else made.outputs),
        }
        facts = {
            "task": "examine",
            "sandbox": self._sandbox.level,
            "limits": self._sandbox.limits.for_child(),
            "files": [(file.path, file.sha256, file.size) for file in variant.files],
            **ends,
            "golden": (declaration.rtol, declaration.atol, declaration.golden_input and declaration.golden_input.sha256),
            "evaluation": None if evaluation is None else (evaluation.file.sha256, evaluation.output),
            "source": None if made is None else made.digests,
        }
        # The form for one runtime is made while a variant is examined.
        known = None if variant.wants_ort else await self._results.find(files.account, facts)
        if known is not None:
            progress.say("examined before, with the same result")
            answers = [answer.encode() for answer in json.loads(known.answer)]
            answer = _with_tolerances(inspection(answers[0]), declaration)
            _check_precision(variant, answer)
            verdict = judge(measurement(answers[1]), answer.found.precision, floor=floor)
            return _Examined(variant, answer, known.files[GOLDEN_INPUT], known.files[GOLDEN_OUTPUT], verdict)
        async with self._sandbox.workspace() as workspace:
            on_step = progress.steps(EXAMINING)
            on_step("fetching")
            places = await _fetch(files, variant, workspace)
            task: dict[str, Any] = {
                "task": "inspect",
                "graph": places[variant.graph.path],
                "data": {file.name: places[file.path] for file in variant.data},
                **ends,
                "golden_input": await _golden_input(files, declaration, workspace),
                "seconds": self._sandbox.limits.seconds,
            }
            raw = await self._sandbox.run(workspace, task, on_step)
            answer = _with_tolerances(inspection(raw), declaration)
            _check_precision(variant, answer)
            most = self._sandbox.limits.disk_bytes
            paths = [await asyncio.to_thread(workspace.take, name, name, most) for name in ("input.npz", "output.npz")]
            if variant.wants_ort:
                variant = await self._with_ort(files, variant, task["graph"], workspace, progress)
                _check_runtime(variant, answer)
            replay = {
                **task,
                "task": "replay",
                "format": answer.found.format,
                "inputs": _tensors(answer.found.inputs),
                "outputs": _tensors(answer.found.outputs),
                "golden": {"rtol": answer.rtol, "atol": answer.atol},
                "ort": None if variant.ort is None else f"in/{ORT_PATH}",
                "gates": await _gates(files, declaration, made, workspace),
            }
            replayed = await self._sandbox.run(workspace, replay, on_step)
            verdict = judge(measurement(replayed), answer.found.precision, floor=floor)
            golden = [await files.keep(path, name, "golden") for path, name in zip(paths, (GOLDEN_INPUT, GOLDEN_OUTPUT), strict=True)]
            if not variant.wants_ort:
                both = json.dumps([raw.decode(), replayed.decode()]).encode()
                await self._results.keep(files.account, facts, Result(both, {file.path: file for file in golden}))
            return _Examined(variant, answer, golden[0], golden[1], verdict)

    async def _with_ort(self, files: Files, variant: Variant, graph: str, workspace: Workspace, progress: Progress) -> Variant:
        """Add the form for one runtime. It is made of the graph that was examined, by a child that saw nothing else.

        No reader of ours knows this format: a child that had read the source could write anything into it.
        """
        on_step = progress.steps(STEPS, 0.5, 0.6)
        result = await self._sandbox.convert(workspace, "to_ort", {"graph": graph}, on_step, progress.say)
        made, _ = conversion(result, [ORT_PATH])
        path = await asyncio.to_thread(workspace.take, ORT_PATH, ORT_PATH, self._sandbox.limits.disk_bytes)
        file = await files.keep(path, ORT_PATH, "graph-ort")
        return replace(variant, ort=file, ort_version=str(made[ORT_PATH][-1]["version"]), steps=(*variant.steps, *made[ORT_PATH]))


async def _fetch(files: Files, variant: Variant, workspace: Workspace) -> dict[str, str]:
    """Copy the variant's files into the workspace under names of ours. Returns path in the package to place for the child."""
    if variant.graph.size > MAX_GRAPH_BYTES or sum(file.size for file in variant.files) > MAX_VARIANT_BYTES:
        raise ModelRejected(
            Reason.MODEL_TOO_LARGE,
            f"A model file may have at most {MAX_GRAPH_BYTES >> 30} GiB (ONNX: put the weights into external data), "
            f"a variant {MAX_VARIANT_BYTES >> 30} GiB.",
        )
    places = {}
    for number, file in enumerate(variant.files):
        await files.fetch(file, workspace.path(str(number)))
        places[file.path] = f"in/{number}"
    return places


async def _golden_input(files: Files, declaration: Declaration, workspace: Workspace) -> str | None:
    """Put the owner's golden input beside the model."""
    if declaration.golden_input is None:
        return None
    await files.fetch(declaration.golden_input, workspace.path("golden.npz"))
    return "in/golden.npz"


async def _gates(files: Files, declaration: Declaration, made: Made | None, workspace: Workspace) -> dict[str, Any]:
    """Put what the gates need beside the model."""
    gates: dict[str, Any] = {"samples": None, "reference": None, "evaluation": None, "output": None}
    if made is not None:
        for name, path in (("samples", made.samples), ("reference", made.reference)):
            await asyncio.to_thread(shutil.copyfile, path, workspace.path(f"{name}.npz"))
            gates[name] = f"in/{name}.npz"
    if declaration.evaluation is not None:
        await files.fetch(declaration.evaluation.file, workspace.path("evaluation.npz"))
        gates |= {"evaluation": "in/evaluation.npz", "output": declaration.evaluation.output}
    return gates


def _made(made: Made | None, wanted: Wanted) -> Variant:
    assert made is not None
    if wanted.name in made.failed:
        raise made.failed[wanted.name]
    return made.variants[wanted.name]


def _check_precision(variant: Variant, answer: Answer) -> None:
    if variant.precision in {None, "fp32", answer.found.precision}:
        return
    raise ModelRejected(
        Reason.CONVERSION_FAILED,
        f"The converter left the model as {answer.found.precision}: nothing in it can be {variant.precision}. Leave this variant out.",
    )


def _check_runtime(variant: Variant, answer: Answer) -> None:
    if variant.ort is not None and variant.ort_version != answer.engine_version:
        raise ModelRejected(
            Reason.CONVERSION_FAILED,
            f"The ONNX Runtime format was written by version {variant.ort_version}, but this server can only check that of its own, "
            f"{answer.engine_version}. Leave this variant out.",
        )


def _stretch(report: Report, declaration: Declaration, index: int) -> Progress:
    variant, total = declaration.variants[index], len(declaration.variants)
    begin = _MAKING if declaration.source is not None else 0.0
    part = (_END - begin) / total
    label = variant.name or (variant.graph.name if isinstance(variant, Variant) else "")
    return Progress(report, label, begin + index * part, begin + (index + 1) * part)


def _with_tolerances(answer: Answer, declaration: Declaration) -> Answer:
    """Let the owner's tolerances win."""
    return replace(
        answer,
        rtol=answer.rtol if declaration.rtol is None else declaration.rtol,
        atol=answer.atol if declaration.atol is None else declaration.atol,
    )


def _with_ranges(tensors: tuple[Tensor, ...], declared: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    ranges = {tensor.name: tensor.range for tensor in declared or ()}
    return tuple(replace(tensor, range=ranges.get(tensor.name, tensor.range)) for tensor in tensors)


def _structure(one: _Examined) -> dict[str, Any]:
    """Say what the structure gate found: engine, operators by domain, bytes."""
    engine = one.answer.found.engine
    domains: dict[str, int] = {}
    for operator in engine.operators:
        domain = operator.rpartition(":")[0] or ("ai.onnx" if engine.name == "onnxruntime" else engine.name)
        domains[domain] = domains.get(domain, 0) + 1
    return {
        "precision": one.answer.found.precision,
        "structure": {
            "ir_version": engine.ir_version,
            "opset": engine.opset,
            "min_version": engine.min_version,
            "min_runtime_version": engine.min_runtime_version,
            "operators": domains,
            "bytes": sum(file.size for file in one.variant.files),
        },
    }


def _tensors(tensors: Any) -> list[dict[str, Any]] | None:
    return None if tensors is None else [tensor_to_json(tensor) for tensor in tensors]
