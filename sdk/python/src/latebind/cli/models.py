"""`latebind model` and `latebind alias`: what there is to serve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import typer

from latebind.cli._errors import CommandError, breach_text
from latebind.cli._output import Columns, Output, shape_text, short, size_text
from latebind.cli._state import AsJson, Limit, begin

model_app = typer.Typer()
alias_app = typer.Typer()

_CONTRACT = "What new versions may change of the parameters: nothing (frozen), or add some with a default (additive)."


class ContractLevel(StrEnum):
    """Levels of docs/contract.md."""

    FROZEN = "frozen"
    ADDITIVE = "additive"


Contract = Annotated[ContractLevel, typer.Option(help=_CONTRACT)]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Model id.")]
Version = Annotated[int, typer.Argument(min=1, metavar="VERSION")]


@model_app.command("create")
def create(
    ctx: typer.Context,
    *,
    model: ModelId,
    description: Annotated[str, typer.Option(help="What it does.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    contract: Contract = ContractLevel.FROZEN,
    as_json: AsJson = False,
) -> None:
    """Create a model. (`latebind push` does this by itself.)"""
    client, out = begin(ctx, as_json)
    labels = dict(pair_of(text) for text in label or [])
    with client:
        made = client.models.create(model, description=description, labels=labels, contract_level=contract.value)
    out.emit(made, lambda: out.done(f"model {model} is there; next: latebind push FILE --model {model}"))


@model_app.command("set")
def set_model(
    ctx: typer.Context,
    *,
    model: ModelId,
    description: Annotated[str | None, typer.Option(help="What it does.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated, and replaces all labels.")] = None,
    contract: Annotated[ContractLevel | None, typer.Option(help=_CONTRACT)] = None,
    as_json: AsJson = False,
) -> None:
    """Change a model's description, labels or contract level; what is left out stays."""
    if description is None and label is None and contract is None:
        raise CommandError("nothing is to be set", hint=f"latebind model set {model} --contract additive")
    client, out = begin(ctx, as_json)
    labels = None if label is None else dict(pair_of(text) for text in label)
    level = None if contract is None else contract.value
    with client:
        changed = client.models.change(model, description=description, labels=labels, contract_level=level)
    out.emit(changed, lambda: _show_model(out, changed))


@model_app.command("list")
def list_models(
    ctx: typer.Context,
    *,
    search: Annotated[str, typer.Argument(help="Text in id, description or labels.")] = "",
    limit: Limit = 200,
    as_json: AsJson = False,
) -> None:
    """List models."""
    client, out = begin(ctx, as_json)
    columns = {"model": "model_id", "last version": "last_version", "description": "description", "updated": "updated_at"}
    with client:
        out.items(islice(client.models.list(search=search), limit), columns, "no models yet: latebind push FILE --model NAME")


