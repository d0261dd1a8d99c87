"""Turns a credential into a principal: API keys by asking the registry, device tokens by their signature.

Both are remembered for a short time, so that a device that polls costs a dictionary read. It decides who calls, not what they may do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass
from functools import partial

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from gateway.upstreams import UpstreamUnavailable, ask
from kit.errors import NotMigrated, Unauthorized, Unavailable
from kit.http import ASGIApp
from kit.identity import NOBODY, Kind, Principal, PrincipalSeal, Scope, granted
from kit.single_flight import SingleFlight

ISSUER = "latebind"
AUDIENCE = "latebind-device"
_CACHE_SIZE = 200_000
_KEYS_REFETCH_S = 10.0
_REFUSED_FOR_S = 5.0
#: A device token that has expired while no device can renew its own is good for so long more, and is looked at again this often.
_GRACE_S = 900.0
_GRACE_LOOK_S = 30.0
#: A sealed header is used again until it is this close to its end.
_SEAL_MARGIN_S = 60.0


@dataclass(slots=True)
class Known:
    """A credential that was checked. `until` is when it must be checked again; `sealed` is the header for the services."""

    principal: Principal
    until: float
    sealed: bytes
    sealed_until: float
    refused: str = ""


class Authenticator:
    """Keeps what it knows in a bounded dictionary keyed by the header's bytes."""

    def __init__(self, registry: ASGIApp, seal: PrincipalSeal, *, cache_s: int, seal_lifetime_s: int = 300) -> None:
        self._registry = registry
        self._seal = seal
        self._cache_s = cache_s
        self._seal_lifetime_s = seal_lifetime_s
        self._known: dict[bytes, Known] = {}
        self._checks: SingleFlight[bytes, Known] = SingleFlight()
        self._renewals: SingleFlight[str, bool] = SingleFlight()
        self._keys: dict[str, OKPKey] = {}
        self._keys_fetched = -_KEYS_REFETCH_S
        self._fetching = asyncio.Lock()
        self._nobody = Known(NOBODY, float("inf"), b"", float("inf"))

    def remembers(self, authorization: bytes) -> bool:
        """Say whether the credential was checked before; a new one costs a look-up or a signature."""
        return authorization in self._known

    async def authenticate(self, authorization: bytes | None) -> Known:
        """Return who sent the header; without one it is nobody. Raises `Unauthorized`, or what the registry raised when it is down."""
        if authorization is None:
            return self._nobody
        now = time.time()
        known = self._known.get(authorization)
        if known is None or known.until <= now:
            known = await self._checks.get(authorization, partial(self._learn, authorization, now))
        if known.refused:
            raise Unauthorized(known.refused)
        if known.sealed_until <= now:
            known.sealed = self._seal.seal(known.principal)
            known.sealed_until = now + self._seal_lifetime_s - _SEAL_MARGIN_S
        return known

    async def _learn(self, authorization: bytes, now: float) -> Known:
        known = await self._check(authorization, now)
        if len(self._known) >= _CACHE_SIZE:
            self._known.clear()  # cheaper than an order of use; the next calls fill it again
        self._known[authorization] = known
        return known

    async def _check(self, authorization: bytes, now: float) -> Known:
        scheme, _, credential = authorization.partition(b" ")
        text = credential.strip().decode("ascii", "replace")
        try:
            if scheme.lower() != b"bearer" or not text:
                raise Unauthorized("send Authorization: Bearer <API key or device token>")
            if text.count(".") == 2:
                return await self._device(text, now)
            return await self._key(text, now)
        except Unauthorized as error:
            return Known(NOBODY, now + _REFUSED_FOR_S, b"", 0.0, refused=error.detail)

    async def _key(self, text: str, now: float) -> Known:
        status, answer = await ask(self._registry, self._seal, "POST", "/internal/credentials:verify", {"key": text})
        if status == Unauthorized.status:
            raise Unauthorized(answer.get("detail", ""))
        if status == NotMigrated.status and answer and answer.get("code") == NotMigrated.code:
            raise NotMigrated(answer["detail"])
        if status != 200:  # not the caller's fault, and not remembered as a refusal
            raise UpstreamUnavailable("the credential cannot be checked now; try again")
        scopes = granted(frozenset(Scope(scope) for scope in answer["scopes"]))
        principal = Principal(Kind(answer["kind"]), answer["id"], answer["account"], scopes)
        until = now + self._cache_s
        if answer.get("expires_at_s") is not None:
            until = min(until, float(answer["expires_at_s"]))
        return Known(principal, until, b"", 0.0)

    async def _device(self, token: str, now: float) -> Known:
        try:
            key = await self._token_key(token)
            decoded = jwt.decode(token, key, algorithms=["Ed25519"])
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise Unauthorized("the device token is not valid; renew it at /v1/device/token") from error
        claims = decoded.claims
        expires, account, install = claims.get("exp"), claims.get("acc"), claims.get("sub")
        good = claims.get("iss") == ISSUER and claims.get("aud") == AUDIENCE and isinstance(account, str) and isinstance(install, str)
        if not good or not isinstance(expires, int | float):
            raise Unauthorized("the device token is not one for this API")
        until = float(expires)
        if until <= now:
            if now - until > _GRACE_S or not await self._renewals.get("", self._is_renewal_down):
                raise Unauthorized("the device token has expired; renew it at /v1/device/token")
            until = min(until + _GRACE_S, now + _GRACE_LOOK_S)
        assert isinstance(account, str)
        assert isinstance(install, str)
        return Known(Principal(Kind.DEVICE, install, account), until, b"", 0.0)

    async def _is_renewal_down(self) -> bool:
        """Whether no device can renew its token now: then an expired one is good for a while more (SEC-D3)."""
        try:
            status, _ = await ask(self._registry, self._seal, "GET", "/internal/device-tokens:renewable")
        except Unavailable:
            return True
        return status == Unavailable.status

    async def _token_key(self, token: str) -> OKPKey:
        """Return the key that the token names. Unknown key ids make one look at the registry, at most every few seconds."""
        head = token.partition(".")[0]
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        if header.get("alg") != "Ed25519":
            raise ValueError("not an Ed25519 token")
        kid = str(header.get("kid"))
        if kid not in self._keys and time.monotonic() - self._keys_fetched > _KEYS_REFETCH_S:
            async with self._fetching:
                if time.monotonic() - self._keys_fetched > _KEYS_REFETCH_S:
                    status, answer = await ask(self._registry, self._seal, "GET", "/internal/device-token-keys")
                    if status != 200:  # a token is not bad because nobody can say whether it is good
                        raise UpstreamUnavailable("the device token cannot be checked now; try again")
                    self._keys = {one["key_id"]: _okp(base64.b64decode(one["public_key"])) for one in answer["keys"]}
                    self._keys_fetched = time.monotonic()
        return self._keys[kid]


def _okp(public_key: bytes) -> OKPKey:
    x = base64.urlsafe_b64encode(public_key).decode().rstrip("=")
    return OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x})
