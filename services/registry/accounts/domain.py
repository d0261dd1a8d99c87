"""Accounts and keys as values, and the format of secrets (docs/wire.md "Formats of secrets"). Pure but for the randomness of new keys."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

ACCOUNT_PATTERN = r"^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])$"
#: Most API keys, and most enrolment keys, that an account may have in use.
MAX_LIVE_KEYS = 200

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_SECRET = re.compile(r"(lb[oke]_)([a-z0-9]{12})_([A-Za-z0-9_-]{43})_([0-9a-f]{6})")
_CHECKSUM_CHARACTERS = 6


class SecretKind(StrEnum):
    """What a secret is for, by its prefix."""

    OPERATOR = "lbo_"
    API = "lbk_"
    ENROLMENT = "lbe_"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret whose form and checksum are right; whether anybody issued it is for the store to say."""

    kind: SecretKind
    key_id: str
    text: str

    def __repr__(self) -> str:
        return f"Secret({self.kind.value}{self.key_id})"


def new_secret(kind: SecretKind) -> Secret:
    """Return a new secret with 256 random bits."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))
    body = f"{kind.value}{key_id}_{secrets.token_urlsafe(32)}"
    return Secret(kind, key_id, f"{body}_{_checksum(body)}")


def parse_secret(text: str) -> Secret | None:
    """Return the parts of a secret; None when the form or the checksum is wrong, so that a mistyped key costs no look-up."""
    match = _SECRET.fullmatch(text)
    if match is None or _checksum(text.rpartition("_")[0]) != match[4]:
        return None
    return Secret(SecretKind(match[1]), match[2], text)


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:_CHECKSUM_CHARACTERS]


class SecretHasher:
    """Keyed hash of secrets: what the database holds is worthless without the key file."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def digest(self, secret: Secret) -> str:
        """Return HMAC-SHA256 (RFC 2104) of the text, hex."""
        return hmac.new(self._key, secret.text.encode(), hashlib.sha256).hexdigest()

    def matches(self, secret: Secret, digest: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.digest(secret), digest)


@dataclass(frozen=True, slots=True)
class Account:
    """A tenant."""

    account: str
    title: str
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its text. `position` orders lists."""

    position: int
    key_id: str
    account: str
    name: str
    scopes: tuple[str, ...]
    digest: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class EnrolmentKey:
    """An enrolment key without its text. `used` counts installs, not calls."""

    position: int
    key_id: str
    account: str
    name: str
    digest: str
    quota: int
    used: int
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class OperatorKey:
    """The operator key without its text."""

    key_id: str
    digest: str


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key that an account's devices are told to trust for one role (`package` or `assignment`)."""

    role: str
    key_id: str
    public_key: bytes
