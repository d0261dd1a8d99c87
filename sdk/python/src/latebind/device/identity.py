"""Who this install is: a random id, an Ed25519 key pair, and the keys that were pinned at enrolment.

Kept in one file of mode 0600 beside the cache, outside what eviction may touch. Never a hardware id. The server's part (nonce, token) is
in `api.py`.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latebind._files import read_json, remove, sync_folder, write_json
from latebind.device.verify import Trust, parse_trust
from latebind.errors import LatebindError, VerificationFailed


@dataclass(frozen=True, slots=True)
class Identity:
    """One install of one account. `trust` is None until it is enrolled or was given keys; `enrolled`: the server knows it."""

    account: str
    install_id: str
    private_key: bytes
    trust: Trust | None
    enrolled: bool = False

    @property
    def public_key_text(self) -> str:
        """The raw 32-byte public key in base64."""
        return base64.b64encode(self._key().public_key().public_bytes_raw()).decode()

    def sign_enrolment(self, nonce: str) -> str:
        """Proof of possession for enrolment, base64."""
        return self._sign(f"latebind-enrol-v1\n{self.account}\n{self.install_id}\n{self.public_key_text}\n{nonce}")

    def sign_token_request(self, nonce: str) -> str:
        """Proof of possession for a new token, base64."""
        return self._sign(f"latebind-token-v1\n{self.account}\n{self.install_id}\n{nonce}")

    def _sign(self, text: str) -> str:
        return base64.b64encode(self._key().sign(text.encode())).decode()

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private_key)


class IdentityFile:
    """Keeps the identity of one account's install. The first use makes it."""

    def __init__(self, path: Path, account: str) -> None:
        self._path = path
        self._account = account

    def load(self) -> Identity:
        """The stored identity, or a new one that is stored before this returns. Raises LatebindError when the file is damaged, DiskFull."""
        raw = read_json(self._path)
        if raw is None:
            if self._path.exists():
                raise LatebindError(f"{self._path} is damaged; remove it to enrol this install anew", code="IDENTITY_DAMAGED")
            return self._create()
        return self._parse(raw)

    def pin(self, identity: Identity, trust: Any) -> Identity:
        """Store the keys that the server named at enrolment; from then on only they count. Keys that the app gave are kept instead.

        Raises VerificationFailed (`TRUST_INVALID`) when a role has no usable key: such a device could never accept anything.
        """
        parsed = identity.trust or parse_trust(trust)
        if not parsed.package_keys or not parsed.assignment_keys:
            raise VerificationFailed("the server named no signing keys yet; try again in a moment", code="TRUST_INVALID")
        return self._changed(identity, trust=parsed, enrolled=True)

    def give(self, identity: Identity, trust: Trust) -> Identity:
        """Store keys that the app itself brought: they win over what a server named, or will name."""
        return identity if identity.trust == trust else self._changed(identity, trust=trust)

    def _changed(self, identity: Identity, **changes: Any) -> Identity:
        changed = replace(identity, **changes)
        self._store(changed)
        return changed

    def _create(self) -> Identity:
        key = Ed25519PrivateKey.generate().private_bytes_raw()
        identity = Identity(self._account, str(uuid.uuid4()), key, None)
        # Made under a name of its own and linked: when two processes start at once, both end up with the identity that was there first.
        candidate = self._path.with_name(f"{self._path.name}.{identity.install_id}")
        self._store(identity, candidate)
        try:
            self._path.hardlink_to(candidate)
            sync_folder(self._path.parent)
        except FileExistsError:
            return self._parse(read_json(self._path))
        finally:
            remove(candidate)
        return identity

    def _store(self, identity: Identity, path: Path | None = None) -> None:
        trust = None
        if identity.trust is not None:
            trust = {
                "package_keys": _dump_keys(identity.trust.package_keys),
                "assignment_keys": _dump_keys(identity.trust.assignment_keys),
            }
        write_json(
            path or self._path,
            {
                "account": identity.account,
                "install_id": identity.install_id,
                "private_key": base64.b64encode(identity.private_key).decode(),
                "trust": trust,
                "enrolled": identity.enrolled,
            },
            mode=0o600,
        )

    def _parse(self, raw: Any) -> Identity:
        try:
            key = base64.b64decode(raw["private_key"], validate=True)
            Ed25519PrivateKey.from_private_bytes(key)
            trust = None if raw["trust"] is None else parse_trust(raw["trust"])
            # Before the app could bring keys, only enrolment did.
            enrolled = bool(raw.get("enrolled", trust is not None))
            identity = Identity(str(raw["account"]), str(uuid.UUID(raw["install_id"])), key, trust, enrolled)
        except (KeyError, TypeError, ValueError, AttributeError, VerificationFailed) as error:
            raise LatebindError(f"{self._path} is damaged; remove it to enrol this install anew", code="IDENTITY_DAMAGED") from error
        if identity.account != self._account:
            raise LatebindError(f"{self._path} belongs to the account {identity.account!r}", code="IDENTITY_DAMAGED")
        return identity


def _dump_keys(keys: Mapping[str, bytes]) -> list[dict[str, str]]:
    return [{"key_id": name, "public_key": base64.b64encode(key).decode()} for name, key in keys.items()]
