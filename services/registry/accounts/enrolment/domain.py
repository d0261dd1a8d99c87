"""Devices' identity as values, and the texts that devices sign (docs/wire.md "Identity of a device"). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

ISSUER = "latebind"
AUDIENCE = "latebind-device"
NONCE_LIFETIME = timedelta(seconds=60)
#: No setting makes a device token live longer.
LONGEST_TOKEN = timedelta(hours=1)
INSTALL_ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


@dataclass(frozen=True, slots=True)
class Install:
    """One installation of an app that has enrolled."""

    account: str
    install_id: str
    public_key: bytes
    enrolment_key_id: str
    enrolled_at: datetime


def enrolment_text(account: str, install_id: str, public_key: str, nonce: str) -> bytes:
    """Return what a device signs to enrol."""
    return f"latebind-enrol-v1\n{account}\n{install_id}\n{public_key}\n{nonce}".encode()


def token_text(account: str, install_id: str, nonce: str) -> bytes:
    """Return what a device signs for a new token."""
    return f"latebind-token-v1\n{account}\n{install_id}\n{nonce}".encode()
