"""Catalogues as values: the index, packages as somebody else signed them, and the declaration that takes them over. Pure.

docs/catalogue.md describes the format. Nothing here is trusted before it was checked; model files are never looked into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.registry.catalogue.errors import CatalogueInvalid, CataloguePackageInvalid
from services.registry.domain import SLUG_PATTERN
from services.registry.versions.declaration import MAX_VARIANTS, check_declaration, is_safe_path
from services.registry.versions.errors import DeclarationInvalid

MAX_ENTRIES = 10_000
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://latebind.dev/package/v1"

_SLUG = re.compile(SLUG_PATTERN)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Source:
    """A place that the operator named, and whose signatures it trusts: key id to raw Ed25519 public key."""

    source_id: str
    location: str
    public_keys: dict[str, bytes]
    title: str
    created_at: datetime
    created_by: str
    fetched_at: datetime | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class ListedPackage:
    """Where a package lies in its source, and the digest of its manifest."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that can be taken over. Its packages are in order of preference."""

    source_id: str
    name: str
    title: str
    description: str
    license: str
    labels: dict[str, str]
    packages: tuple[ListedPackage, ...]

    @property
    def entry_id(self) -> str:
        """The id by which accounts name it."""
        return f"{self.source_id}.{self.name}"


@dataclass(frozen=True, slots=True)
class ForeignPackage:
    """A package that was verified: where it lies, its digest and its manifest."""

    listed: ListedPackage
    manifest: Mapping[str, Any]


def read_index(data: bytes, source_id: str) -> tuple[str, list[Entry]]:
    """Return title and entries of a `catalogue.json`. Raises `CatalogueInvalid`."""
    try:
        raw = json.loads(data)
        if raw["catalogue_version"] != 1:
            raise CatalogueInvalid("catalogue_version must be 1; a newer one needs a newer server")
        entries = [_entry(one, source_id) for one in raw["entries"][: MAX_ENTRIES + 1]]
        title = _text(raw.get("title", ""), 200)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CatalogueInvalid(f"catalogue.json is malformed ({type(error).__name__}: {str(error)[:200]})") from error
    if len(entries) > MAX_ENTRIES or len({entry.name for entry in entries}) != len(entries):
        raise CatalogueInvalid(f"catalogue.json lists a name twice, or more than {MAX_ENTRIES} entries")
    return title, entries


def _entry(raw: Mapping[str, Any], source_id: str) -> Entry:
    packages = tuple(ListedPackage(_text(one["path"], 300), _text(one["digest"], 64)) for one in raw["packages"])
    name = _text(raw["name"], 64)
    if not _SLUG.fullmatch(name):
        raise ValueError("the name of an entry is a slug")
    if not 1 <= len(packages) <= MAX_VARIANTS:
        raise ValueError(f"entry {name}: 1 to {MAX_VARIANTS} packages")
    if not all(is_safe_path(one.path) and _DIGEST.fullmatch(one.digest) for one in packages):
        raise ValueError(f"entry {name}: a package has a plain relative path and the hex SHA-256 of its manifest")
    labels = {_text(key, 63): _text(value, 255) for key, value in raw.get("labels", {}).items()}
    if len(labels) > 64:
        raise ValueError(f"entry {name}: at most 64 labels")
    return Entry(
        source_id,
        name,
        _text(raw.get("title", ""), 200),
        _text(raw.get("description", ""), 4000),
        _text(raw.get("license", ""), 100),
        labels,
        packages,
    )


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"a text of at most {longest} characters expected")
    value.encode()  # lone surrogates cannot be stored
    return value


def read_package(listed: ListedPackage, manifest: bytes, statement: bytes) -> ForeignPackage:
    """Return a package whose manifest has the listed digest and whose statement was verified.

    The statement must name the manifest and every file in the manifest's order (docs/wire.md "Packages").
    Raises `CataloguePackageInvalid`.
    """
    try:
        raw, signed = json.loads(manifest), json.loads(statement)
        if signed["_type"] != STATEMENT_TYPE or signed["predicateType"] != PREDICATE_TYPE:
            raise ValueError("the statement is of another type")
        subjects = [(one["name"], one["digest"]["sha256"]) for one in signed["subject"]]
        if subjects != [("manifest.json", listed.digest), *((file["path"], file["sha256"]) for file in raw["files"])]:
            raise ValueError("the statement does not name the manifest and its files")
        if raw["manifest_version"] != 1:
            raise ValueError("manifest_version must be 1")
        for file in raw["files"]:
            if not (is_safe_path(file["path"]) and _DIGEST.fullmatch(file["sha256"]) and type(file["size"]) is int and file["size"] >= 0):
                raise ValueError("a file has an unsafe path, a wrong digest or a wrong size")
        if not _SLUG.fullmatch(raw["model_id"]):
            raise ValueError("model_id is no slug")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CataloguePackageInvalid(f"package {listed.digest[:12]}…: {str(error)[:200] or type(error).__name__}") from error
    return ForeignPackage(listed, raw)


