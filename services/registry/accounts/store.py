"""Every query of accounts and keys. Rows in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Table, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from kit.db import Reader, Transaction
from services.registry.accounts.domain import Account, ApiKey, EnrolmentKey, OperatorKey, SigningKey
from services.registry.accounts.tables import ACCOUNTS, API_KEYS, ENROLMENT_KEYS, OPERATOR_KEYS, SIGNING_KEYS


async def find_account(reader: Reader, account: str) -> Account | None:
    """Return an account or None."""
    row = await reader.first(select(ACCOUNTS).where(ACCOUNTS.c.account == account))
    return None if row is None else Account(**row._mapping)


async def list_accounts(reader: Reader, *, after: str, limit: int) -> Sequence[Account]:
    """Return accounts by name."""
    rows = await reader.all(select(ACCOUNTS).where(ACCOUNTS.c.account > after).order_by(ACCOUNTS.c.account).limit(limit))
    return [Account(**row._mapping) for row in rows]


async def add_account(tx: Transaction, account: Account) -> bool:
    """Insert an account. False: the name is taken."""
    if await find_account(tx, account.account) is not None:
        return False
    try:
        await tx.execute(
            insert(ACCOUNTS).values(
                account=account.account, title=account.title, created_at=account.created_at, created_by=account.created_by
            )
        )
    except IntegrityError:
        return False
    return True


def _api_key(row: Row[Any]) -> ApiKey:
    fields = dict(row._mapping)
    return ApiKey(**{**fields, "scopes": tuple(fields["scopes"])})


async def find_api_key(reader: Reader, key_id: str) -> ApiKey | None:
    """Return a key by its id alone: the one query without an account, because it is how the account is found."""
    row = await reader.first(select(API_KEYS).where(API_KEYS.c.key_id == key_id))
    return None if row is None else _api_key(row)


async def list_api_keys(reader: Reader, account: str, *, after: int, limit: int) -> Sequence[ApiKey]:
    """Return an account's keys in the order they were made."""
    rows = await reader.all(
        select(API_KEYS).where(API_KEYS.c.account == account, API_KEYS.c.position > after).order_by(API_KEYS.c.position).limit(limit)
    )
    return [_api_key(row) for row in rows]


async def add_api_key(
    tx: Transaction,
    account: str,
    *,
    key_id: str,
    name: str,
    scopes: Sequence[str],
    digest: str,
    created_at: datetime,
    created_by: str,
    expires_at: datetime | None,
) -> ApiKey:
    """Insert a key and return it."""
    await tx.execute(
        insert(API_KEYS).values(
            key_id=key_id,
            account=account,
            name=name,
            scopes=list(scopes),
            digest=digest,
            created_at=created_at,
            created_by=created_by,
            expires_at=expires_at,
        )
    )
    stored = await find_api_key(tx, key_id)
    assert stored is not None
    return stored


async def find_enrolment_key(reader: Reader, key_id: str) -> EnrolmentKey | None:
    """Return an enrolment key by its id alone; the caller compares the account."""
    row = await reader.first(select(ENROLMENT_KEYS).where(ENROLMENT_KEYS.c.key_id == key_id))
    return None if row is None else EnrolmentKey(**row._mapping)


async def list_enrolment_keys(reader: Reader, account: str, *, after: int, limit: int) -> Sequence[EnrolmentKey]:
    """Return an account's enrolment keys in the order they were made."""
    table = ENROLMENT_KEYS
    rows = await reader.all(
        select(table).where(table.c.account == account, table.c.position > after).order_by(table.c.position).limit(limit)
    )
    return [EnrolmentKey(**row._mapping) for row in rows]


async def add_enrolment_key(
    tx: Transaction,
    account: str,
    *,
    key_id: str,
    name: str,
    digest: str,
    quota: int,
    created_at: datetime,
    created_by: str,
    expires_at: datetime | None,
) -> EnrolmentKey:
    """Insert an enrolment key and return it."""
    await tx.execute(
        insert(ENROLMENT_KEYS).values(
            key_id=key_id,
            account=account,
            name=name,
            digest=digest,
            quota=quota,
            used=0,
            created_at=created_at,
            created_by=created_by,
            expires_at=expires_at,
        )
    )
    stored = await find_enrolment_key(tx, key_id)
    assert stored is not None
    return stored


async def take_enrolment(tx: Transaction, account: str, key_id: str) -> bool:
    """Count one install against the quota. False: it is used up."""
    table = ENROLMENT_KEYS
    result = await tx.execute(
        update(table)
        .where(table.c.account == account, table.c.key_id == key_id, table.c.used < table.c.quota)
        .values(used=table.c.used + 1)
    )
    return result.rowcount == 1


async def count_live_keys(reader: Reader, account: str, *, now: datetime, enrolment: bool) -> int:
    """Return how many keys are neither revoked nor expired."""
    table = _table(enrolment)
    live = and_(table.c.revoked_at.is_(None), or_(table.c.expires_at.is_(None), table.c.expires_at > now))
    count: int = await reader.scalar(select(func.count()).select_from(table).where(table.c.account == account, live))
    return count


async def revoke_key(tx: Transaction, account: str, key_id: str, *, at: datetime, enrolment: bool) -> None:
    """Revoke a key of the account; one that was revoked keeps its first time."""
    table = _table(enrolment)
    this = (table.c.account == account, table.c.key_id == key_id, table.c.revoked_at.is_(None))
    await tx.execute(update(table).where(*this).values(revoked_at=at))


def _table(enrolment: bool) -> Table:
    return ENROLMENT_KEYS if enrolment else API_KEYS


async def find_operator_key(reader: Reader) -> OperatorKey | None:
    """Return the operator key or None."""
    row = await reader.first(select(OPERATOR_KEYS.c.key_id, OPERATOR_KEYS.c.digest))
    return None if row is None else OperatorKey(row.key_id, row.digest)


async def add_operator_key(tx: Transaction, key: OperatorKey, *, at: datetime) -> bool:
    """Insert the only operator key. False: there is one already."""
    if await find_operator_key(tx) is not None:
        return False
    try:
        await tx.execute(insert(OPERATOR_KEYS).values(slot=1, key_id=key.key_id, digest=key.digest, created_at=at))
    except IntegrityError:
        return False
    return True


async def signing_keys(reader: Reader, account: str) -> Sequence[SigningKey]:
    """Return the announced keys of an account, oldest first."""
    table = SIGNING_KEYS
    rows = await reader.all(select(table).where(table.c.account == account).order_by(table.c.announced_at, table.c.key_id))
    return [SigningKey(row.role, row.key_id, row.public_key) for row in rows]


async def add_signing_key(tx: Transaction, account: str, key: SigningKey, *, at: datetime) -> None:
    """Remember an announced key; one that is known stays as it is."""
    table = SIGNING_KEYS
    known = await tx.first(select(table.c.key_id).where(table.c.account == account, table.c.role == key.role, table.c.key_id == key.key_id))
    if known is None:
        await tx.execute(
            insert(table).values(account=account, role=key.role, key_id=key.key_id, public_key=key.public_key, announced_at=at)
        )
