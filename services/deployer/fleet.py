"""Use cases about devices: who was there, what each should run and runs, past decisions, and what a draft would change."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from structlog import get_logger

from kit.clock import Clock, timestamp_ms
from kit.db import Database
from kit.eventlog import Batch
from kit.ids import id_time_ms
from services.deployer import events, store, store_devices
from services.deployer.binding import Bound
from services.deployer.domain import Decision, Device, DeviceEvent
from services.deployer.errors import CollectionNotFound, DecisionNotFound, DeviceNotFound, RulesInvalid
from services.deployer.facts import context_of, installed_digests
from services.deployer.loader import bound, compiled
from services.deployer.resolver import read_facts
from services.deployer.rules import RulesProblem
from services.deployer.sightings import Sightings
from services.deployer.simulation import Tally

log = get_logger(__name__)

HISTORY = 50
_FRESH_MS = 10_000
_PAUSE_S = 0.05
_PAGE = 500
#: Devices that are decided before other work gets its turn.
_SLICE = 50


@dataclass(frozen=True, slots=True)
class Simulation:
    """A tally, and over whom: `collection` (devices that asked for it) or `account` (no device ever did)."""

    population: str
    tally: Tally


class FleetService:
    """Devices of all accounts; every call names the account of its caller."""

    def __init__(self, database: Database, sightings: Sightings, clock: Clock, *, history_days: int, ready_wait_s: float) -> None:
        self._database, self._sightings, self._clock = database, sightings, clock
        self._history, self._wait_s = timedelta(days=history_days), ready_wait_s

    async def page(self, account: str, *, after: str, limit: int, collection: str | None) -> list[Device]:
        """Return devices by install id, all or those that asked for a collection."""
        async with self._database.read() as reader:
            return await store_devices.devices_of(reader, account, after=after, limit=limit, collection=collection)

    async def get(self, account: str, install_id: str) -> tuple[Device, list[Decision], list[DeviceEvent]]:
        """Return a device with its newest decisions and events. Raises `DeviceNotFound`."""
        async with self._database.read() as reader:
            device = await store_devices.device_of(reader, account, install_id)
            if device is None:
                raise DeviceNotFound("no device with this install id has asked yet")
            decisions = await store_devices.decisions_of(reader, account, install_id, limit=HISTORY)
            return device, decisions, await store_devices.events_of(reader, account, install_id, limit=HISTORY)

    async def decision(self, account: str, decision_id: str) -> Decision:
        """Return a decision; one that was made a moment ago is waited for. Raises `DecisionNotFound`."""
        until = self._clock.monotonic() + (self._wait_s if self._is_fresh(decision_id) else 0)
        while True:
            async with self._database.read() as reader:
                found = await store_devices.decision_of(reader, account, decision_id)
            if found is not None:
                return found
            if self._clock.monotonic() >= until:
                raise DecisionNotFound("there is no decision with this id; decisions are kept for a limited time")
            await self._clock.sleep(_PAUSE_S)

    def _is_fresh(self, decision_id: str) -> bool:
        """Say whether its record may still be on the way from the log to the table."""
        try:
            age_ms = timestamp_ms(self._clock.now()) - id_time_ms(decision_id)
        except ValueError:
            return False
        return 0 <= age_ms < _FRESH_MS

    async def simulate(self, account: str, collection: str, document: Any | None) -> Simulation:
        """Hold a document, or the draft, against the devices seen so far. Raises `CollectionNotFound`, `RulesInvalid`."""
        before, after = await self._both(account, collection, document)
        async with self._database.read() as reader:
            asked = await store_devices.asked_for(reader, account, collection)
            served = {package.digest for packages in _packages(after) for package in packages}
            files = await store.package_files(reader, account, served)
        tally = Tally(files)
        last = ""
        while True:
            async with self._database.read() as reader:
                page = await store_devices.devices_of(reader, account, after=last, limit=_PAGE, collection=collection if asked else None)
                installed = {digest for device in page for digest in installed_digests(device.context)} - files.keys()
                files.update(await store.package_files(reader, account, installed))
            for place, device in enumerate(page):
                tally.count(device.context, device.install_id, before=before, after=after)
                if place % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
            if len(page) < _PAGE:
                return Simulation("collection" if asked else "account", tally)
            last = page[-1].install_id

    async def _both(self, account: str, collection: str, document: Any | None) -> tuple[Bound | None, Bound]:
        now = self._clock.now().timestamp()
        async with self._database.read() as reader:
            draft = await store.draft_of(reader, account, collection)
            if draft is None:
                raise CollectionNotFound("there is no such collection")
            published = await store.published(reader, account, collection)
            try:
                rules = await compiled(draft.document if document is None else document)
            except RulesProblem as problem:
                raise RulesInvalid(f"{problem.total} problem(s) in the rules", errors=problem.errors, total=problem.total) from problem
            after = await bound(reader, account, rules, collection=collection, revision=0, content="")
            if published is None:
                return None, after.at(now)
            current = await compiled(published.document)
            before = await bound(reader, account, current, collection=collection, revision=published.revision, content=published.digest)
        return before.at(now), after.at(now)

    async def keep(self, batch: Batch) -> None:
        """Write what devices were answered and what they reported."""
        decisions, reports = [], []
        for record in batch.records:
            if record.topic == events.DECISION_MADE:
                decisions.append(events.decision_of(record))
            else:
                reports.append(events.report_of(record))
        async with self._database.begin() as tx:
            if decisions:
                await store_devices.save_decisions(tx, decisions)
            if reports:
                await store_devices.save_reports(tx, reports)

    async def write_sightings(self) -> None:
        """Write who polled since the last time, a few hundred per transaction so that others get their turn."""
        if dropped := self._sightings.take_dropped():
            log.warning("more devices polled than are remembered between two writes", not_remembered=dropped)
        noted = deque(self._sightings.take())
        while noted:
            part = [noted.popleft() for _ in range(min(_PAGE, len(noted)))]
            seen = [one if sent is None else replace(one, context=context_of(read_facts(*sent))) for one, sent in part]
            try:
                async with self._database.begin() as tx:
                    await store_devices.see(tx, seen)
            except Exception:
                self._sightings.put_back([*part, *noted])
                raise

    async def forget(self) -> None:
        """Delete decisions and events that are older than the history is kept."""
        async with self._database.begin() as tx:
            gone = await store_devices.forget(tx, before=self._clock.now() - self._history)
        if gone:
            log.info("old decisions and events deleted", rows=gone)


def _packages(rules: Bound) -> list[tuple[Any, ...]]:
    options = [option for group in rules.options for option in group] + ([rules.default] if rules.default else [])
    return [option.packages for option in options]
