"""What a device remembers of one collection, and how it changes: pure transitions, and the file that keeps the result.

The file lies outside what eviction may touch and is written whole. Only signed times are remembered, never the device's clock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from latebind._files import read_json, write_json
from latebind.device.manifest import Manifest, is_digest
from latebind.device.verify import Assignment
from latebind.errors import DiskFull

log = logging.getLogger("latebind")

STATE_VERSION = 1
# A package whose files arrive wrong is asked for again this many times before it counts as refused.
DOWNLOAD_ATTEMPTS = 3
# A package during whose loading or first run the process ended this often is taken as the reason.
CRASH_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class PackageRef:
    """Which package, in words for people and telemetry."""

    digest: str
    model_id: str
    version: int
    variant: str
    engine: str

    @classmethod
    def of(cls, digest: str, manifest: Manifest) -> PackageRef:
        """The reference to a package."""
        return cls(digest, manifest.model_id, manifest.version, manifest.variant, manifest.engine)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A package that failed here: why, how often, and on which engine and system (another one may try again)."""

    code: str
    detail: str
    attempts: int
    machine: str
    final: bool


@dataclass(frozen=True, slots=True)
class CollectionState:
    """Everything that is remembered.

    `current` runs, `previous` is kept to return to, `assigned` is what the server wants (a digest). `proved` is false from a switch until
    the package has answered once. `attempts` counts, per package, loads and first runs that began and never ended: the process died in
    them. `tested_on` is the engine and system on which the golden test passed.
    """

    current: PackageRef | None = None
    previous: PackageRef | None = None
    assigned: str | None = None
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    proved: bool = True
    attempts: Mapping[str, int] = field(default_factory=dict)
    tested_on: str = ""
    counter: int = 0
    newest_signed: float = 0.0
    expires_at: float = 0.0
    revision: int = 0
    decision_id: str | None = None
    etag: str | None = None
    poll_after_s: float | None = None
    poll_spread_s: float | None = None

    @property
    def kept(self) -> set[str]:
        """Digests that eviction must spare."""
        return {ref.digest for ref in (self.current, self.previous) if ref is not None}

    def advised(self, after_s: float, spread_s: float) -> CollectionState:
        """When the server wants to be asked again."""
        return replace(self, poll_after_s=after_s, poll_spread_s=spread_s)

    def accepted(self, assignment: Assignment, *, etag: str | None, decision_id: str | None) -> CollectionState:
        """A new assignment passed all checks. What failed under another assignment may be tried again."""
        changed = assignment.package != self.assigned
        return replace(
            self,
            assigned=assignment.package,
            refused={} if changed else self.refused,
            attempts={} if changed else self.attempts,
            counter=max(self.counter, assignment.counter),
            newest_signed=max(self.newest_signed, assignment.issued_at),
            expires_at=assignment.expires_at,
            revision=assignment.revision,
            decision_id=decision_id,
            etag=etag,
        )

    def switched(self, to: PackageRef, *, tested_on: str) -> CollectionState:
        """A new package takes over. The one that ran becomes the one to return to, unless it has not answered and there is a better one."""
        if self.current is not None and self.current.digest == to.digest:
            return replace(self, current=to, tested_on=tested_on)
        previous = self.current if self.proved or self.previous is None else self.previous
        return replace(self, current=to, previous=previous, proved=False, tested_on=tested_on)

    def tested(self, digest: str, machine: str) -> CollectionState:
        """The golden test of the current package passed on this engine and system."""
        return replace(self, tested_on=machine) if self.current is not None and self.current.digest == digest else self

    def proven(self, digest: str) -> CollectionState:
        """The current package has answered."""
        if self.current is None or self.current.digest != digest or self.proved:
            return self
        return replace(self, proved=True, attempts=_without(self.attempts, digest))

    def began(self, digest: str) -> CollectionState:
        """A load or a first run begins; if the process dies in it, this is what it leaves behind."""
        return replace(self, attempts={**self.attempts, digest: self.attempts.get(digest, 0) + 1})

    def survived(self, digest: str) -> CollectionState:
        """It ended, well or badly, and the process is still there."""
        count = self.attempts.get(digest, 0)
        return replace(self, attempts={**self.attempts, digest: count - 1} if count > 1 else _without(self.attempts, digest))

    def is_deadly(self, digest: str) -> bool:
        """Whether the process has died too often while it loaded or first ran a package."""
        return self.attempts.get(digest, 0) >= CRASH_ATTEMPTS

    def returned(self, digest: str, refusal: Refusal) -> CollectionState:
        """The current package failed for good: the previous one takes over again. Nothing changes when it is no longer the current one."""
        if self.current is None or self.current.digest != digest or self.previous is None:
            return self
        return replace(self, current=self.previous, previous=None, proved=True, tested_on="", refused={**self.refused, digest: refusal})

    def failed(self, digest: str, refusal: Refusal) -> CollectionState:
        """A package could not be brought to run; what runs goes on."""
        return replace(self, refused={**self.refused, digest: refusal})

    def refusal(self, digest: str, *, machine: str) -> Refusal | None:
        """Why a package is not tried (again) on this engine and system; None when it may be."""
        refusal = self.refused.get(digest)
        if refusal is None or refusal.machine != machine:
            return None
        return refusal if refusal.final or refusal.attempts >= DOWNLOAD_ATTEMPTS else None


