"""What every signer promises: the same bytes verify with the key it names, for one account and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.signing import EnvelopeInvalid, key_id_of, verify_envelope
from services.packager.signing import SCHEMES, Signer, open_signer


@pytest.fixture(params=SCHEMES)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"local": f"local:{tmp_path / 'keys' / 'package.key'}"}[request.param]


@pytest.fixture
def signer(address: str) -> Signer:
    return open_signer(address)


def test_what_it_signs_verifies_with_the_key_it_names(signer: Signer) -> None:
    envelope = signer.sign("acme", "text/plain", b"body")
    assert envelope["signatures"][0]["keyid"] == signer.key_id("acme") == key_id_of(signer.public_key("acme"))
    assert len(signer.public_key("acme")) == 32
    assert verify_envelope(envelope, "text/plain", {signer.key_id("acme"): signer.public_key("acme")}) == b"body"


def test_accounts_do_not_share_keys(signer: Signer) -> None:
    assert signer.public_key("acme") != signer.public_key("other")
    with pytest.raises(EnvelopeInvalid):
        verify_envelope(signer.sign("acme", "text/plain", b"body"), "text/plain", {signer.key_id("acme"): signer.public_key("other")})


def test_it_is_the_same_signer_after_a_restart(signer: Signer, address: str) -> None:
    again = open_signer(address)
    assert again.public_key("acme") == signer.public_key("acme")
    assert again.sign("acme", "text/plain", b"body") == signer.sign("acme", "text/plain", b"body")


def test_an_unknown_scheme_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="local"):
        open_signer("kms://somewhere/key")
