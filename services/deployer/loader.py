"""Brings what the tables hold into the snapshot, and what the registry announces into the tables.

When it looks is decided by `freshness.py`. Compiling larger rules happens in a thread, so that devices are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from structlog import get_logger

from kit.clock import Clock
from kit.db import Database, Reader, Transaction
from kit.db.lease import holders
from kit.eventlog import Batch, Record
from kit.signing import DerivedSigner
from services.deployer import events, store
from services.deployer.binding import Bound, Compiled, bind, compile_rules
from services.deployer.domain import LEAD, Mark, Published
from services.deployer.rules import RulesProblem, parse_rules
from services.deployer.snapshot import Live, Snapshot
from services.deployer.snapshot_file import Stored, pack
from services.deployer.targets import named_versions

log = get_logger(__name__)

CONSUMER = "deployer-catalogue"
_PAGE = 500
#: Rows that another process wrote and committed late are still noticed when they are not older than this.
_OVERLAP = timedelta(seconds=30)
#: Documents with more rules than this are compiled in a thread.
_MANY = 100
#: Leases whose holders answer devices from memory.
PRESENT = "answers-devices/"
_EARLIEST = datetime.min.replace(tzinfo=UTC)


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


async def _packed(state: Stored) -> bytes:
    if len(state.document["rules"]) > _MANY:
        return await asyncio.to_thread(pack, state)
    return pack(state)


def _settle() -> None:
    """Take what was loaded out of the sight of the garbage collector (docs/adr/0023).

    Rules hold no cycles, so reference counts free them all the same; walking over them costs a poll a third of its time.
    """
    gc.collect()
    gc.freeze()


def _offset(began: datetime, ended: datetime, there: datetime) -> timedelta:
    """Return what to add to a moment of the database's clock, which read `there` at some time between `began` and `ended` here.

    Clocks that may agree count as agreeing: on one machine, or well kept, all processes switch at the same microsecond.
    """
    if began <= there <= ended:
        return timedelta(0)
    return began + (ended - began) / 2 - there


class Loader:
    """Reads published collections into the snapshot. `holder` names this process among those that answer devices."""

    def __init__(self, database: Database, snapshot: Snapshot, *, signer: DerivedSigner, clock: Clock, holder: str) -> None:
        self._database, self._snapshot, self._signer, self._clock, self._holder = database, snapshot, signer, clock, holder
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._looked_at: datetime | None = None
        self._offset = timedelta(0)

    async def survey(self) -> list[tuple[str, str]]:
        """Ask the tables what is new, and note it in the snapshot without loading it; returns the collections to load."""
        since = None if self._looked_at is None else self._looked_at - _OVERLAP
        began = self._clock.now()
        there: datetime | None = None
        marks: list[Mark] = []
        behind: list[tuple[str, str]] = []
        after = ("", "")
        while True:
            async with self._database.read() as reader:
                if there is None:
                    there = await reader.database_now()
                    self._offset = _offset(began, self._clock.now(), there)
                found = await store.marks(reader, since=since, after=after, limit=_PAGE)
            marks += found
            if len(found) < _PAGE:
                break
            after = found[-1].account, found[-1].collection
        if since is None:
            self._snapshot.keep_only({(mark.account, mark.collection): mark.mark for mark in marks})
        for mark in marks:
            if self._snapshot.announce(mark.account, mark.collection, mark.mark, self._here(mark)):
                behind.append((mark.account, mark.collection))
        self._looked_at = there
        return behind

    async def load(self, keys: Collection[tuple[str, str]]) -> None:
        """Load collections now."""
        for account, collection in sorted(keys):
            await self.refresh(account, collection)
        if keys:
            _settle()

    async def restore(self, states: Collection[Stored]) -> None:
        """Put states of the file on disk into the snapshot."""
        for one in states:
            rules = await compiled(one.document)
            state = bind(rules, one.catalogue, collection=one.collection, revision=one.revision, content=one.digest, mark=one.mark)
            self._snapshot.swap(one.account, one.collection, Live(state, one.mark, one.digest, record=await _packed(one)))
        if states:
            _settle()

    async def refresh(self, account: str, collection: str) -> None:
        """Load one collection now."""
        key = (account, collection)
        async with self._locks.setdefault(key, asyncio.Lock()):
            async with self._database.read() as reader:
                found = await store.published(reader, account, collection)
                if found is None:
                    return
                mark = found.mark.mark
                try:
                    rules = await self._rules(found)
                except RulesProblem as problem:
                    log.error("published rules cannot be read", account=account, collection=collection, errors=problem.errors[:5])
                    return
                catalogue = await store.catalogue(reader, account, rules.models, named_versions(rules.rules))
            revision, digest = found.revision, found.digest
            state = bind(rules, catalogue, collection=collection, revision=revision, content=digest, mark=mark)
            record = await _packed(Stored(account, collection, mark, revision, digest, found.document, catalogue))
            self._snapshot.swap(account, collection, Live(state, mark, digest, self._here(found.mark), record))

    def _here(self, mark: Mark) -> datetime:
        """Return when a state starts, by the clock here. One that was made while nobody else answered devices starts at once."""
        return mark.active_at + self._offset if mark.active_at > mark.touched_at else _EARLIEST

    async def start_of(self, tx: Transaction) -> tuple[datetime, datetime]:
        """Return now, and when a state that is written now shall start: later when other processes must hear of it first."""
        now = await tx.database_now()
        others = await holders(tx, PRESENT) - {self._holder}
        return now, now + LEAD if others else now

    async def _rules(self, found: Published) -> Compiled:
        live = self._snapshot.find(found.mark.account, found.mark.collection)
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
            if changed:
                now, active_at = await self.start_of(tx)
            for account, models in changed.items():
                touched |= {(account, one) for one in await store.touch(tx, account, models, now, active_at=active_at)}
        await self.refresh_all(touched)

    async def refresh_all(self, keys: Collection[tuple[str, str]]) -> None:
        """Load collections now, when this process holds them in memory at all."""
        if self._snapshot.complete:
            await self.load(keys)

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
