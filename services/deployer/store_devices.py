"""Statements about devices and decisions. What comes from the log is written in bulk and may come again: every write is repeatable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, insert, select, tuple_, update

from kit.db import Reader, Transaction
from services.deployer.domain import Decision, Device, DeviceEvent, DeviceState, Report, Sighting
from services.deployer.tables import DECISIONS, DEVICE_COLLECTIONS, DEVICE_EVENTS, DEVICES

_CHUNK = 400
_RUNS = frozenset({"running", "returned"})


def _chunks(items: Iterable[Any]) -> Iterable[list[Any]]:
    listed = list(items)
    return (listed[start : start + _CHUNK] for start in range(0, len(listed), _CHUNK))


async def _known(tx: Transaction, table: Any, columns: Sequence[Any], keys: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], Row[Any]]:
    """Return the rows that exist for the keys, by key."""
    found: dict[tuple[Any, ...], Row[Any]] = {}
    for chunk in _chunks(sorted(set(keys))):
        for row in await tx.all(select(table).where(tuple_(*columns).in_(chunk))):
            found[tuple(getattr(row, column.name) for column in columns)] = row
    return found


# --- writing --------------------------------------------------------------------------------------------------------------------------


async def save_decisions(tx: Transaction, decisions: Sequence[Decision]) -> None:
    """Keep decisions, and what each device is to run now and said of itself."""
    table = DECISIONS.c
    there = await _known(tx, DECISIONS, (table.account, table.decision_id), ((one.account, one.decision_id) for one in decisions))
    new = {(one.account, one.decision_id): one for one in decisions if (one.account, one.decision_id) not in there}
    if not new:
        return
    rows = [
        {
            "account": one.account,
            "decision_id": one.decision_id,
            "collection": one.collection,
            "revision": one.revision,
            "install_id": one.install_id,
            "decided_at": one.decided_at,
            "context": one.context,
            "answer": one.answer,
        }
        for one in new.values()
    ]
    await tx.execute(insert(DECISIONS), rows)
    ordered = sorted(new.values(), key=lambda one: one.decided_at)
    await see(tx, [Sighting(one.account, one.install_id, one.decided_at, one.context) for one in ordered])
    await _save_wanted(tx, {(one.account, one.install_id, one.collection): one for one in ordered})


async def see(tx: Transaction, sightings: Sequence[Sighting]) -> None:
    """Note when devices were there, and their newest context. A device without any context is not added."""
    newest: dict[tuple[str, str], Sighting] = {}
    context_of: dict[tuple[str, str], Sighting] = {}
    for one in sorted(sightings, key=lambda one: one.at):
        newest[one.account, one.install_id] = one
        if one.context is not None:
            context_of[one.account, one.install_id] = one
    known = await _known(tx, DEVICES, (DEVICES.c.account, DEVICES.c.install_id), newest)
    added, seen, told = [], [], []
    for key, one in newest.items():
        row, context = known.get(key), context_of.get(key)
        if row is None:
            if context is not None:
                added.append(
                    {
                        "account": key[0],
                        "install_id": key[1],
                        "first_seen_at": one.at,
                        "last_seen_at": one.at,
                        "context": context.context,
                        "context_at": context.at,
                    }
                )
            continue
        if one.at > row.last_seen_at:
            seen.append({"of_account": key[0], "of_install": key[1], "last_seen_at": one.at})
        if context is not None and context.at >= row.context_at:
            told.append({"of_account": key[0], "of_install": key[1], "context": context.context, "context_at": context.at})
    which = and_(DEVICES.c.account == bindparam("of_account"), DEVICES.c.install_id == bindparam("of_install"))
    if added:
        await tx.execute(insert(DEVICES), added)
    if seen:
        await tx.execute(update(DEVICES).where(which).values(last_seen_at=bindparam("last_seen_at")), seen)
    if told:
        await tx.execute(update(DEVICES).where(which).values(context=bindparam("context"), context_at=bindparam("context_at")), told)


_STATE_KEY = (DEVICE_COLLECTIONS.c.account, DEVICE_COLLECTIONS.c.install_id, DEVICE_COLLECTIONS.c.collection)


async def _save_wanted(tx: Transaction, newest: dict[tuple[str, str, str], Decision]) -> None:
    known = await _known(tx, DEVICE_COLLECTIONS, _STATE_KEY, newest)
    added, changed = [], []
    for key, one in newest.items():
        values = {
            "wanted": one.wanted,
            "reason": one.answer.get("reason"),
            "decision_id": one.decision_id,
            "decided_at": one.decided_at,
        }
        row = known.get(key)
        if row is None:
            added.append({"account": key[0], "install_id": key[1], "collection": key[2], **values})
        elif row.decided_at is None or one.decided_at >= row.decided_at:
            changed.append(_named(key, values))
    await _write_states(tx, added, changed, ("wanted", "reason", "decision_id", "decided_at"))


async def save_reports(tx: Transaction, reports: Sequence[Report]) -> None:
    """Keep what devices reported, and what each says it runs."""
    events = {(report.account, report.install_id, event.event_id): event for report in reports for event in report.events}
    table = DEVICE_EVENTS.c
    there = await _known(tx, DEVICE_EVENTS, (table.account, table.install_id, table.event_id), events)
    new = {key: event for key, event in events.items() if key not in there}
    if not new:
        return
    rows = [
        {
            "account": account,
            "install_id": install_id,
            "event_id": event.event_id,
            "collection": event.collection,
            "package": event.package,
            "state": event.state,
            "code": event.code,
            "detail": event.detail,
            "at": event.at,
            "decision_id": event.decision_id,
            "received_at": event.received_at,
        }
        for (account, install_id, _), event in new.items()
    ]
    await tx.execute(insert(DEVICE_EVENTS), rows)
    latest: dict[tuple[str, str, str], list[DeviceEvent]] = {}
    for (account, install_id, _), event in sorted(new.items(), key=lambda item: (item[1].received_at, item[1].at)):
        latest.setdefault((account, install_id, event.collection), []).append(event)
    await _save_running(tx, latest)


async def _save_running(tx: Transaction, latest: dict[tuple[str, str, str], list[DeviceEvent]]) -> None:
    known = await _known(tx, DEVICE_COLLECTIONS, _STATE_KEY, latest)
    added, changed = [], []
    for key, events in latest.items():
        row = known.get(key)
        last = events[-1]
        running = row.running if row is not None else None
        for event in events:
            if event.state in _RUNS and event.package is not None:
                running = event.package
        values = {"running": running, "state": last.state, "code": last.code, "reported_at": last.received_at}
        if row is None:
            added.append({"account": key[0], "install_id": key[1], "collection": key[2], **values})
        elif row.reported_at is None or last.received_at >= row.reported_at:
            changed.append(_named(key, values))
    await _write_states(tx, added, changed, ("running", "state", "code", "reported_at"))


def _named(key: tuple[str, str, str], values: dict[str, Any]) -> dict[str, Any]:
    return {"of_account": key[0], "of_install": key[1], "of_collection": key[2], **values}


async def _write_states(tx: Transaction, added: list[dict[str, Any]], changed: list[dict[str, Any]], columns: Sequence[str]) -> None:
    if added:
        await tx.execute(insert(DEVICE_COLLECTIONS), added)
    if changed:
        which = and_(
            *(column == bindparam(name) for column, name in zip(_STATE_KEY, ("of_account", "of_install", "of_collection"), strict=True))
        )
        await tx.execute(update(DEVICE_COLLECTIONS).where(which).values({column: bindparam(column) for column in columns}), changed)


async def forget(tx: Transaction, *, before: datetime) -> int:
    """Delete decisions and events older than `before`; returns how many. The newest decision of a device stays known by its state."""
    decisions = await tx.execute(delete(DECISIONS).where(DECISIONS.c.decided_at < before))
    events = await tx.execute(delete(DEVICE_EVENTS).where(DEVICE_EVENTS.c.received_at < before))
    return decisions.rowcount + events.rowcount


# --- reading --------------------------------------------------------------------------------------------------------------------------


async def decision_of(reader: Reader, account: str, decision_id: str) -> Decision | None:
    """Return one decision, or None."""
    row = await reader.first(select(DECISIONS).where(DECISIONS.c.account == account, DECISIONS.c.decision_id == decision_id))
    return None if row is None else _decision(row)


async def decisions_of(reader: Reader, account: str, install_id: str, *, limit: int) -> list[Decision]:
    """Return the newest decisions for a device."""
    rows = await reader.all(
        select(DECISIONS)
        .where(DECISIONS.c.account == account, DECISIONS.c.install_id == install_id)
        .order_by(DECISIONS.c.decided_at.desc(), DECISIONS.c.decision_id.desc())
        .limit(limit)
    )
    return [_decision(row) for row in rows]


def _decision(row: Row[Any]) -> Decision:
    return Decision(row.account, row.decision_id, row.collection, row.revision, row.install_id, row.decided_at, row.context, row.answer)


async def events_of(reader: Reader, account: str, install_id: str, *, limit: int) -> list[DeviceEvent]:
    """Return the newest events of a device."""
    rows = await reader.all(
        select(DEVICE_EVENTS)
        .where(DEVICE_EVENTS.c.account == account, DEVICE_EVENTS.c.install_id == install_id)
        .order_by(DEVICE_EVENTS.c.received_at.desc(), DEVICE_EVENTS.c.at.desc())
        .limit(limit)
    )
    return [
        DeviceEvent(row.event_id, row.collection, row.package, row.state, row.code, row.detail, row.at, row.decision_id, row.received_at)
        for row in rows
    ]


async def device_of(reader: Reader, account: str, install_id: str) -> Device | None:
    """Return one device with its states, or None."""
    found = await devices_of(reader, account, after="", limit=1, install_id=install_id)
    return found[0] if found else None


async def devices_of(
    reader: Reader, account: str, *, after: str, limit: int, install_id: str | None = None, collection: str | None = None
) -> list[Device]:
    """Return devices by install id behind `after`: all, one, or those that asked for a collection."""
    statement = select(DEVICES).where(DEVICES.c.account == account, DEVICES.c.install_id > after)
    states = DEVICE_COLLECTIONS.c
    if install_id is not None:
        statement = statement.where(DEVICES.c.install_id == install_id)
    if collection is not None:
        asked = select(states.install_id).where(states.account == account, states.collection == collection)
        statement = statement.where(DEVICES.c.install_id.in_(asked))
    rows = await reader.all(statement.order_by(DEVICES.c.install_id).limit(limit))
    of_device: dict[str, list[DeviceState]] = {}
    for chunk in _chunks(row.install_id for row in rows):
        found = await reader.all(
            select(DEVICE_COLLECTIONS)
            .where(states.account == account, states.install_id.in_(chunk))
            .order_by(states.install_id, states.collection)
        )
        for row in found:
            of_device.setdefault(row.install_id, []).append(_state(row))
    return [
        Device(row.install_id, row.first_seen_at, row.last_seen_at, row.context, tuple(of_device.get(row.install_id, ()))) for row in rows
    ]


def _state(row: Row[Any]) -> DeviceState:
    return DeviceState(
        row.collection, row.wanted, row.reason, row.decision_id, row.decided_at, row.running, row.state, row.code, row.reported_at
    )


async def asked_for(reader: Reader, account: str, collection: str) -> bool:
    """Say whether any device ever asked for the collection."""
    states = DEVICE_COLLECTIONS.c
    return (
        await reader.first(select(states.install_id).where(states.account == account, states.collection == collection).limit(1)) is not None
    )
