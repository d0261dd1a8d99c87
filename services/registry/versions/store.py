"""Every query of versions and packages. Rows in, values out; no function without an account."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, insert, select, update

from kit.db import Reader, Transaction
from services.registry.tables import PACKAGES, VERSIONS
from services.registry.versions.domain import Package, PackageSummary, Version, VersionState, contract_of


def _version(row: Row[Any]) -> Version:
    fields = dict(row._mapping)
    return Version(**{**fields, "state": VersionState(fields["state"])})


def _of(account: str, model_id: str, version: int) -> ColumnElement[bool]:
    return and_(VERSIONS.c.account == account, VERSIONS.c.model_id == model_id, VERSIONS.c.version == version)


async def find_version(reader: Reader, account: str, model_id: str, version: int) -> Version | None:
    """Return a version or None."""
    row = await reader.first(select(VERSIONS).where(_of(account, model_id, version)))
    return None if row is None else _version(row)


async def list_versions(
    reader: Reader, account: str, model_id: str, *, state: VersionState | None, before: int | None, limit: int
) -> Sequence[Version]:
    """Return versions, newest first."""
    wanted = select(VERSIONS).where(VERSIONS.c.account == account, VERSIONS.c.model_id == model_id)
    if state is not None:
        wanted = wanted.where(VERSIONS.c.state == state.value)
    if before is not None:
        wanted = wanted.where(VERSIONS.c.version < before)
    return [_version(row) for row in await reader.all(wanted.order_by(VERSIONS.c.version.desc()).limit(limit))]


async def add_draft(
    tx: Transaction, account: str, model_id: str, version: int, *, declaration: dict[str, Any], at: datetime, by: str
) -> Version:
    """Insert a draft and return it."""
    await tx.execute(
        insert(VERSIONS).values(
            account=account,
            model_id=model_id,
            version=version,
            state=VersionState.DRAFT.value,
            revision=1,
            declaration=declaration,
            binds_contract=False,
            created_at=at,
            created_by=by,
            updated_at=at,
        )
    )
    stored = await find_version(tx, account, model_id, version)
    assert stored is not None
    return stored


async def change_version(tx: Transaction, version: Version, *, at: datetime, **values: Any) -> Version:
    """Set columns of a version whose model the transaction has locked; its revision rises. Returns it as it is now."""
    await tx.execute(
        update(VERSIONS)
        .where(_of(version.account, version.model_id, version.version))
        .values(**values, revision=VERSIONS.c.revision + 1, updated_at=at)
    )
    changed = await find_version(tx, version.account, version.model_id, version.version)
    assert changed is not None
    return changed


async def find_contract(reader: Reader, account: str, model_id: str) -> dict[str, str] | None:
    """Return the parameter contract that later versions must keep; None while no version binds one."""
    wanted = select(VERSIONS.c.declaration).where(
        VERSIONS.c.account == account, VERSIONS.c.model_id == model_id, VERSIONS.c.binds_contract.is_(True)
    )
    row = await reader.first(wanted.order_by(VERSIONS.c.version).limit(1))
    return None if row is None else contract_of(row.declaration)


async def add_packages(tx: Transaction, packages: Sequence[Package]) -> None:
    """Insert a version's packages."""
    names = [column.name for column in PACKAGES.columns]
    await tx.execute(insert(PACKAGES), [{name: getattr(package, name) for name in names} for package in packages])


async def list_packages(reader: Reader, account: str, model_id: str, version: int) -> Sequence[Package]:
    """Return a version's packages in its order of preference."""
    table = PACKAGES
    wanted = select(table).where(table.c.account == account, table.c.model_id == model_id, table.c.version == version)
    return [Package(**row._mapping) for row in await reader.all(wanted.order_by(table.c.position))]


async def summarise_packages(reader: Reader, account: str, model_id: str, versions: Sequence[int]) -> dict[int, list[PackageSummary]]:
    """Return digest, variant and size of the packages of several versions, without their bytes."""
    table = PACKAGES
    wanted = select(table.c.version, table.c.digest, table.c.variant, table.c.size).where(
        table.c.account == account, table.c.model_id == model_id, table.c.version.in_(versions)
    )
    found: dict[int, list[PackageSummary]] = {version: [] for version in versions}
    for row in await reader.all(wanted.order_by(table.c.version, table.c.position)):
        found[row.version].append(PackageSummary(row.digest, row.variant, row.size))
    return found


async def find_package(reader: Reader, account: str, digest: str) -> Package | None:
    """Return a package of the account or None."""
    row = await reader.first(select(PACKAGES).where(PACKAGES.c.account == account, PACKAGES.c.digest == digest))
    return None if row is None else Package(**row._mapping)
