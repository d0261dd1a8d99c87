"""Use cases of versions and packages; each is one transaction. What the packager tells is taken in by the consumer in `workers.py`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from kit.blobs import BlobNotFound, BlobStore
from kit.clock import Clock, rfc3339
from kit.db import Database, Transaction
from kit.eventlog import Record
from kit.ids import new_id
from kit.logs import get_logger
from services.registry import store as models
from services.registry.domain import Model, Slice, check_match
from services.registry.errors import ModelNotFound
from services.registry.events import model_key
from services.registry.service import ModelService
from services.registry.versions import events, store
from services.registry.versions.compare import Comparison, compare, facts_of
from services.registry.versions.contract import (
    Breach,
    Contract,
    ContractLevel,
    added_up,
    breaches,
    contract_from_json,
    contract_of,
    contract_to_json,
)
from services.registry.versions.declaration import check_declaration, files_of
from services.registry.versions.domain import Package, PackageSummary, Version, VersionState
from services.registry.versions.errors import (
    ContractBroken,
    FileNotUploaded,
    PackageNotFound,
    ParameterContractBroken,
    TensorContractBroken,
    VersionInUse,
    VersionNotArchivable,
    VersionNotDraft,
    VersionNotFound,
)

log = get_logger(__name__)

#: A link is used at once; a download that is resumed later asks for a new one.
LINK_LIFETIME_S = 900
_STATS_AT_ONCE = 8

Summaries = list[PackageSummary]


class VersionService:
    """Versions of a model, from draft to archive, and their packages."""

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock, model_service: ModelService) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._models = model_service

    async def create(self, account: str, model_id: str, declaration: dict[str, Any], *, by: str) -> Version:
        """Make a draft. Raises `ModelNotFound`, `DeclarationInvalid`, `FileNotUploaded`."""
        async with self._database.read() as reader:
            if await models.find_model(reader, account, model_id) is None:
                raise _no_model()
        await self.check(account, declaration)
        async with self._database.begin() as tx:
            model = await models.lock_model(tx, account, model_id)
            if model is None:
                raise _no_model()
            return await self.create_in(tx, model, declaration, by=by)

    async def create_in(self, tx: Transaction, model: Model, declaration: dict[str, Any], *, by: str) -> Version:
        """Make a draft of a declaration that was checked, for a model that the transaction has locked."""
        number = await models.take_version_number(tx, model)
        return await store.add_draft(tx, model.account, model.model_id, number, declaration=declaration, at=self._clock.now(), by=by)

    async def find(self, account: str, model_id: str, version: int) -> tuple[Version, Summaries]:
        """Return a version and its packages. Raises `ModelNotFound`, `VersionNotFound`."""
        async with self._database.read() as reader:
            if await models.find_model(reader, account, model_id) is None:
                raise _no_model()
            found = await store.find_version(reader, account, model_id, version)
            if found is None:
                raise _no_version()
            packages = await store.summarise_packages(reader, account, model_id, [version])
        return found, packages[version]

    async def list(
        self, account: str, model_id: str, *, state: VersionState | None, before: int | None, size: int
    ) -> Slice[tuple[Version, Summaries]]:
        """Return a page of versions, newest first, with their packages. Raises `ModelNotFound`."""
        async with self._database.read() as reader:
            if await models.find_model(reader, account, model_id) is None:
                raise _no_model()
            part = Slice.cut(await store.list_versions(reader, account, model_id, state=state, before=before, limit=size + 1), size)
            packages = await store.summarise_packages(reader, account, model_id, [version.version for version in part.items])
        return Slice([(version, packages[version.version]) for version in part.items], part.more)

    async def change(self, account: str, model_id: str, version: int, changes: Mapping[str, Any], *, if_match: str | None) -> Version:
        """Replace whole members of a draft's declaration; None removes one that may be absent.

        Raises `ModelNotFound`, `VersionNotFound`, `VersionNotDraft`, `PreconditionFailed`, `DeclarationInvalid`, `FileNotUploaded`.
        """
        before, _ = await self.find(account, model_id, version)
        declaration = {name: value for name, value in {**before.declaration, **changes}.items() if value is not None}
        self._check_draft(before)
        await self.check(account, declaration)
        async with self._database.begin() as tx:
            _, draft = await self._lock(tx, account, model_id, version)
            self._check_draft(draft)
            # The files were checked against the revision that was read above, so nothing may have come in between.
            check_match(f'"{before.revision}"', draft.revision)
            check_match(if_match, draft.revision)
            return await store.change_version(tx, draft, at=self._clock.now(), declaration=declaration)

    async def commit(self, account: str, model_id: str, version: int, *, if_match: str | None, by: str) -> Version:
        """Close a draft and order its packages. Committing what is committed already answers with its state and orders nothing.

        Raises `ModelNotFound`, `VersionNotFound`, `VersionNotDraft`, `PreconditionFailed`, `ContractBroken`, `FileNotUploaded`.
        """
        before, _ = await self.find(account, model_id, version)
        if before.state is VersionState.DRAFT:
            await self._check_files(account, before.declaration)
        async with self._database.begin() as tx:
            model, draft = await self._lock(tx, account, model_id, version)
            if draft.state in {VersionState.PACKAGING, VersionState.READY}:
                return draft
            check_match(if_match, draft.revision)
            return await self.commit_in(tx, model, draft, by=by)

    async def commit_in(self, tx: Transaction, model: Model, draft: Version, *, by: str) -> Version:
        """Close a draft whose model the transaction has locked. Raises `VersionNotDraft`, `ContractBroken`."""
        self._check_draft(draft)
        promised, contract = await store.find_contract(tx, draft.account, draft.model_id), contract_of(draft.declaration)
        if promised is not None:
            broken = breaches(promised, contract, model.contract_level)
            if broken:
                raise _broken(broken, model.contract_level, await store.list_collections_of(tx, draft.account, draft.model_id))
            contract = added_up(promised, contract)
        now = self._clock.now()
        job_id = new_id("j", self._clock)
        committed = await store.change_version(
            tx,
            draft,
            at=now,
            state=VersionState.PACKAGING.value,
            binds_contract=True,
            job_id=job_id,
            committed_at=now,
            committed_by=by,
            commit_number=await store.next_commit_number(tx, draft.account, draft.model_id),
            contract=contract_to_json(contract),
        )
        message = events.version_committed(
            draft.account, draft.model_id, draft.version, job_id=job_id, created_at=rfc3339(now), declaration=draft.declaration
        )
        await self._emit(tx, events.VERSION_COMMITTED, draft, message)
        return committed

    async def archive(self, account: str, model_id: str, version: int, *, force: bool, why: str, if_match: str | None, by: str) -> Version:
        """Take a version out of service, or give up a draft. Doing it again changes nothing.

        `force` removes the aliases that point at it; without it they refuse. What devices have installed keeps running.
        Raises `ModelNotFound`, `VersionNotFound`, `VersionNotArchivable`, `VersionInUse`, `PreconditionFailed`.
        """
        async with self._database.begin() as tx:
            _, found = await self._lock(tx, account, model_id, version)
            if found.state is VersionState.ARCHIVED:
                return found
            check_match(if_match, found.revision)
            if found.state is VersionState.PACKAGING:
                raise VersionNotArchivable(f"version {version} is being packaged; cancel its job {found.job_id} or wait for it")
            aliases = [alias.name for alias in await models.list_aliases(tx, account, model_id, version=version)]
            if aliases and not force:
                raise VersionInUse(
                    f"aliases point at version {version}: {', '.join(aliases)}; move them first, or archive with force", aliases=aliases
                )
            await self._models.remove_aliases_in(tx, account, model_id, version, why=why or f"version {version} was archived", by=by)
            now = self._clock.now()
            archived = await store.change_version(tx, found, at=now, state=VersionState.ARCHIVED.value, archived_at=now)
            if found.state is VersionState.READY:
                await self._emit(tx, events.VERSION_ARCHIVED, found, events.version_archived(account, model_id, version))
        return archived

    async def compare(self, account: str, model_id: str, before: int, after: int) -> Comparison:
        """Say what differs between two versions, and which promises of the first the second breaks.

        Raises `ModelNotFound`, `VersionNotFound`.
        """
        facts, contracts, reports = [], [], []
        async with self._database.read() as reader:
            model = await models.find_model(reader, account, model_id)
            if model is None:
                raise _no_model()
            for number in (before, after):
                version = await store.find_version(reader, account, model_id, number)
                if version is None:
                    raise _no_version()
                packages = await store.list_packages(reader, account, model_id, number)
                manifests = [json.loads(package.manifest) for package in packages]
                facts.append(facts_of(version.declaration, manifests, version.report))
                contracts.append(contract_of(version.declaration, manifests[0] if manifests else None))
                reports.append(version.report)
        level, (earlier, later) = model.contract_level, reports
        broken = breaches(contracts[0], contracts[1], level)
        return replace(compare(*facts), contract_level=level, breaches=broken, reports=(earlier, later))

    async def packages(self, account: str, model_id: str, version: int) -> tuple[Package, ...]:
        """Return a version's packages whole, in its order of preference. Raises `ModelNotFound`, `VersionNotFound`."""
        await self.find(account, model_id, version)
        async with self._database.read() as reader:
            return tuple(await store.list_packages(reader, account, model_id, version))

    async def find_package(self, account: str, digest: str) -> Package:
        """Return a package by its digest. Raises `PackageNotFound`."""
        async with self._database.read() as reader:
            package = await store.find_package(reader, account, digest)
        if package is None:
            raise PackageNotFound("there is no such package")
        return package

    async def file_link(self, account: str, digest: str, path: str) -> str:
        """Return a link to one file of a package. Raises `PackageNotFound`."""
        package = await self.find_package(account, digest)
        for file in json.loads(package.manifest)["files"]:
            if file["path"] == path:
                return await self._blobs.link(account, file["sha256"], expires_in_s=LINK_LIFETIME_S)
        raise PackageNotFound("there is no such package, or no such file in it")

    async def blob_link(self, account: str, sha256: str) -> str:
        """Return a link to a blob of the account. No SQL: the store is asked. Raises `BlobNotFound`."""
        return await self._blobs.link(account, sha256, expires_in_s=LINK_LIFETIME_S)

    async def check(self, account: str, declaration: Mapping[str, Any]) -> None:
        """Hold a declaration against the rules and the account's files. Raises `DeclarationInvalid`, `FileNotUploaded`."""
        check_declaration(declaration)
        await self._check_files(account, declaration)

    async def take_built(self, tx: Transaction, record: Record) -> None:
        """The packager is done: packages, state and `version.readied` in the consumer's transaction."""
        built = events.read_built(record.value)
        version = await self._packaging(tx, built.account, built.model_id, built.version, built.job_id)
        if version is None:
            return
        problem = built.problem()
        if problem is not None:
            log.error("what the packager announced does not fit", job_id=built.job_id, problem=problem)
            await self._fail(tx, version, "PACKAGE_INVALID", f"{problem}; commit a new version")
            return
        contract, broken = await self._learn_tensors(tx, version, json.loads(built.packages[0].manifest))
        if broken:
            serving = await store.list_collections_of(tx, version.account, version.model_id)
            # Only tensors are looked at here, which both levels hold alike.
            problem_found = _broken(broken, ContractLevel.FROZEN, serving)
            await self._fail(tx, version, problem_found.code, problem_found.detail)
            return
        await store.add_packages(tx, built.packages)
        now = self._clock.now()
        values = {"packaged_at": now, "contract": contract_to_json(contract), "report": built.report}
        await store.change_version(tx, version, at=now, state=VersionState.READY.value, **values)
        message = events.version_readied(built.account, built.model_id, built.version, built.packages)
        await self._emit(tx, events.VERSION_READIED, version, message)

    async def take_published(self, tx: Transaction, record: Record) -> None:
        """A collection was published: note which models it serves."""
        account, collection, name, model_ids = events.read_published(record.value)
        await store.set_collection_models(tx, account, collection, name, model_ids)

    async def _learn_tensors(self, tx: Transaction, version: Version, manifest: Mapping[str, Any]) -> tuple[Contract, Sequence[Breach]]:
        """Return what the version promises now that its model was read, and which promises of others its tensors break.

        Parameters were judged at the commit; a version that was committed later may have added some since.
        """
        read = contract_of(version.declaration, manifest)
        own = contract_from_json(version.contract) if version.contract else read
        promised = await store.find_contract(tx, version.account, version.model_id, without=version.version)
        others = Contract({}, None, None) if promised is None else Contract({}, promised.inputs, promised.outputs)
        tensors = added_up(others, read)
        return Contract(own.params, tensors.inputs, tensors.outputs), breaches(others, replace(read, params={}), ContractLevel.FROZEN)

    async def take_failed(self, tx: Transaction, record: Record) -> None:
        """The packager gave up: the version failed, and binds no contract any more."""
        failed = events.read_failed(record.value)
        version = await self._packaging(tx, failed.account, failed.model_id, failed.version, failed.job_id)
        if version is not None:
            await self._fail(tx, version, failed.code, failed.detail, failed.report)

    async def _fail(self, tx: Transaction, version: Version, code: str, detail: str, report: dict[str, Any] | None = None) -> None:
        await store.change_version(
            tx,
            version,
            at=self._clock.now(),
            state=VersionState.FAILED.value,
            binds_contract=False,
            problem_code=code,
            problem_detail=detail,
            report=report,
        )

    async def _packaging(self, tx: Transaction, account: str, model_id: str, number: int, job_id: str) -> Version | None:
        """Return the version that this job packages. None: the news is late or about something else, and has no effect."""
        if await models.lock_model(tx, account, model_id) is None:
            log.warning("news of a job for an unknown model", job_id=job_id)
            return None
        version = await store.find_version(tx, account, model_id, number)
        if version is None or version.state is not VersionState.PACKAGING or version.job_id != job_id:
            log.warning("news of a job that is not awaited", job_id=job_id)
            return None
        return version

    async def _lock(self, tx: Transaction, account: str, model_id: str, version: int) -> tuple[Model, Version]:
        model = await models.lock_model(tx, account, model_id)
        if model is None:
            raise _no_model()
        found = await store.find_version(tx, account, model_id, version)
        if found is None:
            raise _no_version()
        return model, found

    async def _check_files(self, account: str, declaration: Mapping[str, Any]) -> None:
        limit = asyncio.Semaphore(_STATS_AT_ONCE)

        async def fault(place: str, file: Mapping[str, Any]) -> dict[str, str] | None:
            async with limit:
                try:
                    info = await self._blobs.stat(account, file["sha256"])
                except BlobNotFound:
                    return {"field": f"{place}.sha256", "code": "NOT_UPLOADED", "detail": f"{file['path']} is not uploaded yet"}
            if info.size == file["size"]:
                return None
            return {"field": f"{place}.size", "code": "WRONG_SIZE", "detail": f"{file['path']} has {info.size} bytes"}

        faults = [one for one in await asyncio.gather(*(fault(place, file) for place, file in files_of(declaration))) if one]
        if faults:
            raise FileNotUploaded("upload every file before you declare it (POST /v1/uploads)", errors=faults[:50])

    async def _emit(self, tx: Transaction, topic: str, version: Version, message: bytes) -> None:
        await tx.emit(topic, key=model_key(version.account, version.model_id), account=version.account, value=message)

    def _check_draft(self, version: Version) -> None:
        if version.state is not VersionState.DRAFT:
            raise VersionNotDraft(f"version {version.version} is {version.state}; make a new version instead", state=version.state)


def _broken(found: Sequence[Breach], level: ContractLevel, collections: Sequence[Mapping[str, str]]) -> ContractBroken:
    """Return the error that lists every breach, and who would feel it."""
    parameters = [one for one in found if one.area == "parameters"]
    served = f" It is served by {', '.join(one['id'] for one in collections)}." if collections else ""
    rule = "may be added with a default, and nothing else may change" if level is ContractLevel.ADDITIVE else "stay the same"
    what = "parameters" if parameters else "inputs and outputs"
    if not parameters:
        rule = "keep their names, dtypes, ranks and named dimensions"
    return (ParameterContractBroken if parameters else TensorContractBroken)(
        f"{what} {rule} across the versions of a model; these break it: {', '.join(str(one) for one in found)}.{served}"
        " Declare them as before, or make a new model.",
        breaches=[asdict(one) for one in found],
        parameters=[{"name": one.name, "change": one.change, "old_type": one.old, "new_type": one.new} for one in parameters],
        collections=list(collections),
        contract_level=level.value,
    )


def _no_model() -> ModelNotFound:
    return ModelNotFound("there is no such model")


def _no_version() -> VersionNotFound:
    return VersionNotFound("the model has no such version")
