"""Who signed this, for what, and may this device use it now? Pure: bytes and values in, values out; no clock, no disk, no network.

Raw bytes are verified first and parsed afterwards. The algorithm is always Ed25519: it comes from the key that was pinned at enrolment,
never from a message.
Formats: DSSE v1 (secure-systems-lab/dsse, protocol.md), in-toto Statement v1, docs/wire.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from latebind.device.clock import parse_time
from latebind.device.manifest import Manifest, is_digest, loads_strictly, parse_manifest
from latebind.errors import VerificationFailed

PACKAGE_PAYLOAD_TYPE = "application/vnd.in-toto+json"
ASSIGNMENT_PAYLOAD_TYPE = "application/vnd.latebind.assignment+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://latebind.dev/package/v1"
ASSIGNMENT_TYPE = "latebind-assignment-v1"
MAX_SIGNATURES = 16
MAX_ENVELOPE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys that were pinned at enrolment, by key id, one set per role."""

    package_keys: Mapping[str, bytes]
    assignment_keys: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Expected:
    """What an assignment must say for this device to take it."""

    account: str
    install_id: str
    collection: str
    nonce: str
    package: str
    last_counter: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """A signed decision: which package this install runs. Times are Unix seconds."""

    package: str
    counter: int
    revision: int
    issued_at: float
    expires_at: float


def key_id(public_key: bytes) -> str:
    """Id of a raw 32-byte Ed25519 public key: the lower-case hex SHA-256 of it."""
    return hashlib.sha256(public_key).hexdigest()


def parse_trust(raw: Any) -> Trust:
    """Read `trust` of a token answer. Raises VerificationFailed (`TRUST_INVALID`) when a key is not what its id says."""
    if not isinstance(raw, dict):
        raise VerificationFailed("the server named no keys to trust", code="TRUST_INVALID")
    return Trust(_parse_keys(raw.get("package_keys")), _parse_keys(raw.get("assignment_keys")))


