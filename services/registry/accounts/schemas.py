"""Request and response models of accounts and keys."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, Field

from kit.identity import Scope
from kit.web import Model
from services.registry.accounts.domain import ACCOUNT_PATTERN, Account, ApiKey, EnrolmentKey, Secret, SigningKey

AccountName = Annotated[str, Field(pattern=ACCOUNT_PATTERN, description="2 to 40 of a-z, 0-9 and -, beginning with a letter")]
_Name = Annotated[str, Field(max_length=100)]


class NewAccount(Model):
    """An account to create."""

    account: AccountName
    title: Annotated[str, Field(max_length=200)] = ""


class AccountView(Model):
    """An account."""

    account: str
    title: str
    created_at: datetime

    @classmethod
    def of(cls, account: Account) -> AccountView:
        """Show an account."""
        return cls(account=account.account, title=account.title, created_at=account.created_at)


class ApiKeyView(Model):
    """An API key without its text."""

    id: str
    account: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> ApiKeyView:
        """Show a key."""
        return cls(**_api_key_fields(key))


class ApiKeyOnce(ApiKeyView):
    """A new API key. `key` is its text, shown this once."""

    key: str

    @classmethod
    def with_secret(cls, key: ApiKey, secret: Secret) -> ApiKeyOnce:
        """Show a new key with its text."""
        return cls(**_api_key_fields(key), key=secret.text)


def _api_key_fields(key: ApiKey) -> dict[str, object]:
    names = ("account", "name", "created_at", "created_by", "expires_at", "revoked_at")
    return {**{name: getattr(key, name) for name in names}, "id": key.key_id, "scopes": [Scope(scope) for scope in key.scopes]}


class AccountOnce(AccountView):
    """A new account with its first admin key, whose text is shown this once."""

    api_key: ApiKeyOnce

    @classmethod
    def with_key(cls, account: Account, key: ApiKey, secret: Secret) -> AccountOnce:
        """Show a new account."""
        return cls(account=account.account, title=account.title, created_at=account.created_at, api_key=ApiKeyOnce.with_secret(key, secret))


class NewApiKey(Model):
    """An API key to make. `account` is for the operator; an admin's key is made in the admin's account."""

    name: _Name = ""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)]
    expires_at: AwareDatetime | None = None
    account: str | None = None


class NewEnrolmentKey(Model):
    """An enrolment key to make. `quota` is how many installs may enrol with it."""

    name: _Name = ""
    quota: Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)] = 1000
    expires_at: AwareDatetime | None = None
    account: str | None = None


class EnrolmentKeyView(Model):
    """An enrolment key without its text. `used` counts the installs that enrolled with it."""

    id: str
    account: str
    name: str
    quota: int
    used: int
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: EnrolmentKey) -> EnrolmentKeyView:
        """Show a key."""
        return cls(**_enrolment_key_fields(key))


class EnrolmentKeyOnce(EnrolmentKeyView):
    """A new enrolment key. `key` is its text, shown this once."""

    key: str

    @classmethod
    def with_secret(cls, key: EnrolmentKey, secret: Secret) -> EnrolmentKeyOnce:
        """Show a new key with its text."""
        return cls(**_enrolment_key_fields(key), key=secret.text)


def _enrolment_key_fields(key: EnrolmentKey) -> dict[str, object]:
    names = ("account", "name", "quota", "used", "created_at", "created_by", "expires_at", "revoked_at")
    return {**{name: getattr(key, name) for name in names}, "id": key.key_id}


class CredentialText(Model):
    """A credential as the caller sent it."""

    key: Annotated[str, Field(max_length=200)]


class SigningKeyView(Model):
    """A public key with which the account's packages or assignments are signed: raw Ed25519 key in base64, named by its SHA-256."""

    role: str
    key_id: str
    public_key: str

    @classmethod
    def of(cls, key: SigningKey) -> SigningKeyView:
        """Show a key."""
        return cls(role=key.role, key_id=key.key_id, public_key=base64.b64encode(key.public_key).decode())


class WhoAmI(Model):
    """Who asks: `kind` is nobody, device, user or operator; `id` the key's or the install's; `scopes` those of an API key."""

    kind: str
    id: str
    account: str | None
    scopes: list[str]


class PrincipalView(Model):
    """Who a credential belongs to. `expires_at_s` is `expires_at` in Unix seconds."""

    kind: str
    id: str
    account: str | None
    scopes: list[str]
    expires_at: datetime | None
    expires_at_s: float | None
