"""Versions and packages as values. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class VersionState(StrEnum):
    """Where a version is: draft → packaging → ready or failed; draft, ready and failed ones may be archived."""

    DRAFT = "draft"
    PACKAGING = "packaging"
    READY = "ready"
    FAILED = "failed"
    ARCHIVED = "archived"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model. `declaration` is what docs/topics.md describes, never changed after the commit.

    `commit_number` counts the model's commits; `contract` is what is promised since this one (`contract.py`), None before it.
    """

    account: str
    model_id: str
    version: int
    state: VersionState
    revision: int
    declaration: dict[str, Any]
    binds_contract: bool
    job_id: str | None
    problem_code: str | None
    problem_detail: str | None
    report: dict[str, Any] | None
    created_at: datetime
    created_by: str
    updated_at: datetime
    committed_at: datetime | None
    committed_by: str | None
    packaged_at: datetime | None
    archived_at: datetime | None
    commit_number: int | None = None
    contract: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PackageSummary:
    """What a version's answer says of a package; `size` is the sum of its files in bytes."""

    digest: str
    variant: str
    size: int


@dataclass(frozen=True, slots=True)
class Package:
    """A package as the packager signed it. `position` is its place in the version's order of preference."""

    account: str
    digest: str
    model_id: str
    version: int
    position: int
    variant: str
    size: int
    manifest: bytes
    envelope: bytes

    def is_whole(self) -> bool:
        """Whether the digest names these manifest bytes and the manifest is this version's."""
        if hashlib.sha256(self.manifest).hexdigest() != self.digest:
            return False
        try:
            manifest = json.loads(self.manifest)
            named = (manifest["account"], manifest["model_id"], manifest["version"], manifest["variant"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return bool(named == (self.account, self.model_id, self.version, self.variant))


@dataclass(frozen=True, slots=True)
class Built:
    """The packager's good news."""

    account: str
    model_id: str
    version: int
    job_id: str
    packages: tuple[Package, ...]
    report: dict[str, Any] | None

    def problem(self) -> str | None:
        """Say what is wrong with the packages; None: nothing."""
        if not self.packages:
            return "the packager announced no package"
        if not all(package.is_whole() for package in self.packages):
            return "a package's digest or manifest does not belong to this version"
        if len({package.digest for package in self.packages}) != len(self.packages):
            return "a package is announced twice"
        return None


@dataclass(frozen=True, slots=True)
class Failed:
    """The packager's bad news."""

    account: str
    model_id: str
    version: int
    job_id: str
    code: str
    detail: str
    report: dict[str, Any] | None
