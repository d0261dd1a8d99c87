"""What a device accepts, and every way in which it must not."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latebind.device import verify
from latebind.device.verify import Expected, Trust
from latebind.errors import VerificationFailed
from tests.sdk.simulator import ACCOUNT, Key, Package, Simulator, at

SIMULATOR = Simulator()
PACKAGE = SIMULATOR.add_adder(1)
TRUST = Trust({SIMULATOR.package_key.id: SIMULATOR.package_key.raw}, {SIMULATOR.assignment_key.id: SIMULATOR.assignment_key.raw})
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
EXPECTED = Expected(ACCOUNT, "install", "c_test", "nonce-nonce-nonce", PACKAGE.digest, last_counter=100)
SIMULATOR._server.server_close()


def check_package(package: Package = PACKAGE, **changes: Any) -> None:
    arguments = {"digest": package.digest, "account": ACCOUNT, "trust": TRUST, **changes}
    verify.verify_package(package.manifest, package.signature, **arguments)


def assignment(**changes: Any) -> dict[str, Any]:
    return {
        "type": "latebind-assignment-v1",
        "account": ACCOUNT,
        "install_id": "install",
        "collection": "c_test",
        "revision": 3,
        "package": PACKAGE.digest,
        "counter": 101,
        "nonce": "nonce-nonce-nonce",
        "issued_at": at(NOW),
        "expires_at": at(NOW + timedelta(hours=24)),
        **changes,
    }


def signed(payload: Any, key: Key = SIMULATOR.assignment_key, kind: str = verify.ASSIGNMENT_PAYLOAD_TYPE) -> dict[str, Any]:
    return key.envelope(kind, json.dumps(payload).encode())


def code_of(call: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(VerificationFailed) as caught:
        call(*arguments, **keywords)
    return caught.value.code


def check_assignment(envelope: Any, *, now: float = NOW.timestamp(), expected: Expected = EXPECTED) -> verify.Assignment:
    return verify.verify_assignment(envelope, expected, trust=TRUST, now=now)


def test_the_published_vector_of_the_encoding() -> None:
    """Protocol.md of DSSE v1."""
    encoded = verify.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_good_package_and_a_good_assignment_pass() -> None:
    check_package()
    accepted = check_assignment(signed(assignment()))
    assert (accepted.package, accepted.counter, accepted.issued_at) == (PACKAGE.digest, 101, NOW.timestamp())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_flipped_bit_passes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["manifest", "signature"]))
    raw = bytearray(getattr(PACKAGE, name))
    position, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
    raw[position] ^= 1 << bit
    with pytest.raises(VerificationFailed):
        check_package(replace(PACKAGE, **{name: bytes(raw)}))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_changed_length_passes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["manifest", "signature"]))
    raw = getattr(PACKAGE, name)
    cut = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:cut] if data.draw(st.booleans()) else raw + data.draw(st.sampled_from([b"{}", b"\0", b"a"]))
    with pytest.raises(VerificationFailed):
        check_package(replace(PACKAGE, **{name: changed}))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_flipped_bit_of_an_assignment_passes(data: st.DataObject) -> None:
    raw = bytearray(json.dumps(signed(assignment())).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((VerificationFailed, ValueError)):
        check_assignment(json.loads(bytes(raw)))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"type": "latebind-assignment-v2"}, "ASSIGNMENT_INVALID"),
        ({"account": "evil"}, "ASSIGNMENT_FOREIGN"),
        ({"install_id": "another"}, "ASSIGNMENT_FOREIGN"),
        ({"collection": "c_other"}, "ASSIGNMENT_FOREIGN"),
        ({"package": "0" * 64}, "ASSIGNMENT_FOREIGN"),
        ({"package": None}, "ASSIGNMENT_INVALID"),
        ({"nonce": "another"}, "ASSIGNMENT_REPLAYED"),
        ({"counter": 99}, "ASSIGNMENT_REPLAYED"),
        ({"counter": "101"}, "ASSIGNMENT_INVALID"),
        ({"counter": True}, "ASSIGNMENT_INVALID"),
        ({"revision": -1}, "ASSIGNMENT_INVALID"),
        ({"expires_at": at(NOW)}, "ASSIGNMENT_EXPIRED"),
        ({"expires_at": at(NOW - timedelta(days=1))}, "ASSIGNMENT_EXPIRED"),
        ({"issued_at": at(NOW + timedelta(days=2))}, "ASSIGNMENT_EXPIRED"),
        ({"expires_at": None}, "ASSIGNMENT_INVALID"),
        ({"issued_at": "2026-11-22T12:00:00"}, "ASSIGNMENT_INVALID"),
    ],
)
def test_an_assignment_that_is_not_for_this_request_is_refused(change: dict[str, Any], code: str) -> None:
    assert code_of(check_assignment, signed(assignment(**change))) == code


def test_each_key_signs_only_for_its_role() -> None:
    assert code_of(check_assignment, signed(assignment(), SIMULATOR.package_key)) == "SIGNATURE_UNTRUSTED"
    stolen = SIMULATOR.sign(PACKAGE.parsed, key=SIMULATOR.assignment_key)
    assert code_of(check_package, stolen) == "SIGNATURE_UNTRUSTED"
    assert code_of(check_assignment, signed(assignment(), Key())) == "SIGNATURE_UNTRUSTED"
    forged = signed(assignment(), Key())
    forged["signatures"][0]["keyid"] = SIMULATOR.assignment_key.id
    assert code_of(check_assignment, forged) == "SIGNATURE_INVALID"


def test_one_kind_of_signed_data_cannot_stand_in_for_another() -> None:
    assert code_of(check_assignment, signed(assignment(), kind=verify.PACKAGE_PAYLOAD_TYPE)) == "ENVELOPE_INVALID"
    relabelled = signed(assignment(), kind="application/json")
    relabelled["payloadType"] = verify.ASSIGNMENT_PAYLOAD_TYPE
    assert code_of(check_assignment, relabelled) == "SIGNATURE_INVALID"


def test_a_package_of_another_account_or_digest_is_refused() -> None:
    foreign = SIMULATOR.add_package(b"", account="evil")
    assert code_of(check_package, foreign) == "FOREIGN_ACCOUNT"
    assert code_of(check_package, PACKAGE, digest="0" * 64) == "DIGEST_MISMATCH"
    other = SIMULATOR.add_adder(2)
    assert code_of(check_package, replace(PACKAGE, signature=other.signature)) == "STATEMENT_INVALID"


def test_the_statement_must_name_the_manifests_files_in_order() -> None:
    manifest = PACKAGE.parsed
    for files in (manifest["files"][::-1], manifest["files"][:-1], [{**manifest["files"][0], "sha256": "0" * 64}, *manifest["files"][1:]]):
        package = SIMULATOR.sign({**manifest, "files": files})
        assert code_of(check_package, replace(PACKAGE, signature=package.signature)) == "STATEMENT_INVALID"
        statement = json.loads(base64.b64decode(json.loads(package.signature)["payload"]))
        statement["subject"][0]["digest"]["sha256"] = PACKAGE.digest
        envelope = signed(statement, SIMULATOR.package_key, verify.PACKAGE_PAYLOAD_TYPE)
        assert code_of(check_package, replace(PACKAGE, signature=json.dumps(envelope).encode())) == "STATEMENT_INVALID"


@pytest.mark.parametrize("envelope", [None, [], {}, "x", {"payloadType": verify.ASSIGNMENT_PAYLOAD_TYPE, "payload": 5, "signatures": []}])
def test_what_is_no_envelope_is_refused(envelope: Any) -> None:
    assert code_of(check_assignment, envelope) == "ENVELOPE_INVALID"


@pytest.mark.parametrize("clock", [0.0, NOW.timestamp() - 1, NOW.timestamp() + 3600])
def test_a_clock_that_is_behind_is_corrected_by_signed_time(clock: float) -> None:
    """A device in 1970 that has seen a newer signed time does not take what had expired by then."""
    now = verify.effective_now(clock, NOW.timestamp())
    check_assignment(signed(assignment()), now=now)
    old = assignment(issued_at=at(NOW - timedelta(days=3)), expires_at=at(NOW - timedelta(days=2)))
    assert code_of(check_assignment, signed(old), now=now) == "ASSIGNMENT_EXPIRED"


def test_keys_must_be_what_their_ids_say() -> None:
    good = {"package_keys": [SIMULATOR.package_key.public()], "assignment_keys": [SIMULATOR.assignment_key.public()]}
    assert verify.parse_trust(good) == TRUST
    wrong = {**SIMULATOR.package_key.public(), "key_id": SIMULATOR.assignment_key.id}
    for bad in (None, {"package_keys": [wrong]}, {"package_keys": ["x"]}, {"package_keys": [{"key_id": "a", "public_key": "AAAA"}]}):
        assert code_of(verify.parse_trust, bad) in {"TRUST_INVALID", "ENVELOPE_INVALID"}


def test_deep_or_ambiguous_json_is_refused() -> None:
    for payload in (b"[" * 100_000, b'{"type": "a", "type": "b"}', b'{"type": NaN}', b"\xff"):
        envelope = SIMULATOR.assignment_key.envelope(verify.ASSIGNMENT_PAYLOAD_TYPE, payload)
        assert code_of(check_assignment, envelope) == "JSON_INVALID"
