"""Statements about collections, revisions and the catalogue. Rows in, dataclasses out; every one names the account.

Devices and decisions are in `store_devices.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Row, case, delete, insert, literal, select, tuple_, update

from kit.db import Reader, Transaction
from services.deployer.binding import Catalogue, VersionEntry
from services.deployer.compatibility import Package, package_of
from services.deployer.domain import MARK_STEP, Collection, Draft, Mark, PackageFile, Published, Revision, files_of
from services.deployer.tables import ALIASES, COLLECTION_MODELS, COLLECTIONS, PACKAGES, REVISIONS, VERSIONS

#: Bound parameters per statement stay below what the databases take.
_CHUNK = 400


def _chunks(items: Iterable[Any]) -> Iterable[list[Any]]:
    listed = list(items)
    return (listed[start : start + _CHUNK] for start in range(0, len(listed), _CHUNK))


# --- collections ----------------------------------------------------------------------------------------------------------------------


def _collection(row: Row[Any]) -> Collection:
    return Collection(row.id, row.name, row.description, row.created_at, row.updated_at, row.revision, row.draft_number)


async def add_collection(
    tx: Transaction, account: str, *, collection: str, name: str, description: str, document: Any, by: str, now: datetime
) -> None:
    """Insert a collection with its first draft. Raises `IntegrityError` when the id is taken."""
    await tx.execute(
        insert(COLLECTIONS).values(
            account=account,
            id=collection,
            name=name,
            description=description,
            created_at=now,
            updated_at=now,
            draft=document,
            draft_number=1,
            draft_by=by,
            draft_at=now,
            revision=None,
            mark=0,
            touched_at=now,
            active_at=now,
        )
    )


async def collection_of(reader: Reader, account: str, collection: str) -> Collection | None:
    """Return one collection, or None."""
    row = await reader.first(select(COLLECTIONS).where(COLLECTIONS.c.account == account, COLLECTIONS.c.id == collection))
    return None if row is None else _collection(row)


async def lock_collection(tx: Transaction, account: str, collection: str) -> Collection | None:
    """Return one collection, or None; nobody else changes it until this transaction ends."""
    key = (COLLECTIONS.c.account == account) & (COLLECTIONS.c.id == collection)
    row = await tx.first(select(COLLECTIONS).where(key).with_for_update())
    return None if row is None else _collection(row)


async def collections_of(reader: Reader, account: str, *, after: str, limit: int) -> list[Collection]:
    """Return collections by id."""
    rows = await reader.all(
        select(COLLECTIONS).where(COLLECTIONS.c.account == account, COLLECTIONS.c.id > after).order_by(COLLECTIONS.c.id).limit(limit)
    )
    return [_collection(row) for row in rows]


async def rename(tx: Transaction, account: str, collection: str, *, name: str, description: str, now: datetime) -> None:
    """Change the texts of a collection."""
    await tx.execute(
        update(COLLECTIONS)
        .where(COLLECTIONS.c.account == account, COLLECTIONS.c.id == collection)
        .values(name=name, description=description, updated_at=now)
    )


async def draft_of(reader: Reader, account: str, collection: str) -> Draft | None:
    """Return the draft, or None when there is no such collection."""
    row = await reader.first(select(COLLECTIONS).where(COLLECTIONS.c.account == account, COLLECTIONS.c.id == collection))
    return None if row is None else Draft(row.draft, row.draft_number, row.draft_by, row.draft_at)


async def set_draft(tx: Transaction, account: str, collection: str, *, document: Any, number: int, by: str, now: datetime) -> None:
    """Replace the draft."""
    await tx.execute(
        update(COLLECTIONS)
        .where(COLLECTIONS.c.account == account, COLLECTIONS.c.id == collection)
        .values(draft=document, draft_number=number, draft_by=by, draft_at=now, updated_at=now)
    )


# --- revisions ------------------------------------------------------------------------------------------------------------------------


def _revision(row: Row[Any]) -> Revision:
    return Revision(row.collection, row.revision, row.document, row.digest, row.published_at, row.published_by, row.note, row.reverted_to)


def _next_mark(now: datetime) -> Any:
    """Return what the mark becomes: the moment in microseconds, or a step above the last one when that is more."""
    moment = literal(int(now.timestamp() * 1_000_000), BigInteger)
    step = COLLECTIONS.c.mark + MARK_STEP
    return case((step > moment, step), else_=moment)


async def add_revision(
    tx: Transaction, account: str, revision: Revision, *, models: Iterable[str], now: datetime, active_at: datetime
) -> None:
    """Insert a revision, make it the published one from `active_at` on, and note which models it serves. Both by the database's clock."""
    await tx.execute(
        insert(REVISIONS).values(
            account=account,
            collection=revision.collection,
            revision=revision.revision,
            document=revision.document,
            digest=revision.digest,
            published_at=revision.published_at,
            published_by=revision.published_by,
            note=revision.note,
            reverted_to=revision.reverted_to,
        )
    )
    here = COLLECTION_MODELS.c
    await tx.execute(delete(COLLECTION_MODELS).where(here.account == account, here.collection == revision.collection))
    rows = [{"account": account, "model_id": model, "collection": revision.collection} for model in sorted(models)]
    if rows:
        await tx.execute(insert(COLLECTION_MODELS), rows)
    await tx.execute(
        update(COLLECTIONS)
        .where(COLLECTIONS.c.account == account, COLLECTIONS.c.id == revision.collection)
        .values(
            revision=revision.revision,
            updated_at=revision.published_at,
            mark=_next_mark(now),
            touched_at=now,
            active_at=active_at,
        )
    )


