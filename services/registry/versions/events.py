"""Topics of versions and packages, and their messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from latebind_proto.events_pb2 import CollectionPublished, PackageBuilt, PackageFailed, VersionArchived, VersionCommitted, VersionReadied
from latebind_proto.events_pb2 import Package as PackageMessage
from services.registry.versions.domain import Built, Failed, Package

VERSION_COMMITTED = "version.committed"
VERSION_READIED = "version.readied"
VERSION_ARCHIVED = "version.archived"
PACKAGE_BUILT = "package.built"
PACKAGE_FAILED = "package.failed"
COLLECTION_PUBLISHED = "collection.published"


def version_committed(account: str, model_id: str, version: int, *, job_id: str, created_at: str, declaration: dict[str, Any]) -> bytes:
    """Return the order to package a version; `created_at` goes into its manifests."""
    return VersionCommitted(
        account=account,
        model_id=model_id,
        version=version,
        job_id=job_id,
        created_at=created_at,
        declaration_json=json.dumps(declaration, separators=(",", ":"), ensure_ascii=False).encode(),
    ).SerializeToString()


def version_readied(account: str, model_id: str, version: int, packages: Sequence[Package]) -> bytes:
    """Return the news that a version can be served, with its packages whole."""
    messages = [
        PackageMessage(variant=one.variant, digest=one.digest, manifest_json=one.manifest, envelope_json=one.envelope, size=one.size)
        for one in packages
    ]
    return VersionReadied(account=account, model_id=model_id, version=version, packages=messages).SerializeToString()


def version_archived(account: str, model_id: str, version: int) -> bytes:
    """Return the news that a version is not to be served any more."""
    return VersionArchived(account=account, model_id=model_id, version=version).SerializeToString()


def read_built(value: bytes) -> Built:
    """Return what the packager built. Raises `DecodeError` for bytes that are not this message."""
    message = PackageBuilt.FromString(value)
    packages = tuple(
        Package(
            account=message.account,
            digest=one.digest,
            model_id=message.model_id,
            version=message.version,
            position=position,
            variant=one.variant,
            size=one.size,
            manifest=one.manifest_json,
            envelope=one.envelope_json,
        )
        for position, one in enumerate(message.packages)
    )
    return Built(message.account, message.model_id, message.version, message.job_id, packages, _report(message.report_json))


def read_failed(value: bytes) -> Failed:
    """Return why a version could not be packaged. Raises `DecodeError` for bytes that are not this message."""
    message = PackageFailed.FromString(value)
    return Failed(
        message.account, message.model_id, message.version, message.job_id, message.code, message.detail, _report(message.report_json)
    )


def _report(value: bytes) -> dict[str, Any] | None:
    """Read what the gates found; None when the packager had nothing to say, as earlier ones never had."""
    report = json.loads(value) if value else None
    return report if isinstance(report, dict) else None


def read_published(value: bytes) -> tuple[str, str, str, list[str]]:
    """Return account, collection, its name and the models that it serves. Raises `DecodeError` for bytes that are not this message."""
    message = CollectionPublished.FromString(value)
    return message.account, message.collection, message.name, list(message.model_ids)
