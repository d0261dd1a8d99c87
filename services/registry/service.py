"""Use cases of models and aliases; each is one transaction."""

from __future__ import annotations

from typing import Any

from kit.clock import Clock
from kit.db import Database, Transaction
from services.registry import events, store
from services.registry.domain import Alias, AliasMove, Model, ModelDetails, Slice, check_match
from services.registry.errors import AliasNotFound, ModelExists, ModelNotFound, VersionNotReady
from services.registry.versions import store as versions
from services.registry.versions.contract import ContractLevel
from services.registry.versions.domain import VersionState
from services.registry.versions.errors import VersionNotFound


class ModelService:
    """Models of an account and their aliases."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self, account: str, model_id: str, *, description: str, labels: dict[str, str], level: ContractLevel, by: str
    ) -> ModelDetails:
        """Make a model. Raises `ModelExists`."""
        now = self._clock.now()
        model = Model(account, model_id, description, labels, now, by, now, 1, 0, level, now, by)
        async with self._database.begin() as tx:
            if not await store.add_model(tx, model):
                raise ModelExists(f"there is a model {model_id!r} already; add a version to it, or choose another id", model_id=model_id)
        return ModelDetails(model)

    async def ensure_in(self, tx: Transaction, account: str, model_id: str, *, description: str, labels: dict[str, str], by: str) -> Model:
        """Return the locked model, made now if there is none: part of another use case's transaction."""
        now = self._clock.now()
        await store.add_model(tx, Model(account, model_id, description, labels, now, by, now, 1, 0))
        model = await store.lock_model(tx, account, model_id)
        assert model is not None
        return model

    async def find(self, account: str, model_id: str) -> ModelDetails:
        """Return a model with its aliases and contract. Raises `ModelNotFound`."""
        async with self._database.read() as reader:
            model = await store.find_model(reader, account, model_id)
            if model is None:
                raise _no_model()
            aliases = await store.list_aliases(reader, account, model_id)
            contract = await versions.find_contract(reader, account, model_id)
        return ModelDetails(model, {alias.name: alias.version for alias in aliases}, contract)

    async def list(self, account: str, *, search: str, after: str, size: int) -> Slice[Model]:
        """Return a page of models."""
        async with self._database.read() as reader:
            return Slice.cut(await store.list_models(reader, account, search=search, after=after, limit=size + 1), size)

    async def change(
        self,
        account: str,
        model_id: str,
        *,
        description: str | None,
        labels: dict[str, str] | None,
        level: ContractLevel | None,
        if_match: str | None,
        by: str,
    ) -> ModelDetails:
        """Change description, labels or contract level. Raises `ModelNotFound`, `PreconditionFailed`."""
        given: dict[str, Any] = {"description": description, "labels": labels}
        async with self._database.begin() as tx:
            model = await store.lock_model(tx, account, model_id)
            if model is None:
                raise _no_model()
            check_match(if_match, model.revision)
            now = self._clock.now()
            if level is not None and level is not model.contract_level:
                given |= {"contract_level": level.value, "contract_set_at": now, "contract_set_by": by}
            await store.change_model(tx, model, at=now, **{name: value for name, value in given.items() if value is not None})
        return await self.find(account, model_id)

    async def put_alias(
        self, account: str, model_id: str, name: str, *, version: int, why: str, if_match: str | None, by: str
    ) -> tuple[Alias, bool]:
        """Point an alias at a ready version; returns it, and whether it is new. Pointing it where it points changes nothing.

        Raises `ModelNotFound`, `VersionNotFound`, `VersionNotReady`, `PreconditionFailed`.
        """
        async with self._database.begin() as tx:
            if await store.lock_model(tx, account, model_id) is None:
                raise _no_model()
            alias = await store.find_alias(tx, account, model_id, name)
            check_match(if_match, alias.revision if alias else None)
            target = await versions.find_version(tx, account, model_id, version)
            if target is None:
                raise VersionNotFound("the model has no such version")
            if target.state is not VersionState.READY:
                raise VersionNotReady(f"version {version} is {target.state}; an alias points at a ready version", state=target.state)
            if alias is not None and alias.version == version:
                return alias, False
            moved = await self._move(tx, account, model_id, name, alias=alias, to_version=version, why=why, by=by)
        assert moved is not None
        return moved, alias is None

    async def find_alias(self, account: str, model_id: str, name: str) -> Alias:
        """Return an alias. Raises `ModelNotFound`, `AliasNotFound`."""
        async with self._database.read() as reader:
            if await store.find_model(reader, account, model_id) is None:
                raise _no_model()
            alias = await store.find_alias(reader, account, model_id, name)
        if alias is None:
            raise _no_alias()
        return alias

    async def list_aliases(self, account: str, model_id: str, *, after: str, size: int) -> Slice[Alias]:
        """Return a page of a model's aliases. Raises `ModelNotFound`."""
        async with self._database.read() as reader:
            if await store.find_model(reader, account, model_id) is None:
                raise _no_model()
            return Slice.cut(await store.list_aliases(reader, account, model_id, after=after, limit=size + 1), size)

    async def delete_alias(self, account: str, model_id: str, name: str, *, why: str, if_match: str | None, by: str) -> None:
        """Remove an alias; its history stays. Raises `ModelNotFound`, `AliasNotFound`, `PreconditionFailed`."""
        async with self._database.begin() as tx:
            if await store.lock_model(tx, account, model_id) is None:
                raise _no_model()
            alias = await store.find_alias(tx, account, model_id, name)
            if alias is None:
                raise _no_alias()
            check_match(if_match, alias.revision)
            await self._move(tx, account, model_id, name, alias=alias, to_version=None, why=why, by=by)

    async def remove_aliases_in(self, tx: Transaction, account: str, model_id: str, version: int, *, why: str, by: str) -> None:
        """Remove every alias of a version, in the transaction that archives it."""
        for alias in await store.list_aliases(tx, account, model_id, version=version):
            await self._move(tx, account, model_id, alias.name, alias=alias, to_version=None, why=why, by=by)

    async def alias_history(self, account: str, model_id: str, name: str, *, before: int | None, size: int) -> Slice[AliasMove]:
        """Return a page of an alias's history, newest first; a removed alias has one too. Raises `ModelNotFound`, `AliasNotFound`."""
        async with self._database.read() as reader:
            if await store.find_model(reader, account, model_id) is None:
                raise _no_model()
            moves = await store.list_moves(reader, account, model_id, name, before=before, limit=size + 1)
        if not moves and before is None:
            raise _no_alias()
        return Slice.cut(moves, size)

    async def _move(
        self, tx: Transaction, account: str, model_id: str, name: str, *, alias: Alias | None, to_version: int | None, why: str, by: str
    ) -> Alias | None:
        """Move an alias and tell of it: the fact and its event in one transaction."""
        moved = await store.move_alias(
            tx,
            account,
            model_id,
            name,
            from_version=alias.version if alias else None,
            to_version=to_version,
            at=self._clock.now(),
            by=by,
            why=why,
        )
        await tx.emit(
            events.ALIAS_MOVED,
            key=events.model_key(account, model_id),
            account=account,
            value=events.alias_moved(account, model_id, name, to_version),
        )
        return moved


def _no_model() -> ModelNotFound:
    return ModelNotFound("there is no such model")


def _no_alias() -> AliasNotFound:
    return AliasNotFound("the model has no such alias")