class StateFile:
    """The state of one collection, in memory and on disk. Safe to use from several threads."""

    def __init__(self, path: Path, *, account: str, collection: str) -> None:
        self._path = path
        self._names = {"account": account, "collection": collection}
        self._lock = threading.Lock()
        self._value = _parse(read_json(path), self._names)

    @property
    def value(self) -> CollectionState:
        """The state now."""
        return self._value

    def update(self, change: Callable[[CollectionState], CollectionState]) -> CollectionState:
        """Apply a transition and store the result before it counts. Raises DiskFull, and then nothing has changed."""
        with self._lock:
            changed = change(self._value)
            if changed != self._value:
                write_json(self._path, {"state_version": STATE_VERSION, **self._names, **asdict(changed)})
                self._value = changed
            return changed

    def update_if_possible(self, change: Callable[[CollectionState], CollectionState]) -> CollectionState | None:
        """A change that may be lost when the disk fails; then nothing has changed, and None comes back."""
        try:
            return self.update(change)
        except (DiskFull, OSError) as error:
            log.warning("the state of %s could not be written: %s", self._names["collection"], error)
            return None


def kept_packages(folder: Path) -> set[str]:
    """Digests that any collection's state in this folder wants kept."""
    kept: set[str] = set()
    for path in folder.glob("*.json"):
        raw = read_json(path)
        if isinstance(raw, dict):
            refs = (_parse_ref(raw.get(name)) for name in ("current", "previous"))
            kept |= {ref.digest for ref in refs if ref is not None}
    return kept


def _without(counts: Mapping[str, int], digest: str) -> dict[str, int]:
    return {key: count for key, count in counts.items() if key != digest}


def _parse(raw: Any, names: Mapping[str, str]) -> CollectionState:
    """The stored state; a file that is missing, of a newer version or damaged is no state at all."""
    if not isinstance(raw, dict) or raw.get("state_version") != STATE_VERSION or any(raw.get(key) != value for key, value in names.items()):
        return CollectionState()
    try:
        return CollectionState(
            current=_parse_ref(raw["current"]),
            previous=_parse_ref(raw["previous"]),
            assigned=raw["assigned"] if is_digest(raw["assigned"]) else None,
            refused={str(digest): Refusal(**refusal) for digest, refusal in raw["refused"].items()},
            proved=bool(raw["proved"]),
            attempts={str(digest): int(count) for digest, count in raw["attempts"].items()},
            tested_on=str(raw["tested_on"]),
            counter=int(raw["counter"]),
            newest_signed=float(raw["newest_signed"]),
            expires_at=float(raw["expires_at"]),
            revision=int(raw["revision"]),
            decision_id=raw["decision_id"],
            etag=raw["etag"],
            poll_after_s=raw["poll_after_s"],
            poll_spread_s=raw["poll_spread_s"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return CollectionState()


def _parse_ref(raw: Any) -> PackageRef | None:
    if not isinstance(raw, dict) or not is_digest(raw.get("digest")):
        return None
    try:
        return PackageRef(raw["digest"], str(raw["model_id"]), int(raw["version"]), str(raw["variant"]), str(raw["engine"]))
    except (KeyError, TypeError, ValueError):
        return None
