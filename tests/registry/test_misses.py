"""A thousand callers whose answer no cache holds cost one query per process (SEC-D7)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.authn import Authenticator
from gateway.upstreams import UpstreamUnavailable
from kit import http
from kit.db import DatabaseUnavailable
from kit.errors import Unauthorized
from kit.identity import Kind
from services.registry.accounts.domain import SecretKind, new_secret
from tests.registry.conftest import OPERATOR, Registry, device

CALLERS = 1000


@contextmanager
def queries_of(registry: Registry, table: str) -> Iterator[list[str]]:
    found: list[str] = []
    stop = registry.ports.database.on_statement(lambda statement: found.append(statement) if table in statement else None)
    yield found
    stop()


async def test_a_key_that_no_gateway_remembers_is_asked_for_once(registry: Registry) -> None:
    made = await registry.client(OPERATOR).post("/v1/accounts", json={"account": "crowd"})
    key = f"Bearer {made.json()['api_key']['key']}".encode()
    asked = 0

    async def counted(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        nonlocal asked
        asked += 1
        await registry.part.app(scope, receive, send)

    gateways = [Authenticator(counted, registry.ports.seal, cache_s=30) for _ in range(2)]
    with queries_of(registry, "api_keys") as queries:
        known = await asyncio.gather(*(gateway.authenticate(key) for gateway in gateways for _ in range(CALLERS)))
    assert {(one.principal.kind, one.principal.account) for one in known} == {(Kind.USER, "crowd")}
    assert asked == len(gateways)
    assert len(queries) == 1


async def test_a_wrong_key_is_asked_for_once_and_refused_to_all(registry: Registry) -> None:
    key = f"Bearer {new_secret(SecretKind.API).text}".encode()
    gateway = Authenticator(registry.part.app, registry.ports.seal, cache_s=30)
    with queries_of(registry, "api_keys") as queries:
        answers = await asyncio.gather(*(gateway.authenticate(key) for _ in range(CALLERS)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {Unauthorized}
    assert len(queries) == 1


async def test_a_registry_that_cannot_look_does_not_refuse_anybody(registry: Registry) -> None:
    """A 503 is said as one and forgotten at once; a good key is not turned into a wrong one."""
    made = await registry.client(OPERATOR).post("/v1/accounts", json={"account": "crowd"})
    key = f"Bearer {made.json()['api_key']['key']}".encode()
    down = True

    async def sometimes(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if down:
            await http.send_problem(send, DatabaseUnavailable("the database cannot be reached now"))
        else:
            await registry.part.app(scope, receive, send)

    gateway = Authenticator(sometimes, registry.ports.seal, cache_s=30)
    answers = await asyncio.gather(*(gateway.authenticate(key) for _ in range(CALLERS)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {UpstreamUnavailable}
    down = False
    assert (await gateway.authenticate(key)).principal.account == "crowd"


async def test_a_new_package_that_a_fleet_asks_for_at_once_is_read_once(registry: Registry) -> None:
    await registry.create_model()
    (digest,) = await registry.make_ready(await registry.create_version())
    async with registry.client(device()) as client:
        with queries_of(registry, "packages") as queries:
            path = f"/v1/device/packages/{digest}/manifest"
            answers = await asyncio.gather(*(client.get(path) for _ in range(CALLERS)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(queries) == 1


@pytest.mark.parametrize("held", [True, False])
async def test_a_package_of_another_account_is_not_shared(registry: Registry, held: bool) -> None:
    await registry.create_model()
    (digest,) = await registry.make_ready(await registry.create_version())
    path = f"/v1/device/packages/{digest}/manifest"
    async with registry.client(device()) as ours, registry.client(device("other")) as theirs:
        if held:
            await ours.get(path)
        answers = await asyncio.gather(ours.get(path), theirs.get(path))
    assert [answer.status_code for answer in answers] == [200, 404]
