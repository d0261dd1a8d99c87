"""Request and response models of devices' identity, as docs/wire.md has them."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated

from pydantic import Field

from kit.web import Model
from services.registry.accounts.domain import SigningKey
from services.registry.accounts.enrolment.domain import INSTALL_ID_PATTERN
from services.registry.accounts.enrolment.service import TokenAnswer

_Account = Annotated[str, Field(max_length=100)]
_InstallId = Annotated[str, Field(pattern=INSTALL_ID_PATTERN, description="a UUID in lower case")]
_Text = Annotated[str, Field(max_length=200)]


class ChallengeView(Model):
    """A nonce; it is accepted once, until `expires_at`."""

    nonce: str
    expires_at: datetime


class Enrolment(Model):
    """What a device sends to enrol. `signature` covers account, install id, public key and nonce."""

    account: _Account
    enrolment_key: _Text
    install_id: _InstallId
    public_key: _Text
    nonce: _Text
    signature: _Text


class TokenRequest(Model):
    """What an enrolled device sends for a new token."""

    account: _Account
    install_id: _InstallId
    nonce: _Text
    signature: _Text


class TrustedKey(Model):
    """A public key: 32 bytes in base64, named by their SHA-256."""

    key_id: str
    public_key: str

    @classmethod
    def of(cls, key_id: str, public_key: bytes) -> TrustedKey:
        """Show a key."""
        return cls(key_id=key_id, public_key=base64.b64encode(public_key).decode())


class Trust(Model):
    """The keys that the device uses from enrolment on, by role."""

    package_keys: list[TrustedKey]
    assignment_keys: list[TrustedKey]

    @classmethod
    def of(cls, keys: tuple[SigningKey, ...]) -> Trust:
        """Sort keys by role."""
        by_role = {
            role: [TrustedKey.of(key.key_id, key.public_key) for key in keys if key.role == role] for role in ("package", "assignment")
        }
        return cls(package_keys=by_role["package"], assignment_keys=by_role["assignment"])


class TokenView(Model):
    """The token answer of docs/wire.md."""

    token: str
    expires_at: datetime
    trust: Trust

    @classmethod
    def of(cls, answer: TokenAnswer) -> TokenView:
        """Show an answer."""
        return cls(token=answer.token, expires_at=answer.expires_at, trust=Trust.of(answer.trust))


class TokenKeys(Model):
    """The keys that verify device tokens."""

    keys: list[TrustedKey]
