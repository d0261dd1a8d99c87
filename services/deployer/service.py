"""Use cases of collections: drafts, checks, publishing, returning, explaining. Each that writes is one transaction.

Devices and what-if answers are in `fleet.py`, the answers to devices in `resolver.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

from kit.clock import Clock
from kit.db import Database, Reader
from kit.errors import PreconditionFailed
from kit.ids import random_code
from services.deployer import events, store, store_devices
from services.deployer.binding import Bound, Compiled, Refusal, Served
from services.deployer.domain import EMPTY_RULES, Collection, Draft, Revision, collection_etag, document_digest, draft_etag
from services.deployer.errors import (
    CollectionNotFound,
    ContextInvalid,
    DeviceNotFound,
    NothingPublished,
    RevisionNotFound,
    RulesInvalid,
    VersionNotReady,
)
from services.deployer.explain import Explanation, explain
from services.deployer.facts import ContextProblem, facts_of
from services.deployer.lint import Finding, lint
from services.deployer.loader import Loader, bound, compiled
from services.deployer.rules import RulesProblem
from services.deployer.targets import TargetProblem, named_versions, target_problems

T = TypeVar("T")

_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publish did (`revision` is None when it only checked) and what is odd about the rules."""

    revision: Revision | None
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation with what it is about."""

    install_id: str
    revision: int | None
    epoch: str
    at: datetime
    context: dict[str, Any]
    explanation: Explanation


class CollectionService:
    """Collections of all accounts; every call names the account of its caller."""

    def __init__(self, database: Database, loader: Loader, clock: Clock, *, ready_wait_s: float) -> None:
        self._database, self._loader, self._clock = database, loader, clock
        self._ready_wait_s = ready_wait_s

    async def create(self, account: str, *, name: str, description: str, by: str) -> Collection:
        """Make a collection with an empty draft and an id of its own."""
        async with self._database.begin() as tx:
            collection = random_code("c")
            while await store.collection_of(tx, account, collection) is not None:
                collection = random_code("c")
            await store.add_collection(
                tx,
                account,
                collection=collection,
                name=name,
                description=description,
                document=dict(EMPTY_RULES),
                by=by,
                now=self._clock.now(),
            )
            return _found(await store.collection_of(tx, account, collection))

    async def page(self, account: str, *, after: str, limit: int) -> list[Collection]:
        """Return collections by id, behind `after`."""
        async with self._database.read() as reader:
            return await store.collections_of(reader, account, after=after, limit=limit)

    async def get(self, account: str, collection: str) -> Collection:
        """Return one collection. Raises `CollectionNotFound`."""
        async with self._database.read() as reader:
            return _found(await store.collection_of(reader, account, collection))

    async def rename(self, account: str, collection: str, *, name: str | None, description: str | None, if_match: str | None) -> Collection:
        """Change the texts; None leaves one as it is. Raises `CollectionNotFound`, `PreconditionFailed`."""
        async with self._database.begin() as tx:
            known = _found(await store.lock_collection(tx, account, collection))
            _check_match(if_match, collection_etag(known))
            await store.rename(
                tx,
                account,
                collection,
                name=known.name if name is None else name,
                description=known.description if description is None else description,
                now=self._clock.now(),
            )
            return _found(await store.collection_of(tx, account, collection))

    async def draft(self, account: str, collection: str) -> Draft:
        """Return the draft. Raises `CollectionNotFound`."""
        async with self._database.read() as reader:
            return _found(await store.draft_of(reader, account, collection))

    async def put_draft(self, account: str, collection: str, document: Any, *, by: str, if_match: str | None) -> Draft:
        """Replace the draft by a document that is right in itself.

        Raises `RulesInvalid`, `CollectionNotFound`, and `PreconditionFailed` when `if_match` names another state.
        """
        await self._compiled(document)
        async with self._database.begin() as tx:
            known = _found(await store.lock_collection(tx, account, collection))
            _check_match(if_match, draft_etag(known.draft_number))
            await store.set_draft(tx, account, collection, document=document, number=known.draft_number + 1, by=by, now=self._clock.now())
            return _found(await store.draft_of(tx, account, collection))

    async def lint(self, account: str, collection: str, document: Any | None) -> list[Finding]:
        """Return what is odd about a document, or about the draft. Raises `CollectionNotFound`, `RulesInvalid`."""
        draft = await self.draft(account, collection)
        rules = await self._compiled(draft.document if document is None else document)
        return lint(rules.rules, self._clock.now().timestamp())

    async def publish(self, account: str, collection: str, *, by: str, note: str, validate_only: bool, if_match: str | None) -> Publication:
        """Make the draft the next revision, once everything it serves is there.

        Raises `CollectionNotFound`, `PreconditionFailed`, `RulesInvalid` and `VersionNotReady`.
        """
        draft = await self.draft(account, collection)
        _check_match(if_match, draft_etag(draft.number))
        return await self._publish(account, collection, draft.document, by=by, note=note, validate_only=validate_only)

    async def revert(self, account: str, collection: str, revision: int, *, by: str, note: str, validate_only: bool) -> Publication:
        """Publish an earlier revision again, as a new one. Raises what `publish` raises, and `RevisionNotFound`."""
        earlier = await self.revision(account, collection, revision)
        return await self._publish(
            account, collection, earlier.document, by=by, note=note, validate_only=validate_only, reverted_to=revision
        )

    async def revisions(self, account: str, collection: str, *, before: int, limit: int) -> list[Revision]:
        """Return revisions, newest first. Raises `CollectionNotFound`."""
        async with self._database.read() as reader:
            _found(await store.collection_of(reader, account, collection))
            return await store.revisions_of(reader, account, collection, before=before, limit=limit)

    async def revision(self, account: str, collection: str, revision: int) -> Revision:
        """Return one revision. Raises `CollectionNotFound`, `RevisionNotFound`."""
        async with self._database.read() as reader:
            _found(await store.collection_of(reader, account, collection))
            found = await store.revision_of(reader, account, collection, revision)
        if found is None:
            raise RevisionNotFound("the collection has no revision with this number")
        return found

    async def explain(
        self,
        account: str,
        collection: str,
        *,
        context: dict[str, Any] | None,
        install_id: str | None,
        revision: int | None,
        draft: bool,
        at: datetime | None,
    ) -> Explained:
        """Say what a device gets and why: a context that is given, or the last one of a device that asked before.

        Raises `CollectionNotFound`, `RevisionNotFound`, `NothingPublished`, `DeviceNotFound`, `ContextInvalid`.
        """
        async with self._database.read() as reader:
            known = _found(await store.collection_of(reader, account, collection))
            if context is None:
                device = await store_devices.device_of(reader, account, install_id or "")
                if device is None:
                    raise DeviceNotFound("no device with this install id has asked yet")
                context = device.context
        install = install_id or context.get("install_id")
        if not isinstance(install, str):
            raise ContextInvalid("the device context needs an `install_id`: percentages and splits depend on it")
        try:
            facts = facts_of({**context, "install_id": install})
        except ContextProblem as problem:
            raise ContextInvalid(str(problem)) from problem
        opened = await self._bound(account, known, revision=revision, draft=draft)
        moment = at or self._clock.now()
        opened = opened.at(moment.timestamp())
        explanation = explain(opened, facts, install, moment.timestamp())
        return Explained(install, opened.revision or None, opened.epoch, moment, context, explanation)

    async def _bound(self, account: str, known: Collection, *, revision: int | None, draft: bool) -> Bound:
        async with self._database.read() as reader:
            if draft:
                number, found = 0, _found(await store.draft_of(reader, account, known.id)).document
            else:
                number = revision if revision is not None else known.revision or 0
                if not number:
                    raise NothingPublished("nothing of this collection is published yet; publish the draft, or ask with draft=true")
                stored = await store.revision_of(reader, account, known.id, number)
                if stored is None:
                    raise RevisionNotFound("the collection has no revision with this number")
                found = stored.document
            rules = await self._compiled(found)
            return await bound(reader, account, rules, collection=known.id, revision=number, content=document_digest(found))

    async def _compiled(self, document: Any) -> Compiled:
        try:
            return await compiled(document)
        except RulesProblem as problem:
            fields = ", ".join(error["field"] or "the document" for error in problem.errors[:3])
            text = f"{problem.total} problem(s) in the rules, first at {fields}"
            raise RulesInvalid(text, errors=problem.errors, total=problem.total) from problem

    async def _publish(
        self, account: str, collection: str, document: Any, *, by: str, note: str, validate_only: bool, reverted_to: int | None = None
    ) -> Publication:
        rules = await self._compiled(document)
        findings = lint(rules.rules, self._clock.now().timestamp())
        await self._await_targets(account, rules)
        if validate_only:
            return Publication(None, findings)
        async with self._database.begin() as tx:
            # Looked at again inside: what was checked still holds when it is committed.
            known = _found(await store.lock_collection(tx, account, collection))
            _refuse(await self._problems(tx, account, rules))
            newest = await store.revisions_of(tx, account, collection, before=2**31 - 1, limit=1)
            made = Revision(
                collection=collection,
                revision=newest[0].revision + 1 if newest else 1,
                document=document,
                digest=document_digest(document),
                published_at=self._clock.now(),
                published_by=by,
                note=note,
                reverted_to=reverted_to,
            )
            now, active_at = await self._loader.start_of(tx)
            asked_at = self._clock.monotonic()
            await store.add_revision(tx, account, made, models=rules.models, now=now, active_at=active_at)
            await tx.emit(
                events.COLLECTION_PUBLISHED,
                key=f"{account}/{collection}",
                account=account,
                value=events.collection_published(account, collection, made.revision, known.name, rules.models),
            )
        await self._loader.refresh_all([(account, collection)])
        # Who published and then asks, here or elsewhere, gets what was published.
        await self._clock.sleep((active_at - now).total_seconds() - (self._clock.monotonic() - asked_at))
        return Publication(made, findings)

    async def _await_targets(self, account: str, rules: Compiled) -> None:
        """Wait for versions whose event is still on its way. Raises `VersionNotReady` or `RulesInvalid`."""
        until = self._clock.monotonic() + self._ready_wait_s
        while True:
            async with self._database.read() as reader:
                problems = await self._problems(reader, account, rules)
            if not any(problem.passing for problem in problems) or self._clock.monotonic() >= until:
                break
            await self._clock.sleep(_PAUSE_S)
        _refuse(problems)

    async def _problems(self, reader: Reader, account: str, rules: Compiled) -> list[TargetProblem]:
        found = await store.catalogue(reader, account, rules.models, named_versions(rules.rules))
        return target_problems(rules.rules, found, await store.known_models(reader, account, rules.models))


def _refuse(problems: list[TargetProblem]) -> None:
    if not problems:
        return
    errors = [problem.document() for problem in problems[:100]]
    text = f"the rules serve what cannot be served: {problems[0].detail} ({problems[0].field})"
    if any(problem.passing for problem in problems):
        raise VersionNotReady(f"{text}; try again when it is ready", errors=errors, total=len(problems))
    raise RulesInvalid(text, errors=errors, total=len(problems))


def _check_match(if_match: str | None, etag: str) -> None:
    if if_match is not None and if_match.strip() not in ("*", etag):
        raise PreconditionFailed(f"the state is {etag} by now; read it again, then repeat the change")


def _found(value: T | None) -> T:
    if value is None:
        raise CollectionNotFound("there is no such collection")
    return value


def answer_document(answer: Served | Refusal) -> dict[str, Any]:
    """Return an answer as resolve gives it, without what only a device needs."""
    if isinstance(answer, Refusal):
        refused = [asdict(one) for one in answer.packages]
        return {"reason": answer.reason.value, "rule_id": None, "package": None, "packages": refused}
    package = answer.package
    return {
        "reason": answer.reason.value,
        "rule_id": answer.rule_id,
        "package": {
            "digest": package.digest,
            "model_id": package.model_id,
            "version": package.version,
            "variant": package.variant,
            "size": package.size,
        },
        "packages": [],
    }
