"""What the gateway makes of device tokens while the registry, or its database, is down."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from gateway.authn import Authenticator
from gateway.upstreams import HttpUpstream, UpstreamUnavailable
from kit import http
from kit.errors import Unauthorized
from kit.identity import Kind
from services.registry.accounts.enrolment.tokens import DeviceTokens
from tests.registry.conftest import Registry

LIFETIME = timedelta(hours=1)


class Line:
    """The way to the registry; when it is cut, to a port where nobody listens."""

    def __init__(self, app: http.ASGIApp) -> None:
        self._app, self._nobody = app, HttpUpstream("http://127.0.0.1:1")
        self.cut = False

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        await (self._nobody if self.cut else self._app)(scope, receive, send)

    async def close(self) -> None:
        await self._nobody.close()


@pytest.fixture
async def line(registry: Registry) -> AsyncIterator[Line]:
    made = Line(registry.part.app)
    yield made
    await made.close()


def token(registry: Registry, *, expired_s: float) -> bytes:
    """A real token that expired so many seconds ago."""
    issued = datetime.fromtimestamp(time.time() - expired_s, UTC) - LIFETIME
    text, _ = DeviceTokens(registry.ports.secrets.key("device-tokens"), LIFETIME).issue("acme", "install-1", issued)
    return f"Bearer {text}".encode()


def gateway(registry: Registry, line: Line) -> Authenticator:
    return Authenticator(line, registry.ports.seal, cache_s=30)


async def test_a_token_needs_no_registry_once_its_key_is_known(registry: Registry, line: Line) -> None:
    known = gateway(registry, line)
    await known.authenticate(token(registry, expired_s=-100))
    line.cut = True
    assert (await known.authenticate(token(registry, expired_s=-200))).principal.kind is Kind.DEVICE


async def test_a_token_that_cannot_be_checked_is_not_refused(registry: Registry, line: Line) -> None:
    line.cut = True
    fresh = gateway(registry, line)
    with pytest.raises(UpstreamUnavailable):
        await fresh.authenticate(token(registry, expired_s=-100))
    line.cut = False  # and that is not remembered
    assert (await fresh.authenticate(token(registry, expired_s=-100))).principal.id == "install-1"


@pytest.mark.parametrize(("expired_s", "good"), [(1, True), (880, True), (910, False), (90_000, False)])
async def test_an_expired_token_is_borne_for_15_minutes_while_nobody_can_renew(
    registry: Registry, line: Line, expired_s: float, good: bool
) -> None:
    known = gateway(registry, line)
    await known.authenticate(token(registry, expired_s=-100))
    line.cut = True
    if good:
        assert (await known.authenticate(token(registry, expired_s=expired_s))).principal.id == "install-1"
    else:
        with pytest.raises(Unauthorized):
            await known.authenticate(token(registry, expired_s=expired_s))


async def test_an_expired_token_is_refused_while_it_can_be_renewed(registry: Registry, line: Line) -> None:
    with pytest.raises(Unauthorized, match="expired"):
        await gateway(registry, line).authenticate(token(registry, expired_s=1))
