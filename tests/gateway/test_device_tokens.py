"""A device token that nobody can check, or renew, now is not a bad one (SEC-D3)."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jwt
from joserfc.jwk import OKPKey

from gateway.authn import AUDIENCE, ISSUER, Authenticator
from gateway.upstreams import UpstreamUnavailable
from kit import http
from kit.errors import Unauthorized
from kit.identity import Kind, PrincipalSeal

PRIVATE = Ed25519PrivateKey.generate()
PUBLIC = PRIVATE.public_key().public_bytes_raw()
KEYS = {"keys": [{"key_id": "one", "public_key": base64.b64encode(PUBLIC).decode()}]}


def bearer(ends_in_s: int, **claims: Any) -> bytes:
    """An Authorization header with a token of this registry."""
    x, d = (base64.urlsafe_b64encode(raw).decode().rstrip("=") for raw in (PUBLIC, PRIVATE.private_bytes_raw()))
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "d": d, "x": x})
    content = {"iss": ISSUER, "aud": AUDIENCE, "acc": "acme", "sub": "install-1", "exp": int(time.time()) + ends_in_s} | claims
    return f"Bearer {jwt.encode({'alg': 'Ed25519', 'kid': 'one'}, content, key, algorithms=['Ed25519'])}".encode()


class Registry:
    """Answers as the registry does, or as the gateway's client does for one that is away. `asked` has the paths."""

    def __init__(self, *, keys: int = 200, renewable: int | None = 204) -> None:
        self.keys, self.renewable = keys, renewable
        self.asked: list[str] = []

    async def __call__(self, scope: http.Scope, _receive: http.Receive, send: http.Send) -> None:
        self.asked.append(scope["path"])
        if scope["path"] == "/internal/device-token-keys":
            await http.send_json(send, self.keys, KEYS)
        elif self.renewable is None:
            raise UpstreamUnavailable("the registry does not answer")
        else:
            await http.send_json(send, self.renewable, {})

    def authenticator(self) -> Authenticator:
        return Authenticator(self, PrincipalSeal(bytes(32)), cache_s=30)


async def test_a_token_is_not_refused_because_the_registry_cannot_tell_its_keys() -> None:
    registry = Registry(keys=503)
    authenticator, authorization = registry.authenticator(), bearer(600)
    with pytest.raises(UpstreamUnavailable):
        await authenticator.authenticate(authorization)
    registry.keys = 200
    known = await authenticator.authenticate(authorization)
    assert (known.principal.kind, known.principal.id, known.principal.account) == (Kind.DEVICE, "install-1", "acme")


@pytest.mark.parametrize("renewable", [503, None], ids=["it says so", "it is silent"])
async def test_an_expired_token_is_borne_for_a_while_when_nobody_can_renew(renewable: int | None) -> None:
    registry = Registry(renewable=renewable)
    known = await registry.authenticator().authenticate(bearer(-5))
    assert (known.principal.kind, known.principal.id) == (Kind.DEVICE, "install-1")
    assert known.until <= time.time() + 30, "looked at again soon"


async def test_it_is_refused_as_soon_as_renewing_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(renewable=503)
    authenticator, authorization = registry.authenticator(), bearer(-5)
    await authenticator.authenticate(authorization)
    registry.renewable = 204
    later: Callable[[], float] = time.time
    monkeypatch.setattr("gateway.authn.time.time", lambda now=later: now() + 31)
    with pytest.raises(Unauthorized, match="has expired; renew it"):
        await authenticator.authenticate(authorization)


@pytest.mark.parametrize(
    ("renewable", "authorization"),
    [
        (204, bearer(-5)),
        (500, bearer(-5)),
        (503, bearer(-901)),
        (None, bearer(-901)),
        (503, bearer(-5, aud="other")),
        (503, bearer(-5, iss="other")),
        (503, bearer(-5, sub=None)),
        (503, bearer(-5)[:-4] + b"AAAA"),
    ],
    ids=[
        "renewable",
        "a fault",
        "too long ago",
        "too long ago, silent",
        "another audience",
        "another issuer",
        "no install",
        "bad signature",
    ],
)
async def test_no_other_token_profits(renewable: int | None, authorization: bytes) -> None:
    with pytest.raises(Unauthorized):
        await Registry(renewable=renewable).authenticator().authenticate(authorization)