async def revision_of(reader: Reader, account: str, collection: str, revision: int) -> Revision | None:
    """Return one revision, or None."""
    row = await reader.first(
        select(REVISIONS).where(REVISIONS.c.account == account, REVISIONS.c.collection == collection, REVISIONS.c.revision == revision)
    )
    return None if row is None else _revision(row)


async def revisions_of(reader: Reader, account: str, collection: str, *, before: int, limit: int) -> list[Revision]:
    """Return revisions below `before`, newest first."""
    rows = await reader.all(
        select(REVISIONS)
        .where(REVISIONS.c.account == account, REVISIONS.c.collection == collection, REVISIONS.c.revision < before)
        .order_by(REVISIONS.c.revision.desc())
        .limit(limit)
    )
    return [_revision(row) for row in rows]


# --- what memory holds ----------------------------------------------------------------------------------------------------------------

_HERE = COLLECTIONS.c
_PUBLISHED = select(
    _HERE.account, _HERE.id, _HERE.mark, _HERE.touched_at, _HERE.active_at, REVISIONS.c.revision, REVISIONS.c.document, REVISIONS.c.digest
).join(
    REVISIONS,
    (REVISIONS.c.account == COLLECTIONS.c.account)
    & (REVISIONS.c.collection == COLLECTIONS.c.id)
    & (REVISIONS.c.revision == COLLECTIONS.c.revision),
)


async def published(reader: Reader, account: str, collection: str) -> Published | None:
    """Return the published revision of a collection with its mark, or None."""
    row = await reader.first(_PUBLISHED.where(COLLECTIONS.c.account == account, COLLECTIONS.c.id == collection))
    return (
        None
        if row is None
        else Published(Mark(row.account, row.id, row.mark, row.touched_at, row.active_at), row.revision, row.document, row.digest)
    )


async def marks(reader: Reader, *, since: datetime | None, after: tuple[str, str], limit: int) -> list[Mark]:
    """Return the marks of published collections, all or those touched since, in key order behind `after`.

    Of every account on purpose: this tells a process what to hold in memory.
    """
    key = tuple_(COLLECTIONS.c.account, COLLECTIONS.c.id)
    statement = select(_HERE.account, _HERE.id, _HERE.mark, _HERE.touched_at, _HERE.active_at).where(
        _HERE.revision.is_not(None), key > after
    )
    if since is not None:
        statement = statement.where(COLLECTIONS.c.touched_at >= since)
    rows = await reader.all(statement.order_by(COLLECTIONS.c.account, COLLECTIONS.c.id).limit(limit))
    return [Mark(row.account, row.id, row.mark, row.touched_at, row.active_at) for row in rows]


async def touch(tx: Transaction, account: str, models: Iterable[str], now: datetime, *, active_at: datetime) -> list[str]:
    """Mark the collections that serve one of the models; returns their ids. `now` and `active_at` are by the database's clock."""
    here = COLLECTION_MODELS.c
    rows = await tx.all(select(here.collection).where(here.account == account, here.model_id.in_(list(models))).distinct())
    touched = [row.collection for row in rows]
    for chunk in _chunks(touched):
        await tx.execute(
            update(COLLECTIONS)
            .where(COLLECTIONS.c.account == account, COLLECTIONS.c.id.in_(chunk))
            .values(mark=_next_mark(now), touched_at=now, active_at=active_at)
        )
    return touched


# --- catalogue ------------------------------------------------------------------------------------------------------------------------


