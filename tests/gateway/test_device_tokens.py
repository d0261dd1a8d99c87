"""A device token that nobody can check now is not a bad one."""

from __future__ import annotations

import base64
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jwt
from joserfc.jwk import OKPKey

from gateway.authn import AUDIENCE, ISSUER, Authenticator
from gateway.upstreams import UpstreamUnavailable
from kit import http
from kit.identity import Kind, PrincipalSeal


async def test_a_token_is_not_refused_because_the_registry_cannot_tell_its_keys() -> None:
    private = Ed25519PrivateKey.generate()
    raw = private.private_bytes_raw(), private.public_key().public_bytes_raw()
    texts = [base64.urlsafe_b64encode(one).decode().rstrip("=") for one in raw]
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "d": texts[0], "x": texts[1]})
    claims = {"iss": ISSUER, "aud": AUDIENCE, "acc": "acme", "sub": "install-1", "exp": int(time.time()) + 600}
    token = jwt.encode({"alg": "Ed25519", "kid": "one"}, claims, key, algorithms=["Ed25519"])
    answers = [503, 200]

    async def registry(_scope: http.Scope, _receive: http.Receive, send: http.Send) -> None:
        document = {"keys": [{"key_id": "one", "public_key": base64.b64encode(raw[1]).decode()}]}
        await http.send_json(send, answers.pop(0), document)

    authenticator = Authenticator(registry, PrincipalSeal(bytes(32)), cache_s=30)
    authorization = f"Bearer {token}".encode()
    with pytest.raises(UpstreamUnavailable):
        await authenticator.authenticate(authorization)
    known = await authenticator.authenticate(authorization)
    assert (known.principal.kind, known.principal.id, known.principal.account) == (Kind.DEVICE, "install-1", "acme")
