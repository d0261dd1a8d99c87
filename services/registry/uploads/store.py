"""Every query of uploads. Rows in, values out; no function without an account but the clean-up's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, func, insert, select, update

from kit.db import Reader, Transaction
from services.registry.uploads.domain import Part, Upload
from services.registry.uploads.tables import UPLOAD_PARTS, UPLOADS


async def find_upload(reader: Reader, account: str, upload_id: str, *, lock: bool = False) -> Upload | None:
    """Return an upload or None; `lock` keeps others from changing it until the transaction ends."""
    wanted = select(UPLOADS).where(UPLOADS.c.account == account, UPLOADS.c.upload_id == upload_id)
    row = await reader.first(wanted.with_for_update() if lock else wanted)
    return None if row is None else Upload(**row._mapping)


async def count_open(reader: Reader, account: str, *, now: datetime) -> int:
    """Return how many uploads are neither complete nor expired."""
    table = UPLOADS
    wanted = select(func.count()).select_from(table)
    count: int = await reader.scalar(wanted.where(table.c.account == account, table.c.completed_sha256.is_(None), table.c.expires_at > now))
    return count


async def add_upload(tx: Transaction, upload: Upload) -> None:
    """Insert an upload."""
    await tx.execute(insert(UPLOADS).values(**{column.name: getattr(upload, column.name) for column in UPLOADS.columns}))


async def add_part(tx: Transaction, upload: Upload, part: Part, *, expires_at: datetime) -> None:
    """Remember a durable part and move the offset behind it."""
    await tx.execute(insert(UPLOAD_PARTS).values(upload_id=upload.upload_id, start=part.start, size=part.size, sha256=part.sha256))
    await _change(tx, upload, received=part.start + part.size, expires_at=expires_at)


async def list_parts(reader: Reader, upload: Upload) -> Sequence[Part]:
    """Return an upload's parts in their order."""
    table = UPLOAD_PARTS
    rows = await reader.all(select(table).where(table.c.upload_id == upload.upload_id).order_by(table.c.start))
    return [Part(row.start, row.size, row.sha256) for row in rows]


async def complete_upload(tx: Transaction, upload: Upload, sha256: str, *, expires_at: datetime) -> None:
    """Mark an upload as complete; its row stays until `expires_at`, so that a repeated call is answered alike."""
    await _change(tx, upload, completed_sha256=sha256, expires_at=expires_at)


async def _change(tx: Transaction, upload: Upload, **values: object) -> None:
    await tx.execute(update(UPLOADS).where(UPLOADS.c.account == upload.account, UPLOADS.c.upload_id == upload.upload_id).values(**values))


async def list_expired(reader: Reader, *, now: datetime, limit: int) -> Sequence[Upload]:
    """Return uploads of any account whose time is over."""
    rows = await reader.all(select(UPLOADS).where(UPLOADS.c.expires_at <= now).order_by(UPLOADS.c.expires_at).limit(limit))
    return [Upload(**row._mapping) for row in rows]


async def delete_parts(tx: Transaction, upload: Upload) -> None:
    """Forget an upload's parts; their blobs were deleted before."""
    await tx.execute(delete(UPLOAD_PARTS).where(UPLOAD_PARTS.c.upload_id == upload.upload_id))


async def delete_upload(tx: Transaction, upload: Upload) -> None:
    """Forget an upload and its parts."""
    await delete_parts(tx, upload)
    await tx.execute(delete(UPLOADS).where(UPLOADS.c.upload_id == upload.upload_id))
