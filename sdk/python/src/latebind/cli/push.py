"""`latebind push`: upload, declare and commit a version in one go, from flags or from a latebind.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

import latebind
from latebind._declaration import (
    LocalVariant,
    Push,
    parse_default,
    parse_file,
    parse_param,
    parse_tensor,
    parse_variant,
    read_document,
    with_file_params,
)
from latebind.cli._errors import CommandError
from latebind.cli._output import Output
from latebind.cli._state import AsJson, begin
from latebind.cli.jobs import follow, show_packages

_DECLARATION = "latebind.yaml"


def push(
    ctx: typer.Context,
    *,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Model files, one variant each; or a latebind.yaml, or its folder.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id; created when it is new.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="NAME=FILE[,DATAFILE…] or FILE; in order of preference.")] = None,
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
    alias: Annotated[list[str] | None, typer.Option(help="Point this alias at the version once it is ready.")] = None,
    notes: Annotated[str | None, typer.Option(help="What is new.")] = None,
    description: Annotated[str | None, typer.Option(help="Of the model, when it is new.")] = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Wait until it is packaged.")] = True,
    as_json: AsJson = False,
) -> None:
    """Push a version: upload its files, declare them, commit, and wait until it is packaged.

    [bold]latebind push model.onnx --model digits --param classes:int=10 --param labels:file=labels.txt --alias stable[/bold]
    """
    base, files = _base(files or [])
    params = {**base.params, **dict(parse_param(text) for text in param or [])}
    given = replace(
        base,
        model_id=model or base.model_id,
        variants=(
            *base.variants,
            *(parse_variant(text) for text in variant or []),
            *(LocalVariant(None, (parse_file(str(path)),)) for path in files),
        ),
        files=(*base.files, *(parse_file(text) for text in aux or [])),
        params={**params, **dict(parse_default(text, params) for text in default or [])},
        inputs=tuple(parse_tensor(text) for text in inputs or []) or base.inputs,
        outputs=tuple(parse_tensor(text) for text in outputs or []) or base.outputs,
        requires={**base.requires, **dict(_requirement(text) for text in require or [])},
        golden={**base.golden, **{name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}},
        aliases=(*base.aliases, *(alias or [])),
        notes=base.notes if notes is None else notes,
        description=base.description if description is None else description,
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
    job = follow(client, out, pushed.job_id, f"{pushed.model_id} v{pushed.version}")
    version = client.models.wait_until_packaged(pushed.model_id, pushed.version)
    for name in plan.aliases:
        client.models.set_alias(pushed.model_id, name, pushed.version, why="latebind push")
    answer |= {"state": version["state"], "packages": version["packages"], "aliases": list(plan.aliases)}

    def show() -> None:
        show_packages(out, job)
        for name in plan.aliases:
            out.done(f"{pushed.model_id} {name} → v{pushed.version}")

    out.emit(answer, show)


def _base(files: list[Path]) -> tuple[Push, list[Path]]:
    """What a latebind.yaml says, and the files that were named beside it."""
    declared = [path for path in files if path.suffix in {".yaml", ".yml"} or path.is_dir()]
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
