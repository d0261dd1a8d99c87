"""Keeps the snapshot as new as the tables: after a commit of this process at once, after one of another process within a second or so.

It also applies what the registry announces. Compiling larger rules happens in a thread, so that devices are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection
from datetime import datetime, timedelta

from structlog import get_logger

from kit.clock import Clock
from kit.db import Database, Reader, Transaction
from kit.eventlog import Batch, Record
from kit.signing import DerivedSigner
from services.deployer import events, store, store_devices
from services.deployer.binding import Bound, Compiled, bind, compile_rules
from services.deployer.domain import Published
from services.deployer.rules import RulesProblem, parse_rules
from services.deployer.snapshot import Live, Snapshot
from services.deployer.targets import named_versions

log = get_logger(__name__)

CONSUMER = "deployer-catalogue"
_PAGE = 500
#: Rows that another process wrote and committed late are still noticed when they are not older than this.
_OVERLAP = timedelta(seconds=30)
#: Documents with more rules than this are compiled in a thread.
_MANY = 100


async def compiled(document: object) -> Compiled:
    """Return checked and compiled rules. Raises `RulesProblem`."""
    rules = document.get("rules") if isinstance(document, dict) else None
    if isinstance(rules, list) and len(rules) > _MANY:
        return await asyncio.to_thread(_compile, document)
    return _compile(document)


def _compile(document: object) -> Compiled:
    return compile_rules(parse_rules(document))


async def bound(reader: Reader, account: str, rules: Compiled, *, collection: str, revision: int, content: str) -> Bound:
    """Bind compiled rules to what the account can serve now."""
    found = await store.catalogue(reader, account, rules.models, named_versions(rules.rules))
    return bind(rules, found, collection=collection, revision=revision, content=content)


def _settle() -> None:
    """Take what was loaded out of the sight of the garbage collector (docs/adr/0023).

    Rules hold no cycles, so reference counts free them all the same; walking over them costs a poll a third of its time.
    """
    gc.collect()
    gc.freeze()


class Loader:
    """Reads published collections into the snapshot."""

    def __init__(self, database: Database, snapshot: Snapshot, *, signer: DerivedSigner, clock: Clock) -> None:
        self._database, self._snapshot, self._signer, self._clock = database, snapshot, signer, clock
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._looked_at: datetime | None = None

    async def newest_decision_at(self) -> datetime | None:
        """Return when the newest decision on record was made."""
        async with self._database.read() as reader:
            return await store_devices.newest_decision_at(reader)

    async def look(self) -> int:
        """Load every collection at first, then those that were touched since; returns how many were loaded."""
        now = self._clock.now()
        since = None if self._looked_at is None else self._looked_at - _OVERLAP
        loaded = 0
        after = ("", "")
        while True:
            async with self._database.read() as reader:
                found = await store.marks(reader, since=since, after=after, limit=_PAGE)
            for account, collection, mark in found:
                if self._snapshot.mark_of(account, collection) < mark:
                    await self.refresh(account, collection)
                    loaded += 1
            if len(found) < _PAGE:
                break
            after = found[-1][:2]
        if loaded:
            _settle()
        self._looked_at = now
        self._snapshot.complete = True
        return loaded

    async def refresh(self, account: str, collection: str) -> None:
        """Load one collection now."""
        key = (account, collection)
        async with self._locks.setdefault(key, asyncio.Lock()):
            async with self._database.read() as reader:
                found = await store.published(reader, account, collection)
                if found is None:
                    return
                try:
                    rules = await self._rules(found)
                except RulesProblem as problem:
                    log.error("published rules cannot be read", account=account, collection=collection, errors=problem.errors[:5])
                    return
                open_rules = await bound(reader, account, rules, collection=collection, revision=found.revision, content=found.digest)
            self._snapshot.swap(account, collection, Live(open_rules, found.mark, found.digest))

    async def _rules(self, found: Published) -> Compiled:
        live = self._snapshot.find(found.account, found.collection)
        if live is not None and live.digest == found.digest:
            return live.bound.compiled
        return await compiled(found.document)

    async def apply(self, batch: Batch) -> None:
        """Take in what the registry announced; records seen before are skipped."""
        touched: set[tuple[str, str]] = set()
        async with self._database.begin() as tx:
            changed: dict[str, set[str]] = {}
            for record in batch.records:
                if await tx.first_time(CONSUMER, record.headers["event-id"]):
                    account, model = await self._apply_one(tx, record)
                    if model:
                        changed.setdefault(account, set()).add(model)
            for account, models in changed.items():
                touched |= {(account, collection) for collection in await store.touch(tx, account, models, self._clock.now())}
        await self.refresh_all(touched)

    async def refresh_all(self, keys: Collection[tuple[str, str]]) -> None:
        """Load collections now, when this process holds them in memory at all."""
        if self._snapshot.complete:
            for account, collection in sorted(keys):
                await self.refresh(account, collection)
            if keys:
                _settle()

    async def _apply_one(self, tx: Transaction, record: Record) -> tuple[str, str]:
        """Write one event; returns account and model it changed ("" for none)."""
        now = self._clock.now()
        match record.topic:
            case events.VERSION_READIED:
                account, model, version, packages = events.version_readied(record.value)
                await store.add_version(tx, account, model, version, packages=packages, now=now)
            case events.VERSION_ARCHIVED:
                account, model, version = events.version_archived(record.value)
                await store.archive_version(tx, account, model, version, now)
            case events.ALIAS_MOVED:
                account, model, alias, version = events.alias_moved(record.value)
                await store.move_alias(tx, account, model, alias, version)
            case _:
                account, model = events.account_created(record.value), ""
                key = self._signer.public_key(account)
                value = events.key_announced(account, self._signer.key_id(account), key)
                await tx.emit(events.SIGNING_KEY_ANNOUNCED, key=account, account=account, value=value)
        return account, model
