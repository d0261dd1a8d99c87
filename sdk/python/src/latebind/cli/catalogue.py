"""`latebind catalogue`: pre-packaged models that an account can take over, and how to make such a catalogue."""

from __future__ import annotations

import base64
import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

import latebind
from latebind._files import write_json, write_whole
from latebind.cli._errors import CommandError
from latebind.cli._output import Output
from latebind.cli._state import AsJson, Limit, begin
from latebind.cli.jobs import follow, show_packages

app = typer.Typer()

INDEX = "catalogue.json"
KEYS = "keys.json"


@app.command("list")
def list_entries(
    ctx: typer.Context,
    *,
    search: Annotated[str, typer.Argument(help="Text in name, title or description.")] = "",
    limit: Limit = 200,
    as_json: AsJson = False,
) -> None:
    """List models that can be taken over."""
    client, out = begin(ctx, as_json)
    columns = {"entry": "id", "name": "name", "title": "title", "license": "license", "description": "description"}
    with client:
        out.items(
            islice(client.catalogue.list(search=search), limit), columns, "the catalogue is empty: docs/catalogue.md says how to fill it"
        )


@app.command("take")
def take(
    ctx: typer.Context,
    *,
    entry: Annotated[str, typer.Argument(metavar="ENTRY", help="Entry id, as listed.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Under which id; without it the origin's.")] = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Wait until it is packaged.")] = True,
    as_json: AsJson = False,
) -> None:
    """Take a model over: its files become a version of this account, packaged and signed anew."""
    client, out = begin(ctx, as_json)
    with client:
        taken = client.catalogue.take(entry, model_id=model)
        if not watch:
            out.emit(
                taken, lambda: out.done(f"{taken['model_id']} v{taken['version']} is being packaged: latebind jobs watch {taken['job_id']}")
            )
            return
        job = follow(client, out, taken["job_id"], f"{taken['model_id']} v{taken['version']}")
        version = client.models.wait_until_packaged(taken["model_id"], taken["version"])
    out.emit({**taken, "state": version["state"], "packages": version["packages"]}, lambda: show_packages(out, job))


@app.command("export")
def export(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model id.")],
    version: Annotated[int, typer.Argument(min=1, metavar="VERSION")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The catalogue; made when it is not there, else added to.")],
    name: Annotated[str | None, typer.Option(help="Name of the entry; without it the model id.")] = None,
    title: Annotated[str, typer.Option(help="Title for people.")] = "",
    license_name: Annotated[str, typer.Option("--license", help="SPDX identifier, such as Apache-2.0.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write a version's signed packages into a catalogue folder (docs/catalogue.md), with the keys that its source needs."""
    client, out = begin(ctx, as_json)
    with client:
        found = client.models.get(model)
        packages = client.models.packages(model, version)
        if not packages:
            raise CommandError(
                f"{model} v{version} has no packages", hint=f"latebind model show {model} {version} says in which state it is"
            )
        account = packages[0]["manifest"]["account"]
        keys: list[dict[str, Any]] = [key for key in client.accounts.signing_keys(account) if key["role"] == "package"]
        listed = [_write_package(client, out, package, folder, f"packages/{package['digest']}") for package in packages]
    entry = {
        "name": name or model,
        "title": title,
        "description": found["description"],
        "license": license_name,
        "labels": found["labels"],
        "packages": listed,
    }
    _add_entry(folder, entry)
    _add_keys(folder, keys)

    def show() -> None:
        out.done(f"{entry['name']} is in {folder} with {len(listed)} package{'s' if len(listed) > 1 else ''}")
        out.note(f"next, as the operator: latebind catalogue add-source file:{folder.resolve()} --keys {folder / KEYS}")

    out.emit({"folder": str(folder), "entry": entry, "keys": keys}, show)


@app.command("add-source")
def add_source(
    ctx: typer.Context,
    *,
    location: Annotated[str, typer.Argument(help="file:/folder, http://… or https://… with a catalogue.json in it.")],
    keys: Annotated[Path, typer.Option(help="JSON file with the keys to believe: a list of {key_id, public_key}.")],
    as_json: AsJson = False,
) -> None:
    """Offer a catalogue to all accounts (operator)."""
    client, out = begin(ctx, as_json)
    with client:
        source = client.catalogue.add_source(location, _read_json(keys))
    out.emit(source, lambda: out.done(f"{location} is source {source['id']}; accounts see it with latebind catalogue list"))


@app.command("sources")
def sources(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the sources of the catalogue (operator)."""
    client, out = begin(ctx, as_json)
    columns = {"source": "id", "location": "location", "title": "title", "fetched": "fetched_at", "problem": "problem"}
    with client:
        out.items(client.catalogue.sources(), columns, "no sources yet: latebind catalogue add-source")


@app.command("remove-source")
def remove_source(
    ctx: typer.Context, *, source: Annotated[str, typer.Argument(metavar="SOURCE", help="Source id.")], as_json: AsJson = False
) -> None:
    """Forget a source (operator). What accounts took over from it stays."""
    client, out = begin(ctx, as_json)
    with client:
        client.catalogue.remove_source(source)
    out.emit({"id": source}, lambda: out.done(f"{source} is forgotten"))


def _write_package(client: latebind.Client, out: Output, package: dict[str, Any], folder: Path, path: str) -> dict[str, str]:
    """Write manifest, signature and files of one package; its line of the index."""
    root = folder / path
    with out.steps(f"{package['variant']}") as step:
        for number, file in enumerate(package["files"]):
            step(f"{package['variant']}: {file['path']}", number / len(package["files"]))
            target = root / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            client.models.download(file, target)
    write_whole(root / "manifest.json", base64.b64decode(package["manifest_base64"]))
    write_whole(root / "signature.json", json.dumps(package["signature"]).encode())
    return {"path": path, "digest": package["digest"]}


def _add_entry(folder: Path, entry: dict[str, Any]) -> None:
    """Put the entry into the index, in the place of one of the same name."""
    path = folder / INDEX
    index: dict[str, Any] = _read_json(path) if path.exists() else {"catalogue_version": 1, "title": "", "entries": []}
    entries = [one for one in index["entries"] if one["name"] != entry["name"]]
    write_json(path, {**index, "entries": [*entries, entry]})


def _add_keys(folder: Path, keys: list[dict[str, Any]]) -> None:
    path = folder / KEYS
    stored: list[dict[str, Any]] = _read_json(path) if path.exists() else []
    every: list[dict[str, Any]] = [*stored, *keys]
    known = {key["key_id"]: {"key_id": key["key_id"], "public_key": key["public_key"]} for key in every}
    write_json(path, list(known.values()))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} cannot be read: {error}", hint="latebind catalogue export writes it") from error
