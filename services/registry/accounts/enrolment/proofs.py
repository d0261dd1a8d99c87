"""Challenges and proofs of possession. The moment is an argument; whether a nonce was used before is for the store to say."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.registry.accounts.enrolment.domain import NONCE_LIFETIME
from services.registry.accounts.enrolment.errors import ChallengeInvalid, ProofInvalid

_RANDOM_BYTES = 16
_MAC_BYTES = 16
_NONCE_BYTES = _RANDOM_BYTES + 8 + _MAC_BYTES


def derived_key(master: bytes, purpose: str) -> bytes:
    """Return 32 bytes for one purpose (HKDF-SHA256, RFC 5869, no salt)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"latebind/device-tokens/{purpose}".encode()).derive(master)


class Challenges:
    """Nonces that need no row until they are accepted: random bytes, expiry and a MAC, base64url."""

    def __init__(self, master: bytes) -> None:
        self._key = derived_key(master, "challenge")

    def issue(self, now: datetime) -> tuple[str, datetime]:
        """Return a nonce and when it expires."""
        expires_at = (now + NONCE_LIFETIME).replace(microsecond=0)
        body = secrets.token_bytes(_RANDOM_BYTES) + struct.pack(">q", int(expires_at.timestamp()))
        return base64.urlsafe_b64encode(body + self._mac(body)).decode().rstrip("="), expires_at

    def check(self, nonce: str, now: datetime) -> datetime:
        """Return when the nonce expires; whether it was used before is for the store to say. Raises `ChallengeInvalid`."""
        try:
            raw = base64.b64decode(nonce + "=" * (-len(nonce) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise ChallengeInvalid("this is not a nonce of this server; ask for a new challenge") from error
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        # One nonce has one text: another spelling of the same bytes would be another row in the table of used ones.
        spelled = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        if len(raw) != _NONCE_BYTES or spelled != nonce or not hmac.compare_digest(mac, self._mac(body)):
            raise ChallengeInvalid("this is not a nonce of this server; ask for a new challenge")
        expires_at = datetime.fromtimestamp(struct.unpack(">q", body[_RANDOM_BYTES:])[0], tz=UTC)
        if expires_at <= now:
            raise ChallengeInvalid("the nonce has expired; ask for a new challenge")
        return expires_at

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).digest()[:_MAC_BYTES]


def read_public_key(text: str) -> bytes:
    """Return the 32 bytes of a public key in base64. Raises `ProofInvalid`."""
    raw = _unbase64(text)
    if len(raw) != 32:
        raise ProofInvalid("public_key must be 32 bytes in base64")
    return raw


def check_proof(public_key: bytes, signature: str, text: bytes) -> None:
    """Verify an Ed25519 signature (RFC 8032). Raises `ProofInvalid`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(_unbase64(signature), text)
    except (InvalidSignature, ValueError) as error:
        raise ProofInvalid("the signature does not prove possession of the public key") from error


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProofInvalid("byte strings are standard base64 with padding") from error
