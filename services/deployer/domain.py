"""What the deployer keeps: collections, revisions, devices, decisions; and the small rules about them.

Pure. Which package a device gets is `binding.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

#: What a device says of an assignment (docs/wire.md, "Update states").
STATES = frozenset({"assigned", "downloading", "downloaded", "verified", "running", "failed", "returned"})
EMPTY_RULES: Mapping[str, Any] = {"rules": [], "default": None}
#: A new state holds from so long after its transaction on: by then every process that answers devices has it.
LEAD = timedelta(seconds=0.5)
#: Marks are microseconds that only rise. Between two of them there is room for every edge of time windows (at most 20,000).
MARK_STEP = 1 << 15


@dataclass(frozen=True, slots=True)
class Collection:
    """What an app names. `revision` is the published one, None before the first publish."""

    id: str
    name: str
    description: str
    created_at: datetime
    updated_at: datetime
    revision: int | None
    draft_number: int


@dataclass(frozen=True, slots=True)
class Draft:
    """The rules being edited. `number` rises with each change and is its ETag."""

    document: dict[str, Any]
    number: int
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Revision:
    """Rules as they were published: never changed again. `digest` is that of the document."""

    collection: str
    revision: int
    document: dict[str, Any]
    digest: str
    published_at: datetime
    published_by: str
    note: str
    reverted_to: int | None


@dataclass(frozen=True, slots=True)
class Mark:
    """Which state a collection is in: it was made at `touched_at` and holds from `active_at` on, both by the database's clock."""

    account: str
    collection: str
    mark: int
    touched_at: datetime
    active_at: datetime


@dataclass(frozen=True, slots=True)
class Published:
    """What memory holds of a collection: its revision, and the mark that tells whether that is still current."""

    mark: Mark
    revision: int
    document: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of a package."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a device should run and what it says it runs, for one collection."""

    collection: str
    wanted: str | None
    reason: str | None
    decision_id: str | None
    decided_at: datetime | None
    running: str | None
    state: str | None
    code: str | None
    reported_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """One thing that a device reported."""

    event_id: str
    collection: str
    package: str | None
    state: str
    code: str | None
    detail: str
    at: datetime
    decision_id: str | None
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Device:
    """One install, with its newest context."""

    install_id: str
    first_seen_at: datetime
    last_seen_at: datetime
    context: dict[str, Any]
    states: tuple[DeviceState, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer of resolve, with the context that it was made for."""

    account: str
    decision_id: str
    collection: str
    revision: int
    install_id: str
    decided_at: datetime
    context: dict[str, Any]
    answer: dict[str, Any]

    @property
    def wanted(self) -> str | None:
        """Digest of the package that was given, or None for a refusal."""
        package = self.answer.get("package")
        return package["digest"] if package else None


@dataclass(frozen=True, slots=True)
class Report:
    """The events that one request of a device brought."""

    account: str
    install_id: str
    events: tuple[DeviceEvent, ...]


@dataclass(frozen=True, slots=True)
class Sighting:
    """A device that polled and kept what it has. `context` is None when it is the one already known."""

    account: str
    install_id: str
    at: datetime
    context: dict[str, Any] | None


def document_digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a rules document, the same for equal documents."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def collection_etag(one: Collection) -> str:
    """Return the entity tag of a collection's texts."""
    return f'"collection-{int(one.updated_at.timestamp() * 1_000_000)}"'


def draft_etag(number: int) -> str:
    """Return the entity tag of a draft."""
    return f'"draft-{number}"'


def files_of(manifest: Mapping[str, Any]) -> tuple[PackageFile, ...]:
    """Return the files that a manifest lists."""
    return tuple(PackageFile(entry["sha256"], entry["size"]) for entry in manifest["files"])
