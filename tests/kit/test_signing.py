"""DSSE and Ed25519 against published vectors, and the master key file."""

from __future__ import annotations

import base64
import copy
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from kit.signing import (
    DerivedSigner,
    EnvelopeInvalid,
    MasterKeyError,
    key_id_of,
    load_master_key,
    pae,
    sign_with,
    verify_envelope,
)

MASTER = bytes(range(32))

# RFC 8032 section 7.1, tests 1, 2, 3 and SHA(abc): secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_ed25519_agrees_with_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert key.public_key().public_bytes_raw().hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature


def test_pae_agrees_with_the_published_dsse_example() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("", b"") == b"DSSEv1 0  0 "


def test_pae_counts_bytes_and_not_characters() -> None:
    assert pae("é", "ü".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xbc"


def test_an_envelope_signs_its_pae() -> None:
    secret, public, _, _ = RFC_8032[0]
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    envelope = sign_with(key, "http://example.com/HelloWorld", b"hello world")
    assert base64.b64decode(envelope["payload"]) == b"hello world"
    assert envelope["signatures"][0]["keyid"] == key_id_of(bytes.fromhex(public))
    key.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")


def test_derived_keys_are_stable_vectors() -> None:
    # Devices pin these keys: a change of the derivation would lock every installed device out.
    signer = DerivedSigner(MASTER, "package")
    assert signer.public_key("acme").hex() == "ba7cf92b7523e4b19ae92631690d245da5e5b1f415bdc1dde9075d1486bd6f4c"
    assert signer.key_id("acme") == key_id_of(signer.public_key("acme"))


def test_roles_accounts_and_masters_have_keys_of_their_own() -> None:
    keys = {
        DerivedSigner(master, role).public_key(account)
        for master in (MASTER, bytes(32))
        for role in ("package", "assignment")
        for account in ("acme", "other")
    }
    assert len(keys) == 8


@given(body=st.binary(max_size=300), kind=st.text(max_size=40))
def test_what_was_signed_is_what_is_verified(body: bytes, kind: str) -> None:
    signer = DerivedSigner(MASTER, "package")
    envelope = signer.sign("acme", kind, body)
    assert verify_envelope(envelope, kind, {signer.key_id("acme"): signer.public_key("acme")}) == body
    assert signer.sign("acme", kind, body) == envelope


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), part=st.sampled_from(["payload", "sig"]))
def test_a_flipped_bit_is_refused(position: int, bit: int, part: str) -> None:
    signer = DerivedSigner(MASTER, "package")
    keys = {signer.key_id("acme"): signer.public_key("acme")}
    envelope = signer.sign("acme", "text/plain", b"the body of an envelope")
    holder = envelope if part == "payload" else envelope["signatures"][0]
    raw = bytearray(base64.b64decode(holder[part]))  # type: ignore[literal-required]
    raw[position % len(raw)] ^= 1 << bit
    holder[part] = base64.b64encode(bytes(raw)).decode()  # type: ignore[literal-required]
    with pytest.raises(EnvelopeInvalid):
        verify_envelope(envelope, "text/plain", keys)


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "text/html"},
        {"payload": None},
        {"payload": "not base64!"},
        {"signatures": None},
        {"signatures": []},
        {"signatures": ["x"]},
        {"signatures": [{"keyid": "unknown", "sig": ""}]},
    ],
)
def test_a_malformed_envelope_is_refused(change: dict[str, object]) -> None:
    signer = DerivedSigner(MASTER, "package")
    keys = {signer.key_id("acme"): signer.public_key("acme")}
    envelope = {**copy.deepcopy(signer.sign("acme", "text/plain", b"body")), **change}
    with pytest.raises(EnvelopeInvalid):
        verify_envelope(envelope, "text/plain", keys)


def test_a_key_of_another_account_is_not_trusted() -> None:
    signer = DerivedSigner(MASTER, "package")
    envelope = signer.sign("other", "text/plain", b"body")
    with pytest.raises(EnvelopeInvalid):
        verify_envelope(envelope, "text/plain", {signer.key_id("acme"): signer.public_key("acme")})
    # The id of a trusted key over the bytes of another one does not help either.
    with pytest.raises(EnvelopeInvalid):
        verify_envelope(envelope, "text/plain", {signer.key_id("other"): signer.public_key("acme")})
    for nothing in (None, 3, [], "text"):
        with pytest.raises(EnvelopeInvalid):
            verify_envelope(nothing, "text/plain", {})


def test_a_master_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "master.key"
    key = load_master_key(path)
    assert len(key) == 32
    assert load_master_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["master.key"]


def test_processes_that_start_together_get_the_same_master_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: load_master_key(tmp_path / "master.key"), range(32)))
    assert len(keys) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["master.key"]


def test_a_master_key_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(bytes(31))
    path.chmod(0o600)
    with pytest.raises(MasterKeyError, match="32 bytes"):
        load_master_key(path)
    path.write_bytes(bytes(32))
    path.chmod(0o644)
    with pytest.raises(MasterKeyError, match="0600"):
        load_master_key(path)
    link = tmp_path / "link.key"
    link.symlink_to(path)
    with pytest.raises(MasterKeyError):
        load_master_key(link)
    with pytest.raises(MasterKeyError):
        DerivedSigner(bytes(16), "package")


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_cannot_reach_into_each_other(name: str) -> None:
    with pytest.raises(ValueError, match="without '/'"):
        DerivedSigner(MASTER, name)
    with pytest.raises(ValueError, match="without '/'"):
        DerivedSigner(MASTER, "package").sign(name, "text/plain", b"")