def parse_given_trust(raw: Any, account: str) -> Trust | None:
    """Keys that an app brings along, as `latebind bundle --trust` writes them; None: those of another account.

    Raises VerificationFailed (`TRUST_INVALID`).
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("account"), str):
        raise VerificationFailed("the keys to trust name no account", code="TRUST_INVALID")
    trust = parse_trust(dict(raw))
    if not trust.package_keys or not trust.assignment_keys:
        raise VerificationFailed(
            "the keys to trust lack a role: packages and assignments are signed by different keys", code="TRUST_INVALID"
        )
    return trust if raw["account"] == account else None


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that a DSSE signature covers (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def open_envelope(envelope: Any, payload_type: str, keys: Mapping[str, bytes]) -> bytes:
    """The payload of a DSSE envelope, once a trusted key's signature over it holds.

    The first signature whose key id is trusted for this role decides. Raises VerificationFailed (`ENVELOPE_INVALID`, `SIGNATURE_UNTRUSTED`,
    `SIGNATURE_INVALID`).
    """
    if not isinstance(envelope, dict) or envelope.get("payloadType") != payload_type or not isinstance(envelope.get("signatures"), list):
        raise VerificationFailed(f"this is not a signed envelope of {payload_type}", code="ENVELOPE_INVALID")
    payload = _decode(envelope.get("payload"))
    for signature in envelope["signatures"][:MAX_SIGNATURES]:
        if not isinstance(signature, dict):
            raise VerificationFailed("a signature of the envelope is malformed", code="ENVELOPE_INVALID")
        named = signature.get("keyid")
        public_key = keys.get(named) if isinstance(named, str) else None
        if public_key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(
                _decode(signature.get("sig")), pre_authentication_encoding(payload_type, payload)
            )
        except InvalidSignature as error:
            raise VerificationFailed("the signature does not fit what was signed", code="SIGNATURE_INVALID") from error
        return payload
    raise VerificationFailed("no key that this device trusts for this has signed", code="SIGNATURE_UNTRUSTED")


def verify_package(manifest: bytes, envelope: bytes, *, digest: str, account: str, trust: Trust) -> Manifest:
    """The manifest, once it is the one that was asked for and the account's packager signed it and its files.

    Raises VerificationFailed: `DIGEST_MISMATCH`, the codes of `open_envelope` and `parse_manifest`, `STATEMENT_INVALID`, `FOREIGN_ACCOUNT`.
    """
    if hashlib.sha256(manifest).hexdigest() != digest:
        raise VerificationFailed("the manifest is not the one that was assigned", code="DIGEST_MISMATCH")
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise VerificationFailed("the package's signature is too long", code="ENVELOPE_INVALID")
    statement = loads_strictly(open_envelope(loads_strictly(envelope), PACKAGE_PAYLOAD_TYPE, trust.package_keys))
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE or statement.get("predicateType") != PREDICATE_TYPE:
        raise VerificationFailed("the package's signature is not over a package statement", code="STATEMENT_INVALID")
    subjects = _subjects(statement.get("subject"))
    if not subjects or subjects[0] != ("manifest.json", digest):
        raise VerificationFailed("the signed statement is about another package", code="STATEMENT_INVALID")
    parsed = parse_manifest(manifest)
    if subjects[1:] != [(file.path, file.sha256) for file in parsed.files]:
        raise VerificationFailed("the signed statement names other files than the manifest", code="STATEMENT_INVALID")
    predicate = statement.get("predicate")
    signed_account = predicate.get("account") if isinstance(predicate, dict) else None
    if parsed.account != account or signed_account != account:
        raise VerificationFailed("the package belongs to another account", code="FOREIGN_ACCOUNT")
    return parsed


def verify_assignment(envelope: Any, expected: Expected, *, trust: Trust, now: float) -> Assignment:
    """The assignment, once it is signed, meant for this request of this install, not older than the last one, and not expired.

    `now` is `effective_now(…)`. Raises VerificationFailed: the codes of `open_envelope`, `ASSIGNMENT_INVALID`, `ASSIGNMENT_FOREIGN`,
    `ASSIGNMENT_REPLAYED`, `ASSIGNMENT_EXPIRED`.
    """
    payload = loads_strictly(open_envelope(envelope, ASSIGNMENT_PAYLOAD_TYPE, trust.assignment_keys))
    if not isinstance(payload, dict) or payload.get("type") != ASSIGNMENT_TYPE:
        raise VerificationFailed("the signed payload is not an assignment", code="ASSIGNMENT_INVALID")
    for name in ("account", "install_id", "collection"):
        if payload.get(name) != getattr(expected, name):
            raise VerificationFailed(f"the assignment is for another {name.replace('_', ' ')}", code="ASSIGNMENT_FOREIGN")
    if payload.get("nonce") != expected.nonce:
        raise VerificationFailed("the assignment answers another request", code="ASSIGNMENT_REPLAYED")
    assignment = _parse_assignment(payload)
    if assignment.package != expected.package:
        raise VerificationFailed("the assignment is for another package than the answer", code="ASSIGNMENT_FOREIGN")
    if assignment.counter < expected.last_counter:
        raise VerificationFailed("the assignment is older than the last one that was accepted", code="ASSIGNMENT_REPLAYED")
    if assignment.expires_at <= max(now, assignment.issued_at):
        raise VerificationFailed("the assignment has expired; is the clock of this device right?", code="ASSIGNMENT_EXPIRED")
    return assignment


def effective_now(clock: float, newest_signed: float) -> float:
    """The time that expiry is measured against: a clock that is behind is corrected by the newest signed time the device has accepted."""
    return max(clock, newest_signed)


def _parse_assignment(payload: Mapping[str, Any]) -> Assignment:
    counter, revision = payload.get("counter"), payload.get("revision")
    if not is_digest(payload.get("package")) or not _is_count(counter) or not _is_count(revision):
        raise VerificationFailed("the assignment names no package, counter or revision", code="ASSIGNMENT_INVALID")
    try:
        issued_at, expires_at = parse_time(payload["issued_at"]), parse_time(payload["expires_at"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise VerificationFailed("the assignment has no valid times", code="ASSIGNMENT_INVALID") from error
    return Assignment(str(payload["package"]), int(counter or 0), int(revision or 0), issued_at, expires_at)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _subjects(raw: Any) -> list[tuple[str, str]]:
    if not isinstance(raw, list):
        return []
    subjects = []
    for entry in raw:
        digest = entry.get("digest") if isinstance(entry, dict) else None
        sha256 = digest.get("sha256") if isinstance(digest, dict) else None
        if not isinstance(sha256, str) or not isinstance(entry.get("name"), str):
            return []
        subjects.append((entry["name"], sha256))
    return subjects


def _parse_keys(raw: Any) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for entry in raw if isinstance(raw, list) else []:
        public_key = _decode(entry.get("public_key")) if isinstance(entry, dict) else b""
        if len(public_key) != 32 or entry.get("key_id") != key_id(public_key):
            raise VerificationFailed("a key is not what its id says", code="TRUST_INVALID")
        keys[key_id(public_key)] = public_key
    return keys


def _decode(text: Any) -> bytes:
    """Standard base64 with padding and without stray bits (RFC 4648 sections 3.5 and 4); nothing else."""
    if not isinstance(text, str):
        raise VerificationFailed("base64 is missing", code="ENVELOPE_INVALID")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationFailed("base64 is malformed", code="ENVELOPE_INVALID") from error
    if base64.b64encode(data).decode() != text:
        raise VerificationFailed("base64 is malformed", code="ENVELOPE_INVALID")
    return data
