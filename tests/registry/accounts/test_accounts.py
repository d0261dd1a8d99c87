"""Accounts, API keys, the operator key, and what the gateway asks."""

from __future__ import annotations

import asyncio
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from kit.clock import FakeClock, rfc3339
from kit.identity import Kind
from latebind_proto import events_pb2
from services.registry.accounts.bootstrap import OperatorKeyFileInvalid, ensure_operator_key
from services.registry.accounts.domain import SecretKind, new_secret, parse_secret
from tests.registry.conftest import OPERATOR, SERVICE, Registry, code, open_registry, user


async def verify(registry: Registry, key: str) -> tuple[int, dict[str, object]]:
    answer = await registry.client(SERVICE).post("/internal/credentials:verify", json={"key": key})
    return answer.status_code, answer.json()


async def test_a_new_account_comes_with_an_admin_key_and_is_announced(empty: Registry) -> None:
    answer = await empty.client(OPERATOR).post("/v1/accounts", json={"account": "acme", "title": "Acme Ltd"})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert (body["account"], body["title"], body["api_key"]["scopes"]) == ("acme", "Acme Ltd", ["admin"])
    status, principal = await verify(empty, body["api_key"]["key"])
    assert status == 200
    assert principal == {
        "kind": "user",
        "id": body["api_key"]["id"],
        "account": "acme",
        "scopes": ["admin", "publish", "read"],
        "expires_at": None,
        "expires_at_s": None,
    }
    (record,) = await empty.told("account.created")
    assert (record.key, events_pb2.AccountCreated.FromString(record.value).account) == ("acme", "acme")
    again = await empty.client(OPERATOR).post("/v1/accounts", json={"account": "acme"})
    assert code(again) == (409, "ACCOUNT_EXISTS")
    assert await empty.told("account.created") == []


async def test_account_names_are_slugs(empty: Registry) -> None:
    for name in ("", "a", "Acme", "9lives", "a_b", "a/b", "-a", "a-", "a" * 41, "ac me", "acme\n"):
        answer = await empty.client(OPERATOR).post("/v1/accounts", json={"account": name})
        assert code(answer) == (422, "MALFORMED_BODY"), name


async def test_accounts_are_listed_in_pages_and_read_by_their_admin(empty: Registry) -> None:
    for name in ("cc", "aa", "bb"):
        await empty.create_account(name)
    operator = empty.client(OPERATOR)
    first = (await operator.get("/v1/accounts", params={"page_size": 2})).json()
    second = (await operator.get("/v1/accounts", params={"page_size": 2, "page_token": first["next_page_token"]})).json()
    assert [one["account"] for one in first["items"] + second["items"]] == ["aa", "bb", "cc"]
    assert second["next_page_token"] is None
    own = empty.client(user("aa"))
    assert (await own.get("/v1/accounts/aa")).json()["account"] == "aa"
    foreign, unknown = await own.get("/v1/accounts/bb"), await own.get("/v1/accounts/zz")
    assert code(foreign) == (404, "ACCOUNT_NOT_FOUND")
    assert foreign.content == unknown.content
    assert (await operator.get("/v1/accounts/bb")).json()["account"] == "bb"


async def test_an_api_key_is_shown_once_and_stored_as_a_hash(registry: Registry) -> None:
    admin = registry.acme
    answer = await admin.post("/v1/api-keys", json={"name": "ci", "scopes": ["publish"]})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    key = answer.json()
    assert parse_secret(key["key"]) is not None
    listed = (await admin.get("/v1/api-keys")).json()["items"]
    assert [one["name"] for one in listed] == ["first admin key", "ci"]
    assert "key" not in listed[1]
    secret = key["key"].split("_", 2)[2][:43]
    async with registry.ports.database.read() as reader:
        for table in ("api_keys", "outbox", "idempotency_keys"):
            rows = await reader.all(text(f"SELECT * FROM {table}"))
            assert secret not in str([tuple(row) for row in rows])
    status, principal = await verify(registry, key["key"])
    assert (status, principal["scopes"]) == (200, ["publish", "read"])


async def test_a_key_that_was_repeated_is_not_stored_in_the_answers(registry: Registry) -> None:
    headers = {"idempotency-key": "once"}
    first = await registry.acme.post("/v1/api-keys", json={"scopes": ["read"]}, headers=headers)
    again = await registry.acme.post("/v1/api-keys", json={"scopes": ["read"]}, headers=headers)
    assert first.status_code == 201
    assert code(again) == (409, "IDEMPOTENCY_ANSWER_GONE")
    assert len((await registry.acme.get("/v1/api-keys")).json()["items"]) == 2


async def test_expiry_and_revocation(registry: Registry) -> None:
    admin = registry.acme
    until = rfc3339(registry.clock.now() + timedelta(hours=1))
    short = (await admin.post("/v1/api-keys", json={"scopes": ["read"], "expires_at": until})).json()
    assert (await verify(registry, short["key"]))[1]["expires_at_s"] == (registry.clock.now() + timedelta(hours=1)).timestamp()
    registry.clock.advance(3600)
    assert (await verify(registry, short["key"]))[1]["code"] == "CREDENTIAL_EXPIRED"
    assert code(await admin.post("/v1/api-keys", json={"scopes": ["read"], "expires_at": until})) == (400, "INVALID_REQUEST")
    long = (await admin.post("/v1/api-keys", json={"scopes": ["read"]})).json()
    revoked = await admin.post(f"/v1/api-keys/{long['id']}:revoke")
    registry.clock.advance(60)
    again = await admin.post(f"/v1/api-keys/{long['id']}:revoke")
    assert revoked.json()["revoked_at"] is not None
    assert revoked.json() == again.json()
    assert (await verify(registry, long["key"]))[1]["code"] == "CREDENTIAL_REVOKED"


