"""Who calls: the principal, and the signed header in which the gateway tells the services.

A service believes only this header; what a client sends under its name is removed by the gateway.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from enum import StrEnum

from kit.context import EVERY_ACCOUNT
from kit.errors import Forbidden, Unauthorized

#: Carries the sealed principal, gateway -> service.
PRINCIPAL_HEADER = b"latebind-principal"
#: Two-letter country from a trusted proxy, gateway -> service. Absent: nobody trusted knows.
COUNTRY_HEADER = b"latebind-country"
#: Request id, gateway -> service, and back to the client.
REQUEST_ID_HEADER = b"request-id"

_CACHE_SIZE = 100_000


class Kind(StrEnum):
    """What kind of caller it is."""

    NOBODY = "nobody"
    DEVICE = "device"
    USER = "user"
    OPERATOR = "operator"
    SERVICE = "service"


class Scope(StrEnum):
    """What an API key may do; each includes the ones before it."""

    READ = "read"
    PUBLISH = "publish"
    ADMIN = "admin"


_INCLUDED = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.PUBLISH: frozenset({Scope.READ, Scope.PUBLISH}),
    Scope.ADMIN: frozenset({Scope.READ, Scope.PUBLISH, Scope.ADMIN}),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential was checked. `id` is the key id or the install id; `account` is None for operators, services and nobody."""

    kind: Kind
    id: str = ""
    account: str | None = None
    scopes: frozenset[Scope] = frozenset()

    @property
    def visible_rows(self) -> str:
        """Whose rows this caller's requests may touch (`kit.context.account_scope`): its account's, none for nobody, else all."""
        if self.account is not None:
            return self.account
        return "" if self.kind is Kind.NOBODY else EVERY_ACCOUNT

    @property
    def tenant(self) -> str:
        """The account. Raises `Forbidden` for callers that belong to none."""
        if self.account is None:
            raise Forbidden("this needs a credential of an account; an operator key belongs to none")
        return self.account


NOBODY = Principal(Kind.NOBODY)


def granted(scopes: frozenset[Scope]) -> frozenset[Scope]:
    """Return the scopes with all that they include."""
    return frozenset().union(*(_INCLUDED[scope] for scope in scopes))


class Access(StrEnum):
    """Who may call a route. A route without one of these fails start-up."""

    PUBLIC = "public"  # no credential needed
    DEVICE = "device"
    READ = "read"
    PUBLISH = "publish"
    ADMIN = "admin"
    OPERATOR = "operator"
    OPERATOR_OR_ADMIN = "operator_or_admin"
    SERVICE = "service"  # the gateway itself; never reachable from outside


_KIND_OF = {Access.DEVICE: Kind.DEVICE, Access.OPERATOR: Kind.OPERATOR, Access.SERVICE: Kind.SERVICE}


def authorize(principal: Principal, access: Access) -> None:
    """Raise `Unauthorized` (no credential) or `Forbidden` (not with this one) unless the principal may pass."""
    if access is Access.PUBLIC:
        return
    if principal.kind is Kind.NOBODY:
        raise Unauthorized("no credential: send Authorization: Bearer <API key or device token>")
    if access in _KIND_OF:
        allowed = principal.kind is _KIND_OF[access]
    elif access is Access.OPERATOR_OR_ADMIN:
        allowed = principal.kind is Kind.OPERATOR or (principal.kind is Kind.USER and Scope.ADMIN in principal.scopes)
    else:
        allowed = principal.kind is Kind.USER and Scope(access.value) in principal.scopes
    if not allowed:
        raise Forbidden(f"this credential ({describe(principal)}) may not do this: it needs {access.value.replace('_', ' ')} access")


def describe(principal: Principal) -> str:
    """Return words for an error: the kind, and the scopes of a key."""
    if principal.kind is Kind.USER:
        return "an API key with scope " + ", ".join(sorted(principal.scopes)) if principal.scopes else "an API key without scopes"
    return {Kind.DEVICE: "a device token", Kind.OPERATOR: "an operator key", Kind.SERVICE: "a service"}.get(principal.kind, "no credential")


class PrincipalSeal:
    """Seals principals into header values and opens them again (HMAC-SHA256 over payload and expiry).

    Opening keeps a bounded cache, so that a device that polls costs one dictionary read.
    """

    def __init__(self, secret: bytes, *, lifetime_s: int = 300) -> None:
        self._secret = secret
        self._lifetime_s = lifetime_s
        self._opened: dict[bytes, tuple[float, Principal]] = {}

    def seal(self, principal: Principal) -> bytes:
        """Return a header value that is good for `lifetime_s` seconds."""
        fields = {
            "k": principal.kind.value,
            "i": principal.id,
            "a": principal.account,
            "s": sorted(principal.scopes),
            "e": int(time.time()) + self._lifetime_s,
        }
        payload = base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode())
        return payload + b"." + self._mac(payload)

    def open(self, value: bytes | None) -> Principal:
        """Return the principal; without a header it is `NOBODY`. Raises `Unauthorized` for a forged or expired one."""
        if value is None:
            return NOBODY
        known = self._opened.get(value)
        if known is None:
            known = self._check(value)
            if len(self._opened) >= _CACHE_SIZE:
                self._opened.clear()  # cheaper than an order of use; the next calls fill it again
            self._opened[value] = known
        if known[0] < time.time():
            self._opened.pop(value, None)
            raise Unauthorized("the gateway's identity header has expired")
        return known[1]

    def _check(self, value: bytes) -> tuple[float, Principal]:
        payload, _, mac = value.partition(b".")
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise Unauthorized("the identity header was not made by this gateway")
        fields = json.loads(base64.urlsafe_b64decode(payload))
        principal = Principal(Kind(fields["k"]), fields["i"], fields["a"], frozenset(Scope(scope) for scope in fields["s"]))
        return float(fields["e"]), principal

    def _mac(self, payload: bytes) -> bytes:
        return hmac.new(self._secret, payload, hashlib.sha256).hexdigest().encode()
