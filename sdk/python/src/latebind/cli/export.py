"""`latebind export`: a version as an OCI image layout, for registries, Kubernetes volumes and other tools (docs/interop.md)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import latebind
from latebind._oci import tag_of, write_layout
from latebind.cli._errors import CommandError
from latebind.cli._output import size_text
from latebind.cli._state import AsJson, begin

Json = dict[str, Any]


def export(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL[@VERSION|:ALIAS]", help="Without either: the newest ready version.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder that is empty or not there yet.")],
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version's packages as an OCI image layout after CNCF ModelPack, with a Kitfile and a README.md card."""
    client, out = begin(ctx, as_json)
    with client:
        model_id, version = version_of(client, model)
        packages = [one for one in whole_packages(client, model_id, version) if not variant or one["variant"] in variant]
        if not packages:
            raise CommandError(f"{model_id} v{version} has no such variant", hint=f"latebind model show {model_id} {version} lists them")
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise CommandError(f"{to} is not empty", hint="choose another folder with --to")
        sizes = {file["sha256"]: file["size"] for package in packages for file in package["files"]}
        there = 0
        with out.transfer(f"exporting {model_id} v{version}", sum(sizes.values())) as progress:

            def fetch(file: Mapping[str, Any], path: Path) -> None:
                nonlocal there
                client.models.download(file, path)
                there += file["size"]
                progress(there)

            write_layout(to, packages, client.models.get(model_id), fetch)
    tags = [tag_of(package["manifest"]) for package in packages]
    answer = {"folder": str(to), "model_id": model_id, "version": version, "tags": tags, "size": sum(sizes.values())}

    def show() -> None:
        out.done(f"{model_id} v{version} is in {to}: {', '.join(tags)} ({size_text(answer['size'])})")
        out.note(f"next: oras copy --from-oci-layout {to}:{tags[0]} REGISTRY/{model_id}:{tags[0]}")

    out.emit(answer, show)


def version_of(client: latebind.Client, text: str) -> tuple[str, int]:
    """Model and version of `MODEL`, `MODEL@3` or `MODEL:stable`."""
    model_id, at, number = text.partition("@")
    if at:
        if not number.isdigit() or not int(number):
            raise CommandError(f"{text!r} names no version", hint="write MODEL@3 or MODEL:stable")
        return model_id, int(number)
    model_id, colon, alias = text.partition(":")
    if colon:
        aliases = client.models.get(model_id)["aliases"]
        if alias not in aliases:
            raise CommandError(f"{model_id} has no alias {alias!r}", hint=f"latebind alias list {model_id}")
        return model_id, aliases[alias]
    newest = next(client.models.versions(model_id, state="ready"), None)
    if newest is None:
        raise CommandError(f"{model_id} has no version that is ready", hint=f"latebind model versions {model_id}")
    return model_id, newest["version"]


def whole_packages(client: latebind.Client, model_id: str, version: int) -> list[Json]:
    """The packages of a version with their manifests' signed bytes (`manifest_bytes`)."""
    found = client.models.packages(model_id, version)
    return [{**one, "manifest_bytes": base64.b64decode(one["manifest_base64"])} for one in found]
