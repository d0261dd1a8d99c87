"""`latebind bundle`: packages in one signed file, for devices that never see the server (docs/interop.md)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import latebind
from latebind._bundles import BundledPackage, compact, write_bundle
from latebind._files import write_json
from latebind.cli._errors import CommandError
from latebind.cli._explain import context_of
from latebind.cli._output import size_text
from latebind.cli._state import AsJson, begin
from latebind.cli.export import version_of, whole_packages
from latebind.errors import NotFound

_COLLECTION = re.compile(r"c_[a-z0-9]{8}")


def bundle(
    ctx: typer.Context,
    *,
    names: Annotated[list[str], typer.Argument(metavar="COLLECTION|MODEL[@VERSION|:ALIAS]...", help="What devices are to open.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The bundle to write.")],
    kind: Annotated[list[str] | None, typer.Option(help="A built-in kind of device that a collection is for; may be repeated.")] = None,
    context: Annotated[list[Path] | None, typer.Option(help="A device context as JSON that a collection is for; may be repeated.")] = None,
    trust: Annotated[Path | None, typer.Option(help="Also write the account's public keys here: what the app must bring along.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a signed bundle: what collections give to devices of these kinds (without any: this machine), or versions of models.

    Devices read it with the server out of reach. The keys that they check it with never come from the bundle itself.
    """
    client, out = begin(ctx, as_json)
    with client, tempfile.TemporaryDirectory(prefix="latebind-") as folder:
        collections, models = _wanted(client, names)
        contexts = [context_of(one, None) for one in kind or []] + [context_of(None, path) for path in context or []]
        if collections and not contexts:
            contexts = [context_of(None, None)]
        signed = client.bundles.sign(collections=[{"collection": one, "contexts": contexts} for one in collections], models=models)
        packages = _packages(client, signed["packages"])
        files = {file["sha256"]: file for package in packages for file in package["files"]}
        total = sum(file["size"] for file in files.values())
        there = 0
        with out.transfer(f"fetching {len(files)} files", total) as progress:
            for sha256, file in files.items():
                client.models.download(file, Path(folder) / sha256)
                there += file["size"]
                progress(there)
        if trust is not None:
            write_json(trust, _trust(client))
        with out.transfer(f"writing {output.name}", total) as progress:
            size = write_bundle(
                output,
                signed["envelope"],
                [_bundled(one) for one in packages],
                lambda one: (Path(folder) / one).open("rb"),
                progress=progress,
            )
    answer = {
        "file": str(output),
        "size": size,
        "names": [*collections, *(one["model_id"] for one in models)],
        "packages": signed["packages"],
    }
    if trust is not None:
        answer["trust"] = str(trust)

    def show() -> None:
        for one in signed["packages"]:
            out.say(f"{one['model_id']} v{one['version']} {one['variant']}  {size_text(one['size'])}")
        out.done(f"{output} has {len(packages)} package{'s' if len(packages) > 1 else ''} ({size_text(size)})")
        out.note(f"next, on the device: latebind.Manager(bundle={str(output)!r}, trust=…) opens {', '.join(answer['names'])}")

    out.emit(answer, show)


def _wanted(client: latebind.Client, names: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """What the names are: collections, else models with a version or an alias."""
    collections: list[str] = []
    models: list[dict[str, Any]] = []
    for name in names:
        if _COLLECTION.fullmatch(name):
            try:
                client.collections.get(name)
            except NotFound:
                pass
            else:
                collections.append(name)
                continue
        model_id, colon, alias = name.partition(":")
        if colon and "@" not in name:
            models.append({"model_id": model_id, "alias": alias})
        else:
            model_id, version = version_of(client, name)
            models.append({"model_id": model_id, "version": version})
    return collections, models


def _packages(client: latebind.Client, listed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The packages whole, in the order in which they were signed."""
    versions = dict.fromkeys((one["model_id"], one["version"]) for one in listed)
    found = {package["digest"]: package for model_id, version in versions for package in whole_packages(client, model_id, version)}
    missing = [one["digest"][:12] for one in listed if one["digest"] not in found]
    if missing:
        raise CommandError(f"the registry does not have the packages {', '.join(missing)}", hint="repeat the command in a moment")
    return [found[one["digest"]] for one in listed]


def _bundled(package: dict[str, Any]) -> BundledPackage:
    files = [(file["sha256"], file["size"]) for file in package["manifest"]["files"]]
    return BundledPackage(package["digest"], package["manifest_bytes"], compact(package["signature"]), files)


def _trust(client: latebind.Client) -> dict[str, Any]:
    """The account's public keys as an app brings them along."""
    account = client.whoami()["account"]
    keys = list(client.accounts.signing_keys(account))

    def of(role: str) -> list[dict[str, str]]:
        return [{"key_id": key["key_id"], "public_key": key["public_key"]} for key in keys if key["role"] == role]

    return {"account": account, "package_keys": of("package"), "assignment_keys": of("assignment")}
