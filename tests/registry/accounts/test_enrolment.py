"""Devices' identity: challenge, enrolment, tokens (docs/wire.md "Identity of a device")."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OKPKey
from sqlalchemy import text

from kit.clock import rfc3339
from services.registry.accounts.enrolment.errors import ChallengeInvalid
from services.registry.accounts.enrolment.proofs import Challenges
from tests.registry.conftest import SERVICE, Phones, Registry, code, user


async def enrolment_key(registry: Registry, **body: object) -> dict[str, str]:
    answer = await registry.acme.post("/v1/enrolment-keys", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def used(registry: Registry) -> int:
    return int((await registry.acme.get("/v1/enrolment-keys")).json()["items"][0]["used"])


async def claims_of(registry: Registry, token: str) -> dict[str, object]:
    """Verify a token as the gateway does: with the public keys alone."""
    answer = (await registry.client(SERVICE).get("/internal/device-token-keys")).json()
    keys = {one["key_id"]: one["public_key"] for one in answer["keys"]}
    x = base64.urlsafe_b64encode(base64.b64decode(next(iter(keys.values())))).decode().rstrip("=")
    decoded = jwt.decode(token, OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x}), algorithms=["Ed25519"])
    assert decoded.header == {"alg": "Ed25519", "typ": "JWT", "kid": next(iter(keys))}
    return decoded.claims


async def test_a_device_enrols_and_renews(registry: Registry, phone: Phones) -> None:
    key = await enrolment_key(registry)
    one = phone()
    enrolled = await one.enrol(key["key"])
    assert enrolled.status_code == 201, enrolled.text
    assert enrolled.headers["cache-control"] == "no-store"
    body = enrolled.json()
    trust = body["trust"]
    assert trust["package_keys"] == [
        {"key_id": registry.packager.key_id("acme"), "public_key": base64.b64encode(registry.packager.public_key("acme")).decode()}
    ]
    assert [one["key_id"] for one in trust["assignment_keys"]] == [registry.deployer.key_id("acme")]
    now = int(registry.clock.now().timestamp())
    expected = {"iss": "latebind", "aud": "latebind-device", "acc": "acme", "sub": one.install_id, "iat": now, "exp": now + 3600}
    assert await claims_of(registry, body["token"]) == expected
    assert body["expires_at"] == rfc3339(registry.clock.now() + timedelta(hours=1))
    registry.clock.advance(3000)
    renewed = await one.renew()
    assert renewed.status_code == 200
    assert (await claims_of(registry, renewed.json()["token"]))["iat"] == now + 3000
    assert await used(registry) == 1


async def test_enrolling_again_with_the_same_key_uses_no_quota(registry: Registry, phone: Phones) -> None:
    key = await enrolment_key(registry, quota=1)
    one = phone()
    assert (await one.enrol(key["key"])).status_code == 201
    assert (await one.enrol(key["key"])).status_code == 201
    assert await used(registry) == 1
    impostor = phone(install_id=one.install_id)
    assert code(await impostor.enrol(key["key"])) == (409, "INSTALL_ALREADY_ENROLLED")
    assert code(await phone().enrol(key["key"])) == (403, "ENROLMENT_QUOTA_EXHAUSTED")
    assert await used(registry) == 1


async def test_the_quota_is_exact_under_a_thousand_at_once(registry: Registry, phone: Phones) -> None:
    key = await enrolment_key(registry, quota=100)

    async def enrol() -> int:
        one = phone()
        while (status := (await one.enrol(key["key"])).status_code) == 503:  # a crowded database sends people away; devices come again
            await asyncio.sleep(0.2)
        return status

    statuses = await asyncio.gather(*(enrol() for _ in range(1000)))
    assert (statuses.count(201), statuses.count(403)) == (100, 900)
    async with registry.ports.database.read() as reader:
        assert await reader.scalar(text("SELECT count(*) FROM installs")) == 100
    assert await used(registry) == 100


async def test_a_nonce_is_accepted_once_and_for_a_minute(registry: Registry, phone: Phones) -> None:
    key = await enrolment_key(registry)
    one = phone()
    nonce = await one.nonce()
    answers = await asyncio.gather(*(one.enrol(key["key"], nonce=nonce) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 19
    assert code(await one.renew(nonce=nonce)) == (401, "CHALLENGE_INVALID")
    late = await one.nonce()
    registry.clock.advance(60)
    assert code(await one.renew(nonce=late)) == (401, "CHALLENGE_INVALID")
    for forged in ("", "x", late[:-2] + "AA", late + "=", late + "A", "é" * 20, "A" * 54):
        assert code(await one.renew(nonce=forged)) == (401, "CHALLENGE_INVALID")
    assert (await one.renew()).status_code == 200


async def test_used_nonces_are_cleared_away_when_they_have_expired(registry: Registry, phone: Phones) -> None:
    key = await enrolment_key(registry)
    await phone().enrol(key["key"])
    registry.clock.advance(61)
    await phone().enrol(key["key"])
    service = registry.part.app._api.state.enrolment  # type: ignore[attr-defined]
    assert await service.forget_nonces() == 1
    async with registry.ports.database.read() as reader:
        assert await reader.scalar(text("SELECT count(*) FROM used_nonces")) == 1


async def test_a_refused_enrolment_leaves_nothing_behind(registry: Registry, phone: Phones) -> None:
    key = await enrolment_key(registry)
    one, stranger = phone(), phone()
    signature = {"signature": stranger.sign("something else")}
    refusals = {
        "PROOF_INVALID": await one.enrol(key["key"], **signature),
        "CHALLENGE_INVALID": await one.enrol(key["key"], nonce="A" * 54),
        "MALFORMED_BODY": await one.enrol(key["key"], install_id=one.install_id.upper()),
    }
    for expected, answer in refusals.items():
        assert code(answer)[1] == expected
    assert code(await one.enrol(key["key"], public_key=stranger.public_key)) == (401, "PROOF_INVALID")
    assert code(await one.enrol(key["key"], public_key="AAAA")) == (401, "PROOF_INVALID")
    assert code(await one.renew()) == (401, "INSTALL_UNKNOWN")
    assert await used(registry) == 0


async def test_enrolment_keys_that_do_not_hold(registry: Registry, phone: Phones) -> None:
    good = await enrolment_key(registry)
    api_key = (await registry.acme.post("/v1/api-keys", json={"scopes": ["admin"]})).json()["key"]
    foreign = await phone("other").enrol(good["key"])
    unknown = await phone("nobody").enrol(good["key"])
    assert code(foreign) == (401, "ENROLMENT_KEY_INVALID")
    assert foreign.content == unknown.content
    for wrong in (api_key, good["key"][:-1], good["key"].replace("lbe_", "lbk_")):
        assert code(await phone().enrol(wrong)) == (401, "ENROLMENT_KEY_INVALID")
    until = rfc3339(registry.clock.now() + timedelta(minutes=5))
    short = await enrolment_key(registry, expires_at=until)
    registry.clock.advance(300)
    assert code(await phone().enrol(short["key"])) == (401, "ENROLMENT_KEY_EXPIRED")
    enrolled = phone()
    assert (await enrolled.enrol(good["key"])).status_code == 201
    assert (await registry.acme.post(f"/v1/enrolment-keys/{good['id']}:revoke")).status_code == 200
    assert code(await phone().enrol(good["key"])) == (401, "ENROLMENT_KEY_EXPIRED")
    assert (await enrolled.renew()).status_code == 200  # who has enrolled stays enrolled


async def test_a_token_needs_the_key_that_enrolled(registry: Registry, phone: Phones) -> None:
    key = await enrolment_key(registry)
    one = phone()
    await one.enrol(key["key"])
    thief = phone(install_id=one.install_id)
    stolen, unknown = await thief.renew(), await phone().renew()
    assert code(stolen) == (401, "INSTALL_UNKNOWN")
    assert stolen.content == unknown.content
    elsewhere = phone("other", install_id=one.install_id)
    elsewhere.key = one.key
    assert (await elsewhere.renew()).content == unknown.content


async def test_an_account_whose_signing_keys_are_on_their_way_asks_to_wait(registry: Registry, phone: Phones) -> None:
    other = registry.client(user("other"))
    key = (await other.post("/v1/enrolment-keys", json={"quota": 1})).json()["key"]
    one = phone("other")
    answer = await one.enrol(key)
    assert code(answer) == (503, "ACCOUNT_NOT_READY")
    assert answer.headers["retry-after"] == "1"
    await registry.announce_keys("other")
    await registry.announce_keys("other")  # an announcement may come twice
    enrolled = await one.enrol(key)
    assert enrolled.status_code == 201
    assert len(enrolled.json()["trust"]["package_keys"]) == 1


NOW = datetime(2026, 11, 22, tzinfo=UTC)
CHALLENGES = Challenges(b"m" * 32)


@given(st.data())
def test_no_other_text_passes_for_a_nonce(data: st.DataObject) -> None:
    nonce, expires_at = CHALLENGES.issue(NOW)
    assert CHALLENGES.check(nonce, NOW) == expires_at
    position = data.draw(st.integers(0, len(nonce) - 1))
    character = data.draw(st.characters(codec="ascii").filter(lambda one: one != nonce[position]))
    with pytest.raises(ChallengeInvalid):
        CHALLENGES.check(nonce[:position] + character + nonce[position + 1 :], NOW)
    with pytest.raises(ChallengeInvalid):
        Challenges(b"n" * 32).check(nonce, NOW)
