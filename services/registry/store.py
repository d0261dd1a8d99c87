"""Every query of models and aliases. Rows in, values out; no function without an account."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from kit.db import Reader, Transaction
from services.registry.domain import Alias, AliasMove, Model
from services.registry.tables import ALIAS_MOVES, ALIASES, MODELS
from services.registry.versions.contract import ContractLevel

_ESCAPE = "\\"


def _model(row: Row[Any]) -> Model:
    fields = dict(row._mapping)
    return Model(**{**fields, "contract_level": ContractLevel(fields["contract_level"])})


async def find_model(reader: Reader, account: str, model_id: str) -> Model | None:
    """Return a model or None."""
    row = await reader.first(select(MODELS).where(MODELS.c.account == account, MODELS.c.model_id == model_id))
    return None if row is None else _model(row)


async def lock_model(tx: Transaction, account: str, model_id: str) -> Model | None:
    """Return a model and keep others from changing it, its versions and its aliases until the transaction ends."""
    row = await tx.first(select(MODELS).where(MODELS.c.account == account, MODELS.c.model_id == model_id).with_for_update())
    return None if row is None else _model(row)


async def list_models(reader: Reader, account: str, *, search: str, after: str, limit: int) -> Sequence[Model]:
    """Return models by id. `search` is looked for, without regard to case, in id, description and labels."""
    wanted = select(MODELS).where(MODELS.c.account == account, MODELS.c.model_id > after)
    if search:
        pattern = "%" + "".join(_ESCAPE + character if character in "%_\\" else character for character in search) + "%"
        fields = (MODELS.c.model_id, MODELS.c.description, MODELS.c.labels.cast(MODELS.c.description.type))
        wanted = wanted.where(or_(*(field.ilike(pattern, escape=_ESCAPE) for field in fields)))
    rows = await reader.all(wanted.order_by(MODELS.c.model_id).limit(limit))
    return [_model(row) for row in rows]


async def add_model(tx: Transaction, model: Model) -> bool:
    """Insert a model. False: the account has one of this id."""
    if await find_model(tx, model.account, model.model_id) is not None:
        return False
    try:
        await tx.execute(
            insert(MODELS).values(
                account=model.account,
                model_id=model.model_id,
                description=model.description,
                labels=model.labels,
                created_at=model.created_at,
                created_by=model.created_by,
                updated_at=model.updated_at,
                revision=model.revision,
                last_version=model.last_version,
                contract_level=model.contract_level.value,
                contract_set_at=model.contract_set_at,
                contract_set_by=model.contract_set_by,
            )
        )
    except IntegrityError:
        return False
    return True


async def change_model(tx: Transaction, model: Model, *, at: datetime, **values: Any) -> None:
    """Set columns of a model that the transaction has locked; its revision rises."""
    await tx.execute(
        update(MODELS)
        .where(MODELS.c.account == model.account, MODELS.c.model_id == model.model_id)
        .values(**values, revision=MODELS.c.revision + 1, updated_at=at)
    )


async def take_version_number(tx: Transaction, model: Model) -> int:
    """Return the next version number of a model that the transaction has locked. Numbers are never given twice."""
    number = model.last_version + 1
    await tx.execute(
        update(MODELS).where(MODELS.c.account == model.account, MODELS.c.model_id == model.model_id).values(last_version=number)
    )
    return number


def _alias(row: Row[Any]) -> Alias:
    return Alias(row.model_id, row.name, row.version, row.revision, row.moved_at, row.moved_by, row.why)


async def find_alias(reader: Reader, account: str, model_id: str, name: str) -> Alias | None:
    """Return an alias or None."""
    table = ALIASES
    row = await reader.first(select(table).where(table.c.account == account, table.c.model_id == model_id, table.c.name == name))
    return None if row is None else _alias(row)


async def list_aliases(
    reader: Reader, account: str, model_id: str, *, after: str = "", version: int | None = None, limit: int | None = None
) -> Sequence[Alias]:
    """Return a model's aliases by name; with `version` only those that point at it."""
    table = ALIASES
    wanted = select(table).where(table.c.account == account, table.c.model_id == model_id, table.c.name > after)
    if version is not None:
        wanted = wanted.where(table.c.version == version)
    return [_alias(row) for row in await reader.all(wanted.order_by(table.c.name).limit(limit))]


async def move_alias(
    tx: Transaction,
    account: str,
    model_id: str,
    name: str,
    *,
    from_version: int | None,
    to_version: int | None,
    at: datetime,
    by: str,
    why: str,
) -> Alias | None:
    """Write the history and set, move or remove (`to_version` None) the alias; returns what it is now."""
    move = {"account": account, "model_id": model_id, "name": name, "moved_at": at, "moved_by": by, "why": why}
    added = await tx.execute(insert(ALIAS_MOVES).values(**move, from_version=from_version, to_version=to_version))
    assert added.inserted_primary_key is not None
    position: int = added.inserted_primary_key[0]
    table = ALIASES
    this = (table.c.account == account, table.c.model_id == model_id, table.c.name == name)
    if to_version is None:
        await tx.execute(delete(table).where(*this))
        return None
    if from_version is None:
        await tx.execute(insert(table).values(**move, version=to_version, revision=position))
    else:
        await tx.execute(update(table).where(*this).values(version=to_version, revision=position, moved_at=at, moved_by=by, why=why))
    return Alias(model_id, name, to_version, position, at, by, why)


async def list_moves(reader: Reader, account: str, model_id: str, name: str, *, before: int | None, limit: int) -> Sequence[AliasMove]:
    """Return an alias's history, newest first."""
    table = ALIAS_MOVES
    wanted = select(table).where(table.c.account == account, table.c.model_id == model_id, table.c.name == name)
    if before is not None:
        wanted = wanted.where(table.c.position < before)
    rows = await reader.all(wanted.order_by(table.c.position.desc()).limit(limit))
    return [AliasMove(row.position, row.name, row.from_version, row.to_version, row.moved_at, row.moved_by, row.why) for row in rows]
