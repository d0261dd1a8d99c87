"""The Signer port: signs packages for an account. Adapter `local` keeps one master key in a file; an external key store can follow.

Both sides of a signature are bytes: the SDK verifies what any adapter signed in the same way. It does not know what a package is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from kit.signing import DerivedSigner, Envelope, load_master_key

#: The role of the packager's keys: devices trust them for packages and for nothing else.
ROLE = "package"

#: scheme -> adapter; the contract suite runs over these.
SCHEMES = ("local",)


class Signer(Protocol):
    """Signs with one Ed25519 key per account. The same bytes give an envelope that verifies with `public_key` under `key_id`."""

    def sign(self, account: str, payload_type: str, body: bytes) -> Envelope:
        """Return a DSSE envelope over `body`."""
        ...

    def public_key(self, account: str) -> bytes:
        """Return the raw 32-byte public key of the account."""
        ...

    def key_id(self, account: str) -> str:
        """Return the lower-case hex SHA-256 of the public key."""
        ...


def open_signer(url: str, *, own_key: Path | None = None) -> Signer:
    """Open the signer that the URL names: `local:/path/to/master.key` (made at first use, mode 0600); without a URL the one on `own_key`.

    Raises `ValueError` for another scheme and `kit.signing.MasterKeyError` for a key file that cannot be trusted.
    """
    parts = urlsplit(f"local:{own_key.absolute()}" if own_key and not url else url)
    if parts.scheme == "local":
        return DerivedSigner(load_master_key(Path(parts.path)), ROLE)
    raise ValueError(f"no signer for {parts.scheme!r}: use one of {', '.join(SCHEMES)}")
