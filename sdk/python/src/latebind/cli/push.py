"""`latebind push`: upload, declare and commit a version in one go, from flags or from a latebind.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

import latebind
from latebind._declaration import (
    PROFILES,
    EvaluationSet,
    LocalFile,
    LocalSource,
    LocalVariant,
    Push,
    WantedVariant,
    parse_default,
    parse_file,
    parse_param,
    parse_tensor,
    parse_variant,
    parse_wanted,
    read_document,
    with_file_params,
)
from latebind.cli._errors import CommandError, JobFailed
from latebind.cli._output import Output
from latebind.cli._report import show_report
from latebind.cli._state import AsJson, begin
from latebind.cli.jobs import follow, show_packages

_DECLARATION = "latebind.yaml"
_SAVED_MODEL = "saved_model.pb"
#: What is never a variant by itself, but can be made into some.
_SOURCES = (".pb", ".zip", ".tar", ".tar.gz", ".tgz", ".skops", ".ubj", ".json", ".txt")
#: Of those, what may as well be a file beside the model.
_UNCLEAR = (".json", ".txt")


def push(
    ctx: typer.Context,
    *,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Model files, one variant each; with --variants the source: a SavedModel folder, or a file and its data files; "
            "or a latebind.yaml, or its folder.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id; created when it is new.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="NAME=FILE[,DATAFILE…] or FILE; in order of preference.")] = None,
    variants: Annotated[
        str | None, typer.Option(help="What to make of the source, in order of preference: onnx-fp32,onnx-int8,tflite-fp32 …")
    ] = None,
    required: Annotated[str | None, typer.Option(help="Those of --variants without which the version fails.")] = None,
    profile: Annotated[str | None, typer.Option(help="Of ONNX variants: portable (opset 15, IR 8) or modern (opset 18, IR 10).")] = None,
    source_name: Annotated[
        list[str] | None, typer.Option("--source-name", help="NAME=NAME_IN_SOURCE of an input or output, where they differ.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="An .npz with samples of the inputs: for int8, and to compare variants on.")
    ] = None,
    evaluate: Annotated[Path | None, typer.Option(help="An .npz with inputs and labels, or expected outputs.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="No variant below this on --evaluate is served.")] = None,
    evaluate_output: Annotated[str | None, typer.Option(help="The output that the labels belong to, when there are several.")] = None,
    aux: Annotated[list[str] | None, typer.Option(help="Auxiliary file: FILE, or PATH_IN_PACKAGE=FILE.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="NAME:TYPE=VALUE, such as S:int=13 or labels:file=coco.labels.")
    ] = None,
    default: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: what stands in for a parameter in versions that lack it (contract additive).")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="NAME:DTYPE[SIZES], such as image:float32[1,416,416,3]; ? is open.")
    ] = None,
    outputs: Annotated[list[str] | None, typer.Option("--output", help="As --input.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="ram_mb=512, abi=arm64-v8a, accelerators=gpu,npu.")] = None,
    rtol: Annotated[float | None, typer.Option(min=0, help="Relative tolerance of the golden test.")] = None,
    atol: Annotated[float | None, typer.Option(min=0, help="Absolute tolerance of the golden test.")] = None,
    golden_input: Annotated[
        Path | None, typer.Option(help="An .npz with the input of the golden test, for models that run on few inputs; it goes to devices.")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Point this alias at the version once it is ready.")] = None,
    notes: Annotated[str | None, typer.Option(help="What is new.")] = None,
    description: Annotated[str | None, typer.Option(help="Of the model, when it is new.")] = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Wait until it is packaged.")] = True,
    as_json: AsJson = False,
) -> None:
    """Push a version: upload its files, declare them, commit, and wait until it is packaged.

    [bold]latebind push model.onnx --model digits --param classes:int=10 --param labels:file=labels.txt --alias stable[/bold]

    [bold]latebind push saved_model/ --model digits --variants onnx-fp32,onnx-int8,tflite-fp32 --calibrate samples.npz[/bold]
    """
    base, files = _base(files or [])
    wanted = _wanted(variants, required, profile)
    if not wanted and (sources := [path for path in files if path.is_dir() or path.name.endswith(_SOURCES)]):
        beside = f"; a file that only belongs to the model: --aux {sources[0]}" if sources[0].name.endswith(_UNCLEAR) else ""
        raise CommandError(f"{sources[0]} runs on no device as it is: say what to make of it", hint=f"add --variants onnx-fp32{beside}")
    if wanted and files:
        base, files = replace(base, source=LocalSource.at(*files)), []
    if source_name and base.source is not None:
        base = replace(base, source=replace(base.source, names={**base.source.names, **dict(_pair(text) for text in source_name)}))
    params = {**base.params, **dict(parse_param(text) for text in param or [])}
    given = replace(
        base,
        model_id=model or base.model_id,
        variants=(
            *(base.variants if not wanted else ()),
            *wanted,
            *(parse_variant(text) for text in variant or []),
            *(LocalVariant(None, (parse_file(str(path)),)) for path in files),
        ),
        files=(*base.files, *(parse_file(text) for text in aux or [])),
        params={**params, **dict(parse_default(text, params) for text in default or [])},
        inputs=tuple(parse_tensor(text) for text in inputs or []) or base.inputs,
        outputs=tuple(parse_tensor(text) for text in outputs or []) or base.outputs,
        requires={**base.requires, **dict(_requirement(text) for text in require or [])},
        calibration=base.calibration if calibrate is None else LocalFile.at(calibrate),
        evaluation=_evaluation(base.evaluation, evaluate, min_accuracy, evaluate_output),
        golden_input=base.golden_input if golden_input is None else LocalFile.at(golden_input),
        golden={**base.golden, **{name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}},
        aliases=(*base.aliases, *(alias or [])),
        notes=base.notes if notes is None else notes,
        description=base.description if description is None else description,
    )
    if any(isinstance(one, WantedVariant) for one in given.variants) and given.source is None:
        raise CommandError(
            "there is no source to make the variants of", hint="latebind push saved_model/ --model NAME --variants onnx-fp32"
        )
    if not given.model_id or not given.variants:
        raise CommandError(
            "a push needs a model id and at least one model file", hint="latebind push model.onnx --model NAME, or write a latebind.yaml"
        )
    if given.aliases and not watch:
        raise CommandError("an alias can only point at a version that is packaged", hint="leave --no-watch out, or set the alias later")
    client, out = begin(ctx, as_json)
    with client:
        send(client, out, with_file_params(given), watch=watch)


def send(client: latebind.Client, out: Output, plan: Push, *, watch: bool) -> None:
    """Push a plan with a progress bar, wait until it is packaged, move its aliases, and show what came of it."""
    sizes = {path: path.stat().st_size for path in plan.sources}
    there: dict[Path, int] = {}
    with out.transfer(f"uploading {len(sizes)} file{'s' if len(sizes) > 1 else ''}", sum(sizes.values())) as progress:

        def sent(path: Path, done: int) -> None:
            there[path] = done
            progress(sum(there.values()))

        pushed = client.push(plan, progress=sent)
    answer: dict[str, Any] = {"model_id": pushed.model_id, "version": pushed.version, "job_id": pushed.job_id, "state": "packaging"}
    if not watch:
        out.emit(answer, lambda: out.done(f"{pushed.model_id} v{pushed.version} is being packaged: latebind jobs watch {pushed.job_id}"))
        return
    try:
        job = follow(client, out, pushed.job_id, f"{pushed.model_id} v{pushed.version}", lines=plan.source is not None)
    except JobFailed:
        if not out.json_mode:
            show_report(out, client.models.version(pushed.model_id, pushed.version))
        raise
    version = client.models.wait_until_packaged(pushed.model_id, pushed.version)
    for name in plan.aliases:
        client.models.set_alias(pushed.model_id, name, pushed.version, why="latebind push")
    answer |= {"state": version["state"], "packages": version["packages"], "aliases": list(plan.aliases)}

    def show() -> None:
        show_packages(out, job)
        show_report(out, version)
        for name in plan.aliases:
            out.done(f"{pushed.model_id} {name} → v{pushed.version}")

    out.emit(answer, show)


def _wanted(variants: str | None, required: str | None, profile: str | None) -> tuple[WantedVariant, ...]:
    """What --variants, --required and --profile say together."""
    if profile is not None and profile not in PROFILES:
        raise CommandError(f"{profile!r} is no profile", hint=f"--profile {' or '.join(PROFILES)}")
    wanted = [parse_wanted(text) for text in (variants or "").split(",") if text.strip()]
    must = {text.strip() for text in (required or "").split(",") if text.strip()}
    unknown = sorted(must - {one.name or one.kind for one in wanted})
    if unknown:
        raise CommandError(f"{unknown[0]} is required, but not among --variants", hint="name it there too")
    return tuple(
        replace(one, required=(one.name or one.kind) in must, profile=None if one.kind.startswith("tflite") else profile) for one in wanted
    )


def _evaluation(base: EvaluationSet | None, file: Path | None, floor: float | None, output: str | None) -> EvaluationSet | None:
    given = base if file is None else EvaluationSet(LocalFile.at(file))
    if given is None:
        if floor is not None or output is not None:
            raise CommandError("--min-accuracy and --evaluate-output need an evaluation set", hint="add --evaluate test.npz")
        return None
    return replace(given, min_accuracy=given.min_accuracy if floor is None else floor, output=given.output if output is None else output)


def _pair(text: str) -> tuple[str, str]:
    ours, separator, theirs = text.partition("=")
    if not separator or not ours or not theirs:
        raise CommandError(f"{text!r} is no pair of names", hint="--source-name image=Placeholder:0")
    return ours, theirs


def _base(files: list[Path]) -> tuple[Push, list[Path]]:
    """What a latebind.yaml says, and the files that were named beside it. A SavedModel folder is a source, not a declaration."""
    folders = [path for path in files if path.is_dir() and not (path / _SAVED_MODEL).is_file()]
    declared = [path for path in files if path.suffix in {".yaml", ".yml"}] + folders
    rest = [path for path in files if path not in declared]
    if len(declared) > 1:
        raise CommandError("only one latebind.yaml at a time", hint="push them one after the other")
    if not declared:
        return Push("", ()), rest
    path = declared[0] / _DECLARATION if declared[0].is_dir() else declared[0]
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}", hint="docs/cli.md shows a latebind.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not YAML: {error}", hint="docs/cli.md shows a latebind.yaml") from error
    return read_document(document, path.parent), rest


def _requirement(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise CommandError(f"{text!r} is no requirement", hint="write ram_mb=512, abi=arm64-v8a or accelerators=gpu")
    if name == "ram_mb":
        return name, int(value) if value.isdigit() else value
    return name, value.split(",")