@model_app.command("show")
def show(
    ctx: typer.Context,
    *,
    model: ModelId,
    version: Annotated[int | None, typer.Argument(min=1, help="A version; without it the model itself.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model with its aliases and parameter contract, or one version with its packages."""
    client, out = begin(ctx, as_json)
    with client:
        if version is not None:
            found = client.models.version(model, version)
            packages = client.models.packages(model, version) if found["packages"] else []
            out.emit({**found, "packages": packages or found["packages"]}, lambda: _show_version(out, found, packages))
            return
        whole = client.models.get(model)
    out.emit(whole, lambda: _show_model(out, whole))


def _show_model(out: Output, model: dict[str, Any]) -> None:
    defaults: Mapping[str, Any] = model["contract_defaults"]
    stands_in = {name: f" (where it lacks: {json.dumps(value)})" for name, value in defaults.items()}
    contract = ", ".join(f"{name}: {kind}{stands_in.get(name, '')}" for name, kind in (model["contract"] or {}).items())
    tensors = model["contract_tensors"] or {}
    aliases = ", ".join(f"{name} → v{version}" for name, version in model["aliases"].items())
    facts = {
        "model": model["model_id"],
        "description": model["description"] or None,
        "labels": model["labels"] or None,
        "last version": model["last_version"],
        "aliases": aliases or None,
        "contract": f"{model['contract_level']}, set {model['contract_set_at']} by {model['contract_set_by']}"
        if model["contract_set_at"]
        else model["contract_level"],
        "parameters": contract or None,
        "inputs": "; ".join(_promise(one) for one in tensors.get("inputs") or []) or None,
        "outputs": "; ".join(_promise(one) for one in tensors.get("outputs") or []) or None,
        "created": model["created_at"],
    }
    out.facts(facts)


def _promise(tensor: Mapping[str, Any]) -> str:
    """What the contract says of a tensor: `image float32 [N, ·, ·, ·]`."""
    if tensor["rank"] is None:
        return f"{tensor['name']} {tensor['dtype']}"
    return f"{tensor['name']} {tensor['dtype']} [{', '.join(tensor['dimensions'].get(str(at), '·') for at in range(tensor['rank']))}]"


def _show_version(out: Output, version: dict[str, Any], packages: Sequence[dict[str, Any]]) -> None:
    problem = version["problem"]
    facts = {
        "version": f"{version['model_id']} v{version['version']}",
        "state": version["state"],
        "problem": f"{problem['code']}: {problem['detail']}" if problem else None,
        "notes": version["notes"] or None,
        "committed": version["committed_at"],
        "job": version["job_id"],
    }
    out.facts(facts)
    for name, param in version["declaration"].get("params", {}).items():
        out.say(f"  {name}: {param['type']} = {param['value']}")
    for package in packages:
        manifest = package["manifest"]
        engine = manifest["engine"]
        out.say(f"\n{package['variant']}  {size_text(package['size'])}  {short(package['digest'])}", "bold")
        needs = [f"{engine['name']} ≥ {engine.get('min_version', '?')}"]
        needs += [f"{name} {value}" for name, value in manifest.get("requires", {}).items()]
        out.facts(
            {
                "  needs": ", ".join(needs),
                "  inputs": "; ".join(shape_text(tensor) for tensor in manifest["inputs"]),
                "  outputs": "; ".join(shape_text(tensor) for tensor in manifest["outputs"]),
                "  files": ", ".join(f"{file['path']} ({size_text(file['size'])})" for file in manifest["files"]),
            }
        )


@model_app.command("versions")
def versions(ctx: typer.Context, model: ModelId, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List the versions of a model, the newest first."""
    client, out = begin(ctx, as_json)
    columns: Columns = {
        "version": "version",
        "state": "state",
        "packages": lambda version: ", ".join(f"{one['variant']} {size_text(one['size'])}" for one in version["packages"]),
        "problem": lambda version: version["problem"]["code"] if version["problem"] else None,
        "notes": "notes",
        "created": "created_at",
    }
    with client:
        out.items(islice(client.models.versions(model), limit), columns, f"no versions yet: latebind push FILE --model {model}")


@model_app.command("compare")
def compare(ctx: typer.Context, model: ModelId, version: Version, to: Version, as_json: AsJson = False) -> None:
    """Say what differs between two versions (parameters, tensors, engines, operators, files, sizes), and what of it breaks the contract."""
    client, out = begin(ctx, as_json)
    with client:
        found = client.models.compare(model, version, to)

    def show() -> None:
        rows = [[one["area"], one["name"], one["change"], one["before"], one["after"]] for one in found["differences"]]
        if rows:
            out.table(["area", "name", "change", f"v{version}", f"v{to}"], rows)
        else:
            out.say(f"v{version} and v{to} of {model} do not differ")
        for one in found["breaches"]:
            out.warn(f"breaks the contract ({found['contract_level']}): {breach_text(one)}")
        out.note(f"{len(found['same'])} things are the same (--json lists them)")

    out.emit(found, show)


@model_app.command("archive")
def archive(
    ctx: typer.Context,
    *,
    model: ModelId,
    version: Version,
    force: Annotated[bool, typer.Option("--force", help="Remove aliases that point at it, too.")] = False,
    why: Annotated[str, typer.Option(help="Kept in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Take a version out of service. Devices that run it go on; no device gets it any more."""
    client, out = begin(ctx, as_json)
    with client:
        archived = client.models.archive(model, version, force=force, why=why)
    out.emit(archived, lambda: out.done(f"{model} v{version} is archived"))


@alias_app.command("set")
def set_alias(
    ctx: typer.Context,
    *,
    model: ModelId,
    name: Annotated[str, typer.Argument(help="Name, such as stable.")],
    version: Version,
    why: Annotated[str, typer.Option(help="Kept in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version. Collections that follow it serve that version from now on."""
    client, out = begin(ctx, as_json)
    with client:
        alias = client.models.set_alias(model, name, version, why=why)
    out.emit(alias, lambda: out.done(f"{model} {name} → v{version}"))


@alias_app.command("remove")
def remove_alias(
    ctx: typer.Context,
    *,
    model: ModelId,
    name: str,
    why: Annotated[str, typer.Option(help="Kept in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Remove an alias; its history stays."""
    client, out = begin(ctx, as_json)
    with client:
        client.models.delete_alias(model, name, why=why)
    out.emit({"model_id": model, "name": name, "version": None}, lambda: out.done(f"{model} {name} is gone"))


@alias_app.command("list")
def list_aliases(ctx: typer.Context, model: ModelId, as_json: AsJson = False) -> None:
    """List the aliases of a model."""
    client, out = begin(ctx, as_json)
    columns = {"alias": "name", "version": "version", "moved": "moved_at", "by": "moved_by", "why": "why"}
    with client:
        out.items(client.models.aliases(model), columns, f"no aliases yet: latebind alias set {model} stable VERSION")


@alias_app.command("history")
def alias_history(ctx: typer.Context, model: ModelId, name: str, limit: Limit = 50, as_json: AsJson = False) -> None:
    """Show every move of an alias, the newest first."""
    client, out = begin(ctx, as_json)
    columns = {"moved": "moved_at", "from": "from_version", "to": "to_version", "by": "moved_by", "why": "why"}
    with client:
        out.items(islice(client.models.alias_history(model, name), limit), columns, "it was never moved")


def pair_of(text: str) -> tuple[str, str]:
    """KEY=VALUE as a pair."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise CommandError(f"{text!r} is no label", hint="write KEY=VALUE")
    return name, value
