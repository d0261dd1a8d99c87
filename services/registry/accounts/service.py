"""Use cases of accounts and keys; each is one transaction. Secrets leave it once, as the answer that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from kit.clock import Clock
from kit.db import Database, Transaction
from kit.errors import Invalid
from kit.eventlog import Record
from kit.identity import Kind, Principal, Scope, granted
from kit.logs import get_logger
from kit.signing import key_id_of
from kit.single_flight import SingleFlight
from services.registry.accounts import events, store
from services.registry.accounts.domain import (
    MAX_LIVE_KEYS,
    Account,
    ApiKey,
    EnrolmentKey,
    Secret,
    SecretHasher,
    SecretKind,
    SigningKey,
    new_secret,
    parse_secret,
)
from services.registry.accounts.errors import (
    AccountExists,
    AccountNotFound,
    CredentialExpired,
    CredentialInvalid,
    CredentialRevoked,
    KeyNotFound,
    TooManyKeys,
)
from services.registry.domain import Slice

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verified:
    """A credential that is good, and until when (None: no end)."""

    principal: Principal
    expires_at: datetime | None


class AccountService:
    """Accounts, API keys and enrolment keys."""

    def __init__(self, database: Database, clock: Clock, hasher: SecretHasher) -> None:
        self._database = database
        self._clock = clock
        self._hasher = hasher
        self._verifying: SingleFlight[str, Verified] = SingleFlight()

    async def create_account(self, account: str, *, title: str, by: str) -> tuple[Account, ApiKey, Secret]:
        """Make an account and its first admin key, and announce it. Raises `AccountExists`."""
        async with self._database.begin() as tx:
            created = Account(account, title, self._clock.now(), by)
            if not await store.add_account(tx, created):
                raise AccountExists(f"there is an account {account!r} already", account=account)
            key, secret = await self._add_api_key(tx, account, name="first admin key", scopes=[Scope.ADMIN], expires_at=None, by=by)
            await tx.emit(events.ACCOUNT_CREATED, key=account, account=account, value=events.account_created(account))
        return created, key, secret

    async def find_account(self, account: str) -> Account:
        """Return an account. Raises `AccountNotFound`."""
        async with self._database.read() as reader:
            found = await store.find_account(reader, account)
        if found is None:
            raise AccountNotFound("there is no such account")
        return found

    async def list_accounts(self, *, after: str, size: int) -> Slice[Account]:
        """Return a page of accounts."""
        async with self._database.read() as reader:
            return Slice.cut(await store.list_accounts(reader, after=after, limit=size + 1), size)

    async def create_api_key(
        self, account: str, *, name: str, scopes: Sequence[Scope], expires_at: datetime | None, by: str
    ) -> tuple[ApiKey, Secret]:
        """Make an API key. Raises `AccountNotFound`, `TooManyKeys`, `Invalid` for an expiry that has passed."""
        self._check_expiry(expires_at)
        async with self._database.begin() as tx:
            await self._check_room(tx, account, enrolment=False)
            return await self._add_api_key(tx, account, name=name, scopes=scopes, expires_at=expires_at, by=by)

    async def list_api_keys(self, account: str, *, after: int, size: int) -> Slice[ApiKey]:
        """Return a page of an account's API keys. Raises `AccountNotFound`."""
        async with self._database.read() as reader:
            if await store.find_account(reader, account) is None:
                raise AccountNotFound("there is no such account")
            return Slice.cut(await store.list_api_keys(reader, account, after=after, limit=size + 1), size)

    async def revoke_api_key(self, account: str | None, key_id: str) -> ApiKey:
        """Revoke a key of the account; the operator (None) may revoke any. Doing it again changes nothing. Raises `KeyNotFound`."""
        async with self._database.begin() as tx:
            key = await store.find_api_key(tx, key_id)
            if key is None or account not in {None, key.account}:
                raise KeyNotFound("there is no such key")
            await store.revoke_key(tx, key.account, key_id, at=self._clock.now(), enrolment=False)
            revoked = await store.find_api_key(tx, key_id)
        assert revoked is not None
        return revoked

    async def create_enrolment_key(
        self, account: str, *, name: str, quota: int, expires_at: datetime | None, by: str
    ) -> tuple[EnrolmentKey, Secret]:
        """Make an enrolment key. Raises `AccountNotFound`, `TooManyKeys`, `Invalid` for an expiry that has passed."""
        self._check_expiry(expires_at)
        secret = new_secret(SecretKind.ENROLMENT)
        async with self._database.begin() as tx:
            await self._check_room(tx, account, enrolment=True)
            key = await store.add_enrolment_key(
                tx,
                account,
                key_id=secret.key_id,
                name=name,
                digest=self._hasher.digest(secret),
                quota=quota,
                created_at=self._clock.now(),
                created_by=by,
                expires_at=expires_at,
            )
        return key, secret

    async def list_enrolment_keys(self, account: str, *, after: int, size: int) -> Slice[EnrolmentKey]:
        """Return a page of an account's enrolment keys. Raises `AccountNotFound`."""
        async with self._database.read() as reader:
            if await store.find_account(reader, account) is None:
                raise AccountNotFound("there is no such account")
            return Slice.cut(await store.list_enrolment_keys(reader, account, after=after, limit=size + 1), size)

    async def revoke_enrolment_key(self, account: str | None, key_id: str) -> EnrolmentKey:
        """Revoke an enrolment key, as `revoke_api_key`. Devices that have enrolled with it stay enrolled. Raises `KeyNotFound`."""
        async with self._database.begin() as tx:
            key = await store.find_enrolment_key(tx, key_id)
            if key is None or account not in {None, key.account}:
                raise KeyNotFound("there is no such key")
            await store.revoke_key(tx, key.account, key_id, at=self._clock.now(), enrolment=True)
            revoked = await store.find_enrolment_key(tx, key_id)
        assert revoked is not None
        return revoked

    async def verify(self, text: str) -> Verified:
        """Return who a key belongs to. Raises `CredentialInvalid`, `CredentialExpired`, `CredentialRevoked`.

        A key with a wrong checksum costs no look-up; an enrolment key is no credential for calls. Gateways that forget a key at
        once share one look-up.
        """
        return await self._verifying.get(text, partial(self._look_up, text))

    async def _look_up(self, text: str) -> Verified:
        secret = parse_secret(text)
        if secret is None or secret.kind is SecretKind.ENROLMENT:
            raise CredentialInvalid("this is not a key for this API; check that it was copied whole")
        async with self._database.read() as reader:
            if secret.kind is SecretKind.OPERATOR:
                operator = await store.find_operator_key(reader)
                if operator is None or operator.key_id != secret.key_id or not self._hasher.matches(secret, operator.digest):
                    raise CredentialInvalid("no such key was issued by this server")
                return Verified(Principal(Kind.OPERATOR, operator.key_id), None)
            key = await store.find_api_key(reader, secret.key_id)
        if key is None or not self._hasher.matches(secret, key.digest):
            raise CredentialInvalid("no such key was issued by this server")
        if key.revoked_at is not None:
            raise CredentialRevoked("this API key was revoked; ask an admin of the account for another")
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            raise CredentialExpired("this API key has expired; ask an admin of the account for another")
        scopes = granted(frozenset(Scope(scope) for scope in key.scopes))
        return Verified(Principal(Kind.USER, key.key_id, key.account, scopes), key.expires_at)

    async def signing_keys(self, account: str) -> Sequence[SigningKey]:
        """Return the public keys that were announced for an account."""
        async with self._database.read() as reader:
            return await store.signing_keys(reader, account)

    async def learn_signing_key(self, tx: Transaction, record: Record) -> None:
        """Keep a key that the packager or the deployer announced; part of the consumer's transaction."""
        account, key = events.read_signing_key(record.value)
        if len(key.public_key) != 32 or key_id_of(key.public_key) != key.key_id:
            log.error("an announced key is not what its id says and is not handed to devices", account=account, role=key.role)
            return
        await store.add_signing_key(tx, account, key, at=self._clock.now())

    async def _add_api_key(
        self, tx: Transaction, account: str, *, name: str, scopes: Sequence[Scope], expires_at: datetime | None, by: str
    ) -> tuple[ApiKey, Secret]:
        secret = new_secret(SecretKind.API)
        key = await store.add_api_key(
            tx,
            account,
            key_id=secret.key_id,
            name=name,
            scopes=sorted({scope.value for scope in scopes}),
            digest=self._hasher.digest(secret),
            created_at=self._clock.now(),
            created_by=by,
            expires_at=expires_at,
        )
        return key, secret

    async def _check_room(self, tx: Transaction, account: str, *, enrolment: bool) -> None:
        if await store.find_account(tx, account) is None:
            raise AccountNotFound("there is no such account")
        if await store.count_live_keys(tx, account, now=self._clock.now(), enrolment=enrolment) >= MAX_LIVE_KEYS:
            raise TooManyKeys(f"an account has at most {MAX_LIVE_KEYS} keys of a kind in use; revoke one that is not needed")

    def _check_expiry(self, expires_at: datetime | None) -> None:
        if expires_at is not None and expires_at <= self._clock.now():
            raise Invalid(
                "expires_at has passed", errors=[{"field": "expires_at", "code": "IN_THE_PAST", "detail": "a time in the future is needed"}]
            )
