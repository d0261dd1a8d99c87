"""Use cases of devices' identity: challenge, enrolment, token. The account comes from what the device proved, never from a header."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from kit.clock import Clock
from kit.context import acting_for
from kit.db import Database, Transaction
from services.registry.accounts import store as keys
from services.registry.accounts.domain import EnrolmentKey, SecretHasher, SecretKind, SigningKey, parse_secret
from services.registry.accounts.enrolment import store
from services.registry.accounts.enrolment.domain import Install, enrolment_text, token_text
from services.registry.accounts.enrolment.errors import (
    AccountNotReady,
    ChallengeInvalid,
    EnrolmentKeyExpired,
    EnrolmentKeyInvalid,
    EnrolmentQuotaExhausted,
    InstallAlreadyEnrolled,
    InstallUnknown,
    ProofInvalid,
)
from services.registry.accounts.enrolment.proofs import Challenges, check_proof, read_public_key
from services.registry.accounts.enrolment.tokens import DeviceTokens

_ROLES = frozenset({"package", "assignment"})


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """A device token, and the keys that the device is told to trust."""

    token: str
    expires_at: datetime
    trust: tuple[SigningKey, ...]


class EnrolmentService:
    """Enrols devices and renews their tokens."""

    def __init__(self, database: Database, clock: Clock, *, hasher: SecretHasher, challenges: Challenges, tokens: DeviceTokens) -> None:
        self._database = database
        self._clock = clock
        self._hasher = hasher
        self._challenges = challenges
        self._tokens = tokens

    def challenge(self) -> tuple[str, datetime]:
        """Return a nonce and when it expires. Nothing is stored until it is used."""
        return self._challenges.issue(self._clock.now())

    async def check_renewable(self) -> None:
        """Raise `DatabaseUnavailable` while no device can renew its token."""
        await self._database.ping()

    def token_keys(self) -> dict[str, bytes]:
        """Return key id -> raw public key that verifies device tokens."""
        return self._tokens.public_keys()

    async def enrol(self, *, account: str, enrolment_key: str, install_id: str, public_key: str, nonce: str, signature: str) -> TokenAnswer:
        """Enrol an install, or answer again for one that enrolled with the same key (which uses no quota).

        Raises `ChallengeInvalid`, `ProofInvalid`, `EnrolmentKeyInvalid`, `EnrolmentKeyExpired`, `AccountNotReady`,
        `InstallAlreadyEnrolled`, `EnrolmentQuotaExhausted`.
        """
        now = self._clock.now()
        nonce_expires_at = self._challenges.check(nonce, now)
        raw_key = read_public_key(public_key)
        check_proof(raw_key, signature, enrolment_text(account, install_id, public_key, nonce))
        async with self._acting_for(account) as tx:
            key = await self._enrolment_key(tx, account, enrolment_key, now)
            trust = await self._trust(tx, account)
            known = await store.find_install(tx, account, install_id)
            if known is None:
                if not await keys.take_enrolment(tx, account, key.key_id):
                    raise EnrolmentQuotaExhausted(f"all {key.quota} installs of this enrolment key have enrolled; use another key")
                await store.add_install(tx, Install(account, install_id, raw_key, key.key_id, now))
            elif known.public_key != raw_key:
                raise InstallAlreadyEnrolled("this install id is enrolled with another public key; make a new install id")
            await self._use(tx, nonce, nonce_expires_at)
        return self._answer(account, install_id, trust, now)

    async def renew(self, *, account: str, install_id: str, nonce: str, signature: str) -> TokenAnswer:
        """Give an enrolled install a new token. Raises `ChallengeInvalid`, `InstallUnknown`, `AccountNotReady`."""
        now = self._clock.now()
        nonce_expires_at = self._challenges.check(nonce, now)
        async with self._acting_for(account) as tx:
            install = await store.find_install(tx, account, install_id)
            unknown = InstallUnknown("no such install has enrolled in this account with the key that signed this; enrol again")
            if install is None:
                raise unknown
            try:
                check_proof(install.public_key, signature, token_text(account, install_id, nonce))
            except ProofInvalid as error:
                raise unknown from error
            trust = await self._trust(tx, account)
            await self._use(tx, nonce, nonce_expires_at)
        return self._answer(account, install_id, trust, now)

    @asynccontextmanager
    async def _acting_for(self, account: str) -> AsyncIterator[Transaction]:
        """Open a transaction on the account that is claimed: nobody has proved it yet, and its rows suffice to check it."""
        with acting_for(account):
            async with self._database.begin() as tx:
                yield tx

    async def forget_nonces(self) -> int:
        """Delete used nonces that have expired; returns how many."""
        return await store.forget_nonces(self._database, self._clock.now())

    async def _enrolment_key(self, tx: Transaction, account: str, text: str, now: datetime) -> EnrolmentKey:
        secret = parse_secret(text)
        invalid = EnrolmentKeyInvalid("this is not an enrolment key of this account; check that it was copied whole")
        if secret is None or secret.kind is not SecretKind.ENROLMENT:
            raise invalid
        key = await keys.find_enrolment_key(tx, secret.key_id)
        # An unknown account answers like a foreign key: nobody learns which accounts there are.
        if key is None or not self._hasher.matches(secret, key.digest) or key.account != account:
            raise invalid
        if key.revoked_at is not None:
            raise EnrolmentKeyExpired("this enrolment key was revoked")
        if key.expires_at is not None and key.expires_at <= now:
            raise EnrolmentKeyExpired("this enrolment key has expired")
        return key

    async def _trust(self, tx: Transaction, account: str) -> tuple[SigningKey, ...]:
        trust = tuple(await keys.signing_keys(tx, account))
        if not {key.role for key in trust} >= _ROLES:
            raise AccountNotReady("the signing keys of this account are on their way; try again in a moment")
        return trust

    async def _use(self, tx: Transaction, nonce: str, expires_at: datetime) -> None:
        if not await store.use_nonce(tx, nonce, expires_at):
            raise ChallengeInvalid("this nonce was used before; ask for a new challenge")

    def _answer(self, account: str, install_id: str, trust: tuple[SigningKey, ...], now: datetime) -> TokenAnswer:
        token, expires_at = self._tokens.issue(account, install_id, now)
        return TokenAnswer(token, expires_at, trust)
