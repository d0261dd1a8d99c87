"""Topics of accounts, and their messages."""

from __future__ import annotations

from latebind_proto.events_pb2 import AccountCreated, SigningKeyAnnounced
from services.registry.accounts.domain import SigningKey

ACCOUNT_CREATED = "account.created"
SIGNING_KEY_ANNOUNCED = "signing-key.announced"


def account_created(account: str) -> bytes:
    """Return the message of a new account."""
    return AccountCreated(account=account).SerializeToString()


def read_signing_key(value: bytes) -> tuple[str, SigningKey]:
    """Return the account and the key that was announced. Raises `DecodeError` for bytes that are not this message."""
    message = SigningKeyAnnounced.FromString(value)
    return message.account, SigningKey(message.role, message.key_id, message.public_key)
