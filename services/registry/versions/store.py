"""Every query of versions and packages. Rows in, values out; no function without an account."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, update

from kit.db import Reader, Transaction
from services.registry.tables import COLLECTION_MODELS, PACKAGES, VERSIONS
from services.registry.versions.contract import Contract, contract_from_json, contract_of
from services.registry.versions.domain import Package, PackageSummary, Version, VersionState

#: Versions whose contract is looked through at a time: the first one nearly always has it all.
_CONTRACTS_AT_ONCE = 20


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


async def find_contract(reader: Reader, account: str, model_id: str, *, without: int = 0) -> Contract | None:
    """Return what a version must keep; None while no version (other than `without`) binds anything.

    The newest commit knows all parameters. Tensors that it does not know yet (it is being packaged) are those of the one before it.
    """
    here = VERSIONS.c
    wanted = select(here.version, here.contract).where(
        here.account == account, here.model_id == model_id, here.binds_contract.is_(True), here.version != without
    )
    wanted = wanted.order_by(_commit_number().desc(), here.version.desc())
    params, inputs, outputs, skip = None, None, None, 0
    while rows := await reader.all(wanted.offset(skip).limit(_CONTRACTS_AT_ONCE)):
        for row in rows:
            contract = contract_from_json(row.contract) if row.contract else await _old_contract(reader, account, model_id, row.version)
            params = contract.params if params is None else params
            inputs, outputs = inputs or contract.inputs, outputs or contract.outputs
            if inputs is not None and outputs is not None:
                return Contract(params, inputs, outputs)
        skip += len(rows)
    return None if params is None else Contract(params, inputs, outputs)


async def next_commit_number(tx: Transaction, account: str, model_id: str) -> int:
    """Return the number of a model's next commit; the transaction has locked the model."""
    wanted = select(func.max(_commit_number())).where(VERSIONS.c.account == account, VERSIONS.c.model_id == model_id)
    return int(await tx.scalar(wanted) or 0) + 1


def _commit_number() -> ColumnElement[int]:
    return func.coalesce(VERSIONS.c.commit_number, 0)


async def _old_contract(reader: Reader, account: str, model_id: str, version: int) -> Contract:
    """Return the contract of a version that was committed before contracts were stored: they were all equal in their parameters."""
    found = await find_version(reader, account, model_id, version)
    assert found is not None
    packages = await list_packages(reader, account, model_id, version)
    return contract_of(found.declaration, json.loads(packages[0].manifest) if packages else None)


async def set_collection_models(tx: Transaction, account: str, collection: str, name: str, model_ids: Sequence[str]) -> None:
    """Note which models a collection serves since its last publish."""
    here = COLLECTION_MODELS.c
    await tx.execute(delete(COLLECTION_MODELS).where(here.account == account, here.collection == collection))
    rows = [{"account": account, "model_id": model_id, "collection": collection, "name": name} for model_id in sorted(set(model_ids))]
    if rows:
        await tx.execute(insert(COLLECTION_MODELS), rows)


async def list_collections_of(reader: Reader, account: str, model_id: str) -> Sequence[Mapping[str, str]]:
    """Return id and name of the collections that serve a model, by id."""
    here = COLLECTION_MODELS.c
    wanted = select(here.collection, here.name).where(here.account == account, here.model_id == model_id)
    return [{"id": row.collection, "name": row.name} for row in await reader.all(wanted.order_by(here.collection))]


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
