"""`latebind import`: a model from MLflow, from the Hugging Face Hub or from a file, with a declaration made of what they say of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from latebind import __version__
from latebind._declaration import Push, parse_file, parse_param, parse_tensor, with_file_params
from latebind._files import sha256_of
from latebind._modelfiles import Unreadable, read_model
from latebind._prefill import Fetched, data_names, overridden, plan
from latebind.cli._errors import CommandError
from latebind.cli._output import Output, shape_text, size_text
from latebind.cli._state import AsJson, begin, state_of
from latebind.cli.models import pair_of
from latebind.cli.push import send

Progress = Callable[[str, int], None]


def import_model(
    ctx: typer.Context,
    *,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="mlflow://HOST/models/NAME/VERSION|ALIAS, hf://OWNER/NAME@REVISION, or a path.")
    ],
    file: Annotated[str | None, typer.Option("--file", help="Which model file of a repository, when there are several.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id; without it made of the source's name.")] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME:TYPE=VALUE; wins over what the source says.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave this proposed parameter out; may be repeated.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="NAME:DTYPE[SIZES]; wins over what the source says.")] = None,
    outputs: Annotated[list[str] | None, typer.Option("--output", help="As --input.")] = None,
    aux: Annotated[list[str] | None, typer.Option(help="Auxiliary file: FILE, or PATH_IN_PACKAGE=FILE.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the model, when it is new.")] = None,
    description: Annotated[str | None, typer.Option(help="Of the model, when it is new.")] = None,
    notes: Annotated[str | None, typer.Option(help="What is new.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Point this alias at the version once it is ready.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the declaration; nothing is uploaded, and no server is needed.")] = False,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Wait until it is packaged.")] = True,
    as_json: AsJson = False,
) -> None:
    """Take a model over from elsewhere, declared by what is said of it there. Flags win; nothing that could run code is loaded."""
    if alias and not watch:
        raise CommandError("an alias can only point at a version that is packaged", hint="leave --no-watch out, or set the alias later")
    out = state_of(ctx, as_json).output
    with tempfile.TemporaryDirectory(prefix="latebind-") as folder:
        proposal, remarks = _proposal(out, source, file, Path(folder))
        given = overridden(
            _without(proposal, without or []),
            model_id=model,
            params=dict(parse_param(text) for text in param or []),
            inputs=tuple(parse_tensor(text) for text in inputs or []),
            outputs=tuple(parse_tensor(text) for text in outputs or []),
            files=tuple(parse_file(text) for text in aux or []),
            labels=dict(pair_of(text) for text in label or []),
            description=description,
            notes=notes,
            aliases=tuple(alias or []),
        )
        given = with_file_params(given)
        for remark in remarks:
            out.warn(remark)
        if dry_run:
            _show(out, given)
            return
        client, out = begin(ctx, as_json)
        with client:
            send(client, out, given, watch=watch)


def _proposal(out: Output, source: str, file: str | None, folder: Path) -> tuple[Push, list[str]]:
    (folder / "model").mkdir()
    (folder / "inside").mkdir()
    with out.steps(f"fetching {source}") as step:
        seen: dict[str, int] = {}

        def progress(name: str, done: int) -> None:
            seen[name] = done
            step(f"fetching {name} ({size_text(sum(seen.values()))})", None)

        try:
            fetched = _fetch(source, file, folder / "model", progress)
        except Unreadable as error:
            raise CommandError(f"{source}: {error}", hint="fetch it again, or export the model again") from error
    return plan(fetched, folder / "inside", tool_version=__version__)


def _fetch(source: str, file: str | None, folder: Path, progress: Progress) -> Fetched:
    scheme = source.partition("://")[0] if "://" in source else ""
    if scheme in {"mlflow", "mlflow+http", "mlflow+https"}:
        from latebind import _mlflow  # noqa: PLC0415 - only what is asked for is loaded
        from latebind._transport import HttpTransport  # noqa: PLC0415

        transport = HttpTransport()
        try:
            return _mlflow.fetch(source, folder, transport=transport, progress=progress)
        finally:
            transport.close()
    if scheme == "hf":
        from latebind import _hub  # noqa: PLC0415

        return _hub.fetch(source, wanted=file, progress=progress)
    if scheme:
        raise CommandError(f"{scheme}:// is not known here", hint="mlflow://…, hf://…, or a path")
    return _local(Path(source))


def _local(path: Path) -> Fetched:
    """A model file, or a folder with an MLmodel, as `mlflow artifacts download` makes it."""
    mlmodel: Any = {}
    folder, card = path.parent, ""
    if path.is_dir():
        from latebind import _mlflow  # noqa: PLC0415

        folder = path
        if not (path / "MLmodel").is_file():
            raise CommandError(f"{path} has no MLmodel", hint="name the model file itself, or push the folder")
        mlmodel = _mlflow.read_mlmodel(path / "MLmodel")
        path /= _mlflow.onnx_path(mlmodel)
    if path.suffix not in {".onnx", ".tflite"} or not path.is_file():
        raise CommandError(f"{path} is no ONNX or TFLite file that can be read", hint="latebind push takes other sources")
    if (folder / "README.md").is_file():
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    facts = read_model(path)
    try:
        data = [path.parent / name for name in data_names(facts)]
    except ValueError as error:
        raise CommandError(str(error), hint="save the model with its data beside it") from error
    missing = [one.name for one in data if not one.is_file()]
    if missing:
        raise CommandError(f"{path} keeps tensors in {', '.join(missing)}, which is not beside it", hint="copy it there")
    name = folder.name if mlmodel else path.stem
    return Fetched(path, path.name, name, data, facts, card=card, mlmodel=mlmodel)


def _without(push: Push, names: Sequence[str]) -> Push:
    unknown = sorted(set(names) - set(push.params))
    if unknown:
        raise CommandError(f"{', '.join(unknown)} is not proposed", hint="--dry-run shows what is")
    return replace(push, params={name: param for name, param in push.params.items() if name not in names})


def _show(out: Output, push: Push) -> None:
    """What would be declared, with the digests that the files have here."""
    declaration = push.declaration({path: (sha256_of(path), path.stat().st_size) for path in push.sources})
    answer = {"model_id": push.model_id, "description": push.description, "labels": dict(push.labels), "declaration": declaration}

    def show() -> None:
        files = [*(file for variant in declaration["variants"] for file in variant["files"]), *declaration["files"]]
        facts = {
            "model": push.model_id,
            "description": push.description or None,
            "labels": ", ".join(f"{name}={value}" for name, value in push.labels.items()) or None,
            "files": ", ".join(f"{one['path']} ({size_text(one['size'])})" for one in files),
            "parameters": ", ".join(f"{name}:{one['type']}={one['value']}" for name, one in declaration["params"].items()) or None,
            "inputs": "; ".join(shape_text(one) for one in declaration.get("inputs", [])) or "the model's own",
            "outputs": "; ".join(shape_text(one) for one in declaration.get("outputs", [])) or "the model's own",
            "origin": declaration["lineage"]["steps"][0]["options"]["source"],
        }
        out.facts(facts)
        out.note("nothing was uploaded; the same without --dry-run pushes it")

    out.emit(answer, show)