def files_to_take(packages: Sequence[ForeignPackage]) -> dict[str, tuple[str, int]]:
    """Return sha256 → (path in the source, size) of every file to copy. Golden files are made anew by this account's packager."""
    return {
        file["sha256"]: (f"{package.listed.path}/{file['path']}", file["size"])
        for package in packages
        for file in package.manifest["files"]
        if file["role"] != "golden"
    }


def declaration_of(packages: Sequence[ForeignPackage], *, entry: Entry, source_title: str) -> dict[str, Any]:
    """Return the declaration (docs/topics.md) that makes the same version in another account, with the origin in its lineage.

    Raises `CataloguePackageInvalid` when the packages are not variants of one version, or break the rules of a declaration.
    """
    first = packages[0].manifest
    shared = _shared(first)
    for package in packages[1:]:
        if _shared(package.manifest) != shared:
            raise CataloguePackageInvalid("the packages of this entry are not variants of one version")
    try:
        declaration = {
            "variants": [_variant(package.manifest) for package in packages],
            **shared,
            "golden": {name: float(first["golden"][name]) for name in ("rtol", "atol") if first.get("golden")},
            "lineage": _lineage(packages, entry, source_title),
            "notes": f"taken over from the catalogue entry {entry.entry_id}",
        }
        declaration.pop("origin")
        check_declaration(declaration)
    except DeclarationInvalid as error:
        raise CataloguePackageInvalid(error.detail, **error.extra) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CataloguePackageInvalid(f"a manifest is malformed ({type(error).__name__}: {str(error)[:200]})") from error
    return declaration


def _shared(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all variants of a version have in common."""
    try:
        return {
            "origin": [manifest["account"], manifest["model_id"], manifest["version"]],
            "files": [_file(file) for file in manifest["files"] if file["role"] == "auxiliary"],
            "params": {name: {"type": param["type"], "value": param["value"]} for name, param in manifest["params"].items()},
            "inputs": [_tensor(tensor) for tensor in manifest["inputs"]],
            "outputs": [_tensor(tensor) for tensor in manifest["outputs"]],
            "requires": _requires(manifest.get("requires") or {}),
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CataloguePackageInvalid(f"a manifest is malformed ({type(error).__name__}: {str(error)[:200]})") from error


def _variant(manifest: Mapping[str, Any]) -> dict[str, Any]:
    files = [{**_file(file), "role": file["role"]} for file in manifest["files"] if file["role"] in {"graph", "graph-data"}]
    return {"name": _text(manifest["variant"], 64), "files": files}


def _file(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"path": raw["path"], "sha256": raw["sha256"], "size": raw["size"]}


def _tensor(raw: Mapping[str, Any]) -> dict[str, Any]:
    shape = raw["shape"]
    if not isinstance(shape, list) or not all(size is None or type(size) in {int, str} for size in shape):
        raise ValueError("a shape is a list of sizes, nulls and names")
    tensor = {"name": _text(raw["name"], 256), "dtype": _text(raw["dtype"], 20), "shape": shape}
    if raw.get("range") is not None:
        lowest, highest = raw["range"]
        tensor["range"] = [float(lowest), float(highest)]
    return tensor


def _requires(raw: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in raw.items():
        is_list = isinstance(value, list) and all(isinstance(one, str) and 0 < len(one) <= 64 for one in value)
        if not (type(value) is int and 0 < value < 1 << 24 if name == "ram_mb" else name in {"abi", "accelerators"} and is_list):
            raise ValueError(f"requires.{name} is unknown or malformed")
    return dict(raw)


def _lineage(packages: Sequence[ForeignPackage], entry: Entry, source_title: str) -> dict[str, Any]:
    first = packages[0].manifest
    origin = first.get("lineage") or {}
    step = {
        "tool": "latebind-catalogue",
        "version": "1",
        "options": {
            "source": source_title,
            "entry": entry.entry_id,
            "account": first["account"],
            "model_id": first["model_id"],
            "version": first["version"],
            "packages": [package.listed.digest for package in packages],
        },
    }
    return {"source_sha256": [*origin.get("source_sha256", [])], "steps": [*origin.get("steps", []), step]}
