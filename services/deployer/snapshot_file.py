"""The snapshot on disk: what a process answers from that cannot reach its database when it starts (SEC-D3).

One file, whole or not at all: a line of JSON (format, database, number of collections, SHA-256 of the rest), then the records. It is
only a copy: whoever deletes it loses nothing but starts with the database down. Another format is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from services.deployer.binding import Catalogue, VersionEntry
from services.deployer.compatibility import Package, package_of

FORMAT = 1
_PROGRAM = "latebind-deployer-snapshot"
#: A record that unpacks to more is none of ours: documents are limited to a megabyte, catalogues to what they name.
_MAX_RECORD_BYTES = 256 << 20


class SnapshotRefused(Exception):
    """The file cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A published state with everything it points at."""

    account: str
    collection: str
    mark: int
    revision: int
    digest: str
    document: Any
    catalogue: Catalogue


def pack(stored: Stored) -> bytes:
    """Return the record of a state."""
    catalogue = stored.catalogue
    value = {
        "account": stored.account,
        "collection": stored.collection,
        "mark": stored.mark,
        "revision": stored.revision,
        "digest": stored.digest,
        "document": stored.document,
        "versions": [
            [model, version, entry.archived, [[one.digest, one.size, _manifest(one)] for one in entry.packages]]
            for (model, version), entry in catalogue.versions.items()
        ],
        "aliases": [[model, alias, version] for (model, alias), version in catalogue.aliases.items()],
    }
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def unpack(record: bytes) -> Stored:
    """Return the state of a record. Raises `SnapshotRefused`."""
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(record, _MAX_RECORD_BYTES)
        if not unpacker.eof:
            raise SnapshotRefused("a record is cut off, or too long")
        value = json.loads(content)
        versions = {
            (model, version): VersionEntry(tuple(package_of(one, digest=digest, size=size) for digest, size, one in packages), archived)
            for model, version, archived, packages in value["versions"]
        }
        catalogue = Catalogue(versions, {(model, alias): version for model, alias, version in value["aliases"]})
        account, collection, mark, revision = value["account"], value["collection"], value["mark"], value["revision"]
        return Stored(account, collection, mark, revision, value["digest"], value["document"], catalogue)
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise SnapshotRefused(f"a record cannot be read ({type(error).__name__})") from error


def _manifest(package: Package) -> dict[str, Any]:
    """Return the part of a manifest that `package_of` reads."""
    return {
        "model_id": package.model_id,
        "version": package.version,
        "variant": package.variant,
        "engine": {
            "name": package.engine,
            "min_version": package.min_version,
            "ir_version": package.ir_version,
            "opset": {"": package.opset},
        },
        "requires": {"abi": package.abi, "ram_mb": package.ram_mb, "accelerators": sorted(package.accelerators)},
    }


def write(path: Path, database: str, records: Sequence[bytes]) -> None:
    """Replace the file. Blocks; raises `OSError`, and then the file is as it was."""
    body = msgspec.msgpack.encode(records)
    head = {
        "program": _PROGRAM,
        "format": FORMAT,
        "database": database,
        "collections": len(records),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - beside its os.open
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, database: str) -> list[Stored]:
    """Return the states in the file. Blocks. Raises `SnapshotRefused`, `FileNotFoundError`, `OSError`."""
    head_line, _, body = path.read_bytes().partition(b"\n")
    try:
        head = json.loads(head_line)
        if head["program"] != _PROGRAM or head["format"] != FORMAT:
            raise SnapshotRefused(f"it has another format than {FORMAT}: another release wrote it")
        if head["sha256"] != hashlib.sha256(body).hexdigest():
            raise SnapshotRefused("its checksum does not match: it is damaged")
        if head["database"] != database:
            raise SnapshotRefused("it is of another database")
        records = msgspec.msgpack.decode(body, type=list[bytes])
        if len(records) != head["collections"]:
            raise SnapshotRefused("it holds another number of collections than it says")
    except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise SnapshotRefused("it is not a snapshot of ours") from error
    return [unpack(record) for record in records]
