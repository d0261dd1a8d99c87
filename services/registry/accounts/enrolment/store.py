"""Every query of devices' identity."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from kit.db import Database, Reader, Transaction
from services.registry.accounts.enrolment.domain import Install
from services.registry.accounts.enrolment.tables import INSTALLS, USED_NONCES


async def find_install(reader: Reader, account: str, install_id: str) -> Install | None:
    """Return an install or None."""
    row = await reader.first(select(INSTALLS).where(INSTALLS.c.account == account, INSTALLS.c.install_id == install_id))
    return None if row is None else Install(**row._mapping)


async def add_install(tx: Transaction, install: Install) -> None:
    """Insert an install that is not there yet."""
    await tx.execute(
        insert(INSTALLS).values(
            account=install.account,
            install_id=install.install_id,
            public_key=install.public_key,
            enrolment_key_id=install.enrolment_key_id,
            enrolled_at=install.enrolled_at,
        )
    )


async def use_nonce(tx: Transaction, nonce: str, expires_at: datetime) -> bool:
    """Remember that a nonce was accepted. False: it was accepted before."""
    try:
        await tx.execute(insert(USED_NONCES).values(nonce=nonce, expires_at=expires_at))
    except IntegrityError:
        return False
    return True


async def forget_nonces(database: Database, now: datetime) -> int:
    """Delete used nonces that have expired; returns how many."""
    async with database.begin() as tx:
        result = await tx.execute(delete(USED_NONCES).where(USED_NONCES.c.expires_at <= now))
    return result.rowcount
