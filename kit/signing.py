"""DSSE envelopes with Ed25519, and one signing key per account derived from a master key.

For services that sign: they hold one 32-byte master key and derive a key pair for each account and role, so nothing has to be
stored per account. Verification is here for readers of envelopes on the server; the device SDK has its own. This module does not
know what is signed, keeps no trust store and does not rotate keys.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MASTER_KEY_BYTES = 32

_KEYS_KEPT = 4096


class Signature(TypedDict):
    """One signature of an envelope: `keyid` names the key, `sig` is base64 of the 64 signature bytes."""

    keyid: str
    sig: str


class Envelope(TypedDict):
    """A DSSE envelope: `payload` is base64 of the signed bytes."""

    payloadType: str
    payload: str
    signatures: list[Signature]


class SigningError(Exception):
    """Base of what this module raises."""


class MasterKeyError(SigningError):
    """The master key file cannot be used: wrong size, not a regular file, or readable by others."""


class EnvelopeInvalid(SigningError):
    """An envelope is malformed, of another type than expected, or carries no valid signature by a trusted key."""


def pae(payload_type: str, body: bytes) -> bytes:
    """Pre-authentication encoding, the bytes that are signed.

    Source: <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def key_id_of(public_key: bytes) -> str:
    """Lower-case hex SHA-256 of a raw 32-byte Ed25519 public key."""
    return hashlib.sha256(public_key).hexdigest()


def load_master_key(path: Path) -> bytes:
    """Read the 32-byte master key at `path`; make it (mode 0600) when there is none.

    The file appears whole or not at all, and when several processes start at once they all get the key that came first.

    Raises:
        MasterKeyError: the file is not a regular file of 32 bytes, or group or others may read it.
    """
    try:
        return _read_master_key(path)
    except FileNotFoundError:
        _create_master_key(path)
        return _read_master_key(path)


def verify_envelope(envelope: object, payload_type: str, keys: Mapping[str, bytes]) -> bytes:
    """Return the signed bytes of `envelope` when one of `keys` signed them.

    Args:
        envelope: what was parsed from JSON; nothing about it is trusted.
        payload_type: the type the caller expects; another one is refused.
        keys: trusted keys for this role, key id to raw 32-byte Ed25519 public key. The algorithm is always Ed25519.

    Raises:
        EnvelopeInvalid: malformed, another type, no signature by a trusted key, or a wrong signature by one.
    """
    if not isinstance(envelope, dict) or envelope.get("payloadType") != payload_type:
        raise EnvelopeInvalid("not an envelope of the expected type")
    body = _unbase64(envelope.get("payload"))
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list):
        raise EnvelopeInvalid("the envelope has no list of signatures")
    for signature in signatures:
        if not isinstance(signature, dict):
            raise EnvelopeInvalid("a signature is not an object")
        public_key = keys.get(str(signature.get("keyid")))
        if public_key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(_unbase64(signature.get("sig")), pae(payload_type, body))
        except (InvalidSignature, ValueError) as error:
            raise EnvelopeInvalid("the signature does not match") from error
        return body
    raise EnvelopeInvalid("no trusted key signed this")


def sign_with(key: Ed25519PrivateKey, payload_type: str, body: bytes) -> Envelope:
    """Envelope over `body`, signed with one private key (deterministic, RFC 8032)."""
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(body).decode("ascii"),
        "signatures": [
            {
                "keyid": key_id_of(key.public_key().public_bytes_raw()),
                "sig": base64.b64encode(key.sign(pae(payload_type, body))).decode("ascii"),
            }
        ],
    }


class DerivedSigner:
    """Signs for any account with a key derived from one master key.

    The Ed25519 seed is HKDF-SHA256 (RFC 5869, no salt, info `latebind/<role>/<account>`, 32 bytes) of the master key. The same
    master key, role and account always give the same key; different roles or accounts give unrelated ones.
    """

    def __init__(self, master: bytes, role: str) -> None:
        if len(master) != MASTER_KEY_BYTES:
            raise MasterKeyError(f"a master key has {MASTER_KEY_BYTES} bytes, this one {len(master)}")
        if not role or "/" in role:
            raise ValueError("a role is a word without '/'")
        self.role = role
        self._master = master
        self._key = lru_cache(maxsize=_KEYS_KEPT)(self._derive)

    def sign(self, account: str, payload_type: str, body: bytes) -> Envelope:
        """DSSE envelope over `body`, signed with the key of `account`. The same input gives the same envelope."""
        return sign_with(self._key(account), payload_type, body)

    def public_key(self, account: str) -> bytes:
        """Raw 32-byte Ed25519 public key of `account`."""
        return self._key(account).public_key().public_bytes_raw()

    def key_id(self, account: str) -> str:
        """Key id of `account`: lower-case hex SHA-256 of its raw public key."""
        return key_id_of(self.public_key(account))

    def _derive(self, account: str) -> Ed25519PrivateKey:
        if not account or "/" in account:
            raise ValueError("an account is a slug without '/'")
        info = f"latebind/{self.role}/{account}".encode()
        seed = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._master)
        return Ed25519PrivateKey.from_private_bytes(seed)


def _unbase64(text: object) -> bytes:
    if not isinstance(text, str):
        raise EnvelopeInvalid("base64 text expected")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EnvelopeInvalid("not valid base64") from error


def _read_master_key(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MasterKeyError(f"{path.name}: cannot be read ({error.strerror})") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise MasterKeyError(f"{path.name} is not a regular file")
        if status.st_mode & 0o077:
            raise MasterKeyError(f"{path.name} may be read by others; set its mode to 0600")
        key = file.read(MASTER_KEY_BYTES + 1)
    if len(key) != MASTER_KEY_BYTES:
        raise MasterKeyError(f"{path.name} does not hold exactly {MASTER_KEY_BYTES} bytes")
    return key


def _create_master_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(MASTER_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: whoever comes second keeps the first key.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
