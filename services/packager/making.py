"""Makes variants of a source: reads it in a child of ours, converts it in children of the converter environments, keeps what comes out.

Nothing that comes out is believed: `packing.py` examines each result from zero in further children, and holds it against the source's
own outputs, which are computed here on the same samples.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.packager.answer import SourceAnswer, parse_answer, source_answer, tensor_to_json
from services.packager.converters import STEPS
from services.packager.declaration import KINDS, PROFILES, Declaration, Variant, Wanted
from services.packager.domain import Source, Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.files import Files, digest_of
from services.packager.preparing import Prepared, prepare
from services.packager.progress import EXAMINING, Progress
from services.packager.remembering import Conversions, Steps
from services.packager.sandbox import Workspace

_MAX_SAMPLES_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a source. `samples` and `reference` lie in the workspace that it was made in, `digests` are theirs.

    `variants` and `failed` are by the names of the variants that were asked for; each is in one of them.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    format: str
    samples: Path
    reference: Path
    digests: list[str]
    variants: dict[str, Variant]
    failed: dict[str, ModelRejected]


class Maker:
    """Makes the variants of one version."""

    def __init__(self, conversions: Conversions, files: Files, declaration: Declaration, progress: Progress) -> None:
        assert declaration.source is not None
        self._sandbox, self._conversions = conversions.sandbox, conversions
        self._files, self._declaration, self._progress = files, declaration, progress
        self._source_files = declaration.source
        self._wanted = [one for one in declaration.variants if isinstance(one, Wanted)]
        #: Per file that a converter was asked for: how it was made, or why not.
        self._steps: dict[str, Steps] = {}
        self._why: dict[str, str] = {}

    async def make(self, workspace: Workspace) -> Made:
        """Make every variant that was asked for, in one workspace that stays open while the result is used.

        Raises:
            ModelRejected: the source is refused, broken, or cannot be run. What only one variant cannot do is in `failed`.
        """
        self._progress.say("fetching the source")
        for file in self._source_files.files:
            await self._files.fetch(file, workspace.path(f"source/{file.path}"))
        if self._declaration.calibration is not None:
            await self._files.fetch(self._declaration.calibration, workspace.path("owners.npz"))
        if self._declaration.golden_input is not None:
            await self._files.fetch(self._declaration.golden_input, workspace.path("golden.npz"))
        prepared = await self._prepare(workspace)
        read = await self._read(workspace, prepared)
        if read.source.format != "onnx":
            await self._from_tensorflow(workspace, read)
        await self._from_onnx(workspace, read)
        variants, failed = {}, {}
        for one in self._wanted:
            try:
                variants[one.name] = await self._gather(workspace, one, read, prepared)
            except ModelRejected as rejected:
                failed[one.name] = rejected
        sides = [tuple(port.tensor for port in side) for side in (read.source.inputs, read.source.outputs)]
        files = [workspace.path("samples.npz"), workspace.path("reference.npz")]
        digests = [await asyncio.to_thread(digest_of, path) for path in files]
        return Made(sides[0], sides[1], read.source.format, files[0], files[1], digests, variants, failed)

    async def _prepare(self, workspace: Workspace) -> Prepared:
        how = {
            "names": self._source_files.names,
            "range": next((list(one.range) for one in self._declaration.inputs or () if one.range is not None), None),
            "samples": None if self._declaration.calibration is None else "in/owners.npz",
        }
        paths = [file.path for file in self._source_files.files]
        return await prepare(self._conversions, workspace, paths, how, self._progress)

    async def _read(self, workspace: Workspace, prepared: Prepared) -> SourceAnswer:
        """Learn what the source is, and prepare the samples; ONNX and TFLite answer them in the engines here."""
        paths = prepared.paths
        golden = None if self._declaration.golden_input is None else "in/golden.npz"
        job: dict[str, Any] = {
            "task": "source",
            "files": {path: f"in/source/{path}" for path in paths},
            "names": self._source_files.names,
            "inputs": _tensors(self._declaration.inputs),
            "outputs": _tensors(self._declaration.outputs),
            "samples": None if self._declaration.calibration is None else "in/owners.npz",
            "golden": golden,
        }
        on_step = self._progress.steps(EXAMINING, 0.02, 0.1)
        read = source_answer(await self._sandbox.run(workspace, job, on_step), paths)
        if read.calibration:
            workspace.take("calibration.npz", "calibration.npz", _MAX_SAMPLES_BYTES)
        if prepared.answered:
            return read
        if read.source.format in {"onnx", "tflite"}:
            run = {
                "task": "reference",
                "format": read.source.format,
                "graph": f"in/source/{read.main}",
                "data": {path.rpartition("/")[2]: f"in/source/{path}" for path in paths if path != read.main},
                **_ports(read.source),
                "samples": _calibration(read),
                "golden": golden,
                "seconds": self._sandbox.limits.seconds,
            }
            parse_answer(await self._sandbox.run(workspace, run, on_step))
            workspace.take("reference.npz", "reference.npz", _MAX_SAMPLES_BYTES)
        workspace.take("samples.npz", "samples.npz", _MAX_SAMPLES_BYTES)
        return read

    async def _from_tensorflow(self, workspace: Workspace, read: SourceAnswer) -> None:
        """Convert a TensorFlow or TFLite source to TFLite files, and to the graphs that ONNX variants are made of."""
        source = read.source
        targets: dict[str, dict[str, Any]] = {}
        for one in self._wanted:
            form, precision = KINDS[one.kind]
            if form == "onnx":
                targets[_base(one)] = {"to": "onnx", "opset": PROFILES[one.profile][0]}
            elif source.format != "tflite" or (precision == "fp32" and _is_renamed(source)):
                targets[_file(one)] = {"to": "tflite", "precision": precision}
        folder = f"in/source/{read.main.rpartition('/')[0]}".rstrip("/")
        job = {
            "format": source.format,
            "source": folder if source.format == "saved-model" else f"in/source/{read.main}",
            "signature": source.signature,
            "tags": list(source.tags),
            **_ports(source),
            "samples": "in/samples.npz",
            "calibration": _calibration(read),
            "targets": targets,
        }
        if targets:
            also = () if source.format == "tflite" else ("reference.npz",)
            await self._convert(workspace, "from_tensorflow", job, (0.1, 0.7), also)

    async def _from_onnx(self, workspace: Workspace, read: SourceAnswer) -> None:
        """Make the ONNX variants, of the source or of what was made of it. When the converter dies, only they have failed."""
        source = read.source
        targets: dict[str, dict[str, Any]] = {}
        for one in self._wanted:
            form, precision = KINDS[one.kind]
            opset, ir = PROFILES[one.profile]
            graph = f"in/source/{read.main}" if source.format == "onnx" else f"in/{_base(one)}"
            if form == "onnx" and (source.format == "onnx" or _base(one) in self._steps):
                targets[_file(one)] = {"graph": graph, "precision": precision, "opset": opset, "ir": ir, "slim": one.slim}
        ports = _ports(source)
        if source.format != "onnx":
            # A converted graph has the declared names already.
            ports = {side: [{**port, "called": port["name"]} for port in ports[side]] for side in ports}
        if targets:
            try:
                await self._convert(
                    workspace, "onnx_variants", {**ports, "calibration": _calibration(read), "targets": targets}, (0.7, 1.0)
                )
            except ModelRejected as rejected:
                self._why |= dict.fromkeys(targets, f"{rejected.reason}: {rejected.detail}")

    async def _convert(
        self, workspace: Workspace, function: str, job: Mapping[str, Any], stretch: tuple[float, float], also: tuple[str, ...] = ()
    ) -> None:
        start, end = stretch
        targets = list(job["targets"])
        shown = [f"ONNX (opset {one[1:].partition('.')[0]})" if one.startswith("_") else one.rpartition(".")[0] for one in targets]
        self._progress.say(f"starting the conversion to {', '.join(shown)}", start)

        def tell(line: str) -> None:
            self._progress.say(line, start)

        on_step = self._progress.steps(STEPS, start, end)
        files = {file: file for file in targets}
        steps, why = await self._conversions.convert(workspace, function, job, targets=files, also=also, on_step=on_step, tell=tell)
        self._steps |= steps
        self._why |= why

    async def _gather(self, workspace: Workspace, one: Wanted, read: SourceAnswer, prepared: Prepared) -> Variant:
        """Keep the graph of a variant. Raises `ModelRejected` when it could not be made."""
        (form, precision), file = KINDS[one.kind], _file(one)
        sources = tuple(source.sha256 for source in self._source_files.files)
        if file in self._steps:
            graph = await self._files.keep(workspace.path(file), one.graph_path, "graph")
            steps = (*self._steps.get(_base(one), ()), *self._steps[file]) if form == "onnx" else tuple(self._steps[file])
            every = (*prepared.steps, *steps)
            return Variant(one.name, graph, (), one.required, precision, sources, every, wants_ort=one.kind == "ort")
        if (form, precision, read.source.format) == ("tflite", "fp32", "tflite") and not _is_renamed(read.source):
            graph = await self._files.keep(workspace.path(f"source/{read.main}"), one.graph_path, "graph")
            return Variant(one.name, graph, (), one.required, precision, sources)
        why = self._why.get(file) or self._why.get(_base(one))
        if why is None:
            why = f"a source of the format {read.source.format} cannot become {one.kind}; push the SavedModel or GraphDef it was made from"
        raise ModelRejected(Reason.CONVERSION_FAILED, f"The variant {one.name} could not be made: {why}.")


def _file(one: Wanted) -> str:
    return f"{one.name}.{KINDS[one.kind][0]}"


def _base(one: Wanted) -> str:
    """Name the graph that ONNX variants of one opset share. No variant's name begins like that."""
    return f"_{PROFILES[one.profile][0]}.onnx"


def _calibration(read: SourceAnswer) -> str | None:
    return "in/calibration.npz" if read.calibration else None


def _is_renamed(source: Source) -> bool:
    return any(port.called != port.tensor.name for port in (*source.inputs, *source.outputs))


def _ports(source: Source) -> dict[str, list[dict[str, Any]]]:
    return {
        side: [{"called": port.called, **tensor_to_json(port.tensor)} for port in ports]
        for side, ports in (("inputs", source.inputs), ("outputs", source.outputs))
    }


def _tensors(tensors: Sequence[Tensor] | None) -> list[dict[str, Any]] | None:
    return None if tensors is None else [tensor_to_json(tensor) for tensor in tensors]
