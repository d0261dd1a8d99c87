"""Every query of the catalogue. Sources and entries belong to the server, not to an account."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from kit.db import Reader, Transaction
from services.registry.catalogue.domain import Entry, ListedPackage, Source
from services.registry.catalogue.tables import CATALOGUE_ENTRIES, CATALOGUE_SOURCES

_ESCAPE = "\\"


def _source(row: Row[Any]) -> Source:
    fields = dict(row._mapping)
    keys = {key_id: base64.b64decode(text) for key_id, text in fields["public_keys"].items()}
    return Source(**{**fields, "public_keys": keys})


def _entry(row: Row[Any]) -> Entry:
    fields = dict(row._mapping)
    return Entry(**{**fields, "packages": tuple(ListedPackage(**one) for one in fields["packages"])})


async def list_sources(reader: Reader, *, after: str = "", limit: int | None = None) -> Sequence[Source]:
    """Return sources by id."""
    table = CATALOGUE_SOURCES
    rows = await reader.all(select(table).where(table.c.source_id > after).order_by(table.c.source_id).limit(limit))
    return [_source(row) for row in rows]


async def find_source(reader: Reader, source_id: str) -> Source | None:
    """Return a source or None."""
    row = await reader.first(select(CATALOGUE_SOURCES).where(CATALOGUE_SOURCES.c.source_id == source_id))
    return None if row is None else _source(row)


async def add_source(tx: Transaction, source: Source) -> bool:
    """Insert a source. False: its location is one already."""
    table = CATALOGUE_SOURCES
    if await tx.scalar(select(table.c.source_id).where(table.c.location == source.location)) is not None:
        return False
    try:
        await tx.execute(
            insert(table).values(
                source_id=source.source_id,
                location=source.location,
                public_keys={key_id: base64.b64encode(key).decode() for key_id, key in source.public_keys.items()},
                title=source.title,
                created_at=source.created_at,
                created_by=source.created_by,
                fetched_at=source.fetched_at,
                problem=source.problem,
            )
        )
    except IntegrityError:
        return False
    return True


async def delete_source(tx: Transaction, source_id: str) -> bool:
    """Forget a source and its entries. False: there is none."""
    await tx.execute(delete(CATALOGUE_ENTRIES).where(CATALOGUE_ENTRIES.c.source_id == source_id))
    result = await tx.execute(delete(CATALOGUE_SOURCES).where(CATALOGUE_SOURCES.c.source_id == source_id))
    return result.rowcount == 1


async def replace_entries(tx: Transaction, source_id: str, title: str, entries: Sequence[Entry], *, at: datetime) -> None:
    """Put a freshly fetched index in the place of the old one."""
    table = CATALOGUE_SOURCES
    await tx.execute(update(table).where(table.c.source_id == source_id).values(title=title, fetched_at=at, problem=None))
    await tx.execute(delete(CATALOGUE_ENTRIES).where(CATALOGUE_ENTRIES.c.source_id == source_id))
    if entries:
        rows = [
            {
                "source_id": source_id,
                "name": entry.name,
                "title": entry.title,
                "description": entry.description,
                "license": entry.license,
                "labels": entry.labels,
                "packages": [{"path": one.path, "digest": one.digest} for one in entry.packages],
            }
            for entry in entries
        ]
        await tx.execute(insert(CATALOGUE_ENTRIES), rows)


async def note_problem(tx: Transaction, source_id: str, problem: str) -> None:
    """Remember why a source could not be fetched."""
    table = CATALOGUE_SOURCES
    await tx.execute(update(table).where(table.c.source_id == source_id).values(problem=problem))


async def list_entries(reader: Reader, *, search: str, after: tuple[str, str] | None, limit: int) -> Sequence[Entry]:
    """Return entries by name. `search` is looked for, without regard to case, in name, title and description."""
    table = CATALOGUE_ENTRIES
    wanted = select(table)
    if after is not None:
        name, source_id = after
        wanted = wanted.where(or_(table.c.name > name, and_(table.c.name == name, table.c.source_id > source_id)))
    if search:
        pattern = "%" + "".join(_ESCAPE + character if character in "%_\\" else character for character in search) + "%"
        wanted = wanted.where(or_(*(table.c[field].ilike(pattern, escape=_ESCAPE) for field in ("name", "title", "description"))))
    rows = await reader.all(wanted.order_by(table.c.name, table.c.source_id).limit(limit))
    return [_entry(row) for row in rows]


async def find_entry(reader: Reader, source_id: str, name: str) -> Entry | None:
    """Return an entry or None."""
    table = CATALOGUE_ENTRIES
    row = await reader.first(select(table).where(table.c.source_id == source_id, table.c.name == name))
    return None if row is None else _entry(row)