async def test_credentials_that_are_none(registry: Registry) -> None:
    enrolment = (await registry.acme.post("/v1/enrolment-keys", json={})).json()["key"]
    good = (await registry.acme.post("/v1/api-keys", json={"scopes": ["read"]})).json()["key"]
    other_secret = new_secret(SecretKind.API)
    parts = parse_secret(good)
    assert parts is not None
    forged = f"{good[:17]}{other_secret.text[17:60]}"
    statements: list[str] = []
    stop = registry.ports.database.on_statement(statements.append)
    for text_ in ("", "lbk_", "x" * 67, good[:-1] + ("0" if good[-1] != "0" else "1"), good[:30] + "\n" + good[31:], enrolment):
        status, body = await verify(registry, text_)
        assert (status, body["code"]) == (401, "CREDENTIAL_INVALID"), text_
    assert statements == []  # a wrong checksum costs no look-up
    stop()
    for secret in (other_secret.text, new_secret(SecretKind.OPERATOR).text, forged):
        assert (await verify(registry, secret))[1]["code"] == "CREDENTIAL_INVALID"


async def test_the_operator_names_the_account_and_an_admin_cannot_leave_it(registry: Registry) -> None:
    operator = registry.client(OPERATOR)
    made = await operator.post("/v1/api-keys", json={"scopes": ["read"], "account": "other"})
    assert made.json()["account"] == "other"
    assert code(await operator.post("/v1/api-keys", json={"scopes": ["read"]})) == (400, "INVALID_REQUEST")
    assert code(await operator.post("/v1/api-keys", json={"scopes": ["read"], "account": "nobody"})) == (404, "ACCOUNT_NOT_FOUND")
    assert len((await operator.get("/v1/api-keys", params={"account": "other"})).json()["items"]) == 2
    foreign = await registry.acme.post("/v1/api-keys", json={"scopes": ["read"], "account": "other"})
    unknown = await registry.acme.post("/v1/api-keys", json={"scopes": ["read"], "account": "nobody"})
    assert code(foreign) == (404, "ACCOUNT_NOT_FOUND")
    assert foreign.content == unknown.content
    stolen = await registry.acme.post(f"/v1/api-keys/{made.json()['id']}:revoke")
    assert code(stolen) == (404, "KEY_NOT_FOUND")
    assert stolen.content == (await registry.acme.post("/v1/api-keys/aaaaaaaaaaaa:revoke")).content
    assert (await verify(registry, made.json()["key"]))[0] == 200
    assert (await operator.post(f"/v1/api-keys/{made.json()['id']}:revoke")).status_code == 200
    assert (await verify(registry, made.json()["key"]))[0] == 401


async def test_lists_of_keys_page(registry: Registry) -> None:
    for _ in range(4):
        await registry.acme.post("/v1/api-keys", json={"scopes": ["read"]})
    seen, token = [], None
    while True:
        page = (await registry.acme.get("/v1/api-keys", params={"page_size": 2, **({"page_token": token} if token else {})})).json()
        seen += [one["id"] for one in page["items"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert len(seen) == len(set(seen)) == 5
    assert code(await registry.acme.get("/v1/api-keys", params={"page_token": "x"})) == (400, "INVALID_REQUEST")


async def test_the_operator_key_is_made_once_and_kept_in_a_private_file(tmp_path: Path, clock: FakeClock) -> None:
    async with open_registry(tmp_path, clock) as first:
        key = first.operator_key
        assert key is not None
        path = tmp_path / "operator.key"
        assert path.read_text().strip() == key
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        status, principal = await verify(first, key)
        assert (status, principal["kind"], principal["account"], principal["scopes"]) == (200, Kind.OPERATOR, None, [])
        assert await ensure_operator_key(first.ports, path) is None
    async with open_registry(tmp_path, clock) as second:
        assert second.operator_key is None
        assert (await verify(second, key))[0] == 200
        path.unlink()
        assert await ensure_operator_key(second.ports, path) is None  # kept elsewhere: none is made anew
        assert not path.exists()


async def test_a_start_that_was_killed_before_the_database_knew_the_key_repeats_with_it(tmp_path: Path, clock: FakeClock) -> None:
    secret = new_secret(SecretKind.OPERATOR)
    path = tmp_path / "operator.key"
    path.write_text(secret.text + "\n")
    path.chmod(0o600)
    async with open_registry(tmp_path, clock) as registry:
        assert registry.operator_key == secret.text
    path.write_text("not a key\n")
    (tmp_path / "registry.db").unlink()
    with pytest.raises(OperatorKeyFileInvalid):
        async with open_registry(tmp_path, clock):
            pass
    path.write_text(secret.text)
    path.chmod(0o644)
    with pytest.raises(OperatorKeyFileInvalid):
        async with open_registry(tmp_path, clock):
            pass


async def test_one_idempotency_key_makes_one_account(empty: Registry) -> None:
    headers = {"idempotency-key": "k1"}
    client = empty.client(OPERATOR)
    answers = await asyncio.gather(*(client.post("/v1/accounts", json={"account": "acme"}, headers=headers) for _ in range(50)))
    assert sum(answer.status_code == 201 for answer in answers) == 1
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len(await empty.told("account.created")) == 1


def test_secrets_have_the_written_form() -> None:
    for kind in SecretKind:
        secret = new_secret(kind)
        assert len(secret.text) == 67
        assert parse_secret(secret.text) == secret
        assert secret.text not in repr(secret)
