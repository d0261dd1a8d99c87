"""The packager's topics, and their messages to and from what the packager knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from latebind_proto import events_pb2
from services.packager.domain import Job, Package

ACCOUNT_CREATED = "account.created"
VERSION_COMMITTED = "version.committed"
PACKAGE_BUILT = "package.built"
PACKAGE_FAILED = "package.failed"
SIGNING_KEY_ANNOUNCED = "signing-key.announced"

#: What reading raises for bytes that are no such message.
UNREADABLE = (DecodeError,)


@dataclass(frozen=True, slots=True)
class Committed:
    """A version that is to be packaged."""

    account: str
    model_id: str
    version: int
    job_id: str
    created_at: str
    declaration: bytes


def read_committed(value: bytes) -> Committed:
    """Read `version.committed`. Raises `UNREADABLE`."""
    message = events_pb2.VersionCommitted.FromString(value)
    return Committed(message.account, message.model_id, message.version, message.job_id, message.created_at, message.declaration_json)


def read_account(value: bytes) -> str:
    """Read `account.created`: the account's name. Raises `UNREADABLE`."""
    return events_pb2.AccountCreated.FromString(value).account


def key_of(job: Job) -> str:
    """Return the key that keeps the events of one model in order."""
    return f"{job.account}/{job.model_id}"


def built(job: Job, packages: Sequence[Package], report: bytes) -> bytes:
    """Write `package.built`."""
    return events_pb2.PackageBuilt(
        account=job.account,
        model_id=job.model_id,
        version=job.version,
        job_id=job.job_id,
        packages=[
            events_pb2.Package(
                variant=one.variant, digest=one.digest, manifest_json=one.manifest, envelope_json=one.envelope, size=one.size
            )
            for one in packages
        ],
        report_json=report,
    ).SerializeToString()


def failed(job: Job, code: str, detail: str, report: bytes) -> bytes:
    """Write `package.failed`."""
    return events_pb2.PackageFailed(
        account=job.account, model_id=job.model_id, version=job.version, job_id=job.job_id, code=code, detail=detail, report_json=report
    ).SerializeToString()


def key_announced(account: str, role: str, key_id: str, public_key: bytes) -> bytes:
    """Write `signing-key.announced`."""
    return events_pb2.SigningKeyAnnounced(account=account, role=role, key_id=key_id, public_key=public_key).SerializeToString()