async def add_version(tx: Transaction, account: str, model_id: str, version: int, *, packages: Sequence[Any], now: datetime) -> None:
    """Keep a version that became ready. `packages` are (variant, digest, size, manifest text) in order; the same again changes nothing."""
    of_version = (VERSIONS.c.account == account) & (VERSIONS.c.model_id == model_id) & (VERSIONS.c.version == version)
    of_package = (PACKAGES.c.account == account) & (PACKAGES.c.model_id == model_id) & (PACKAGES.c.version == version)
    row = {"account": account, "model_id": model_id, "version": version}
    if await tx.first(select(VERSIONS.c.version).where(of_version)) is None:
        await tx.execute(insert(VERSIONS).values(**row, archived=False, readied_at=now))
    elif await tx.first(select(PACKAGES.c.position).where(of_package)) is not None:
        return
    rows = [
        {**row, "position": position, "variant": variant, "digest": digest, "size": size, "manifest": manifest}
        for position, (variant, digest, size, manifest) in enumerate(packages)
    ]
    if rows:
        await tx.execute(insert(PACKAGES), rows)


async def archive_version(tx: Transaction, account: str, model_id: str, version: int, now: datetime) -> None:
    """Note that a version is archived, even before it is known: the two events come by different topics, in any order."""
    key = (VERSIONS.c.account == account) & (VERSIONS.c.model_id == model_id) & (VERSIONS.c.version == version)
    if await tx.first(select(VERSIONS.c.version).where(key)) is None:
        await tx.execute(insert(VERSIONS).values(account=account, model_id=model_id, version=version, archived=True, readied_at=now))
    else:
        await tx.execute(update(VERSIONS).where(key).values(archived=True))


async def move_alias(tx: Transaction, account: str, model_id: str, alias: str, version: int) -> None:
    """Let the alias point at a version; 0 removes it."""
    key = (ALIASES.c.account == account) & (ALIASES.c.model_id == model_id) & (ALIASES.c.alias == alias)
    await tx.execute(delete(ALIASES).where(key))
    if version:
        await tx.execute(insert(ALIASES).values(account=account, model_id=model_id, alias=alias, version=version))


async def catalogue(reader: Reader, account: str, models: Iterable[str], versions: Iterable[tuple[str, int]]) -> Catalogue:
    """Return the aliases of the models, and of their versions those that are named or that an alias points at."""
    aliases: dict[tuple[str, str], int] = {}
    for chunk in _chunks(models):
        rows = await reader.all(select(ALIASES).where(ALIASES.c.account == account, ALIASES.c.model_id.in_(chunk)))
        aliases.update({(row.model_id, row.alias): row.version for row in rows})
    wanted = set(versions) | {(model, version) for (model, _), version in aliases.items()}
    archived: dict[tuple[str, int], bool] = {}
    packages: dict[tuple[str, int], list[Package]] = {}
    for chunk in _chunks(sorted(wanted)):
        key = tuple_(VERSIONS.c.model_id, VERSIONS.c.version).in_(chunk)
        for row in await reader.all(select(VERSIONS).where(VERSIONS.c.account == account, key)):
            archived[row.model_id, row.version] = row.archived
        key = tuple_(PACKAGES.c.model_id, PACKAGES.c.version).in_(chunk)
        rows = await reader.all(select(PACKAGES).where(PACKAGES.c.account == account, key).order_by(PACKAGES.c.position))
        for row in rows:
            package = package_of(json.loads(row.manifest), digest=row.digest, size=row.size)
            packages.setdefault((row.model_id, row.version), []).append(package)
    entries = {key: VersionEntry(tuple(packages.get(key, ())), gone) for key, gone in archived.items()}
    return Catalogue(entries, aliases)


async def known_models(reader: Reader, account: str, models: Iterable[str]) -> frozenset[str]:
    """Return those of the models of which any version became ready."""
    found: set[str] = set()
    for chunk in _chunks(models):
        rows = await reader.all(select(VERSIONS.c.model_id).where(VERSIONS.c.account == account, VERSIONS.c.model_id.in_(chunk)).distinct())
        found.update(row.model_id for row in rows)
    return frozenset(found)


async def package_files(reader: Reader, account: str, digests: Iterable[str]) -> dict[str, tuple[PackageFile, ...]]:
    """Return the files of packages by digest; unknown digests are left out."""
    found: dict[str, tuple[PackageFile, ...]] = {}
    for chunk in _chunks(digests):
        rows = await reader.all(
            select(PACKAGES.c.digest, PACKAGES.c.manifest).where(PACKAGES.c.account == account, PACKAGES.c.digest.in_(chunk))
        )
        found.update({row.digest: files_of(json.loads(row.manifest)) for row in rows})
    return found
