"""Device tokens: signed here, verified by the gateway with the public key alone."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jwt
from joserfc.jwk import OKPKey

from kit.signing import key_id_of
from services.registry.accounts.enrolment.domain import AUDIENCE, ISSUER, LONGEST_TOKEN
from services.registry.accounts.enrolment.proofs import derived_key

#: The name of RFC 9864; "EdDSA", the older one, left the curve open.
_ALGORITHM = "Ed25519"


class DeviceTokens:
    """Signs device tokens: JWT (RFC 7519) with Ed25519 (RFC 8037, RFC 9864), the key derived from the master key."""

    def __init__(self, master: bytes, lifetime: timedelta) -> None:
        private = Ed25519PrivateKey.from_private_bytes(derived_key(master, "signing"))
        self._public_key = private.public_key().public_bytes_raw()
        self._key_id = key_id_of(self._public_key)
        self._key = OKPKey.import_key(
            {"kty": "OKP", "crv": "Ed25519", "x": _base64url(self._public_key), "d": _base64url(private.private_bytes_raw())}
        )
        self._lifetime = min(lifetime, LONGEST_TOKEN)

    def issue(self, account: str, install_id: str, now: datetime) -> tuple[str, datetime]:
        """Return a token and when it expires."""
        issued_at = now.replace(microsecond=0)
        expires_at = issued_at + self._lifetime
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "acc": account,
            "sub": install_id,
            "iat": int(issued_at.timestamp()),
            "exp": int(expires_at.timestamp()),
        }
        token = jwt.encode({"alg": _ALGORITHM, "kid": self._key_id}, claims, self._key, algorithms=[_ALGORITHM])
        return token, expires_at

    def public_keys(self) -> dict[str, bytes]:
        """Return key id -> raw public key of every key that verifies tokens in use."""
        return {self._key_id: self._public_key}


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
