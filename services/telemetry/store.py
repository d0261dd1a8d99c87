"""Statements about planned ranges, the fence around them, and which dead letters were tried again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import func, select, update

from kit.db import Reader, Transaction
from kit.db.system import SEEN
from services.telemetry.domain import Plan
from services.telemetry.tables import INGEST_OWNERS, INGEST_PLANS

_T = INGEST_PLANS
_O = INGEST_OWNERS
#: Under this name dead letters that were tried again are among the seen events.
_REPLAY = "telemetry-replay"


async def plans_of(reader: Reader, topic: str) -> dict[int, Plan]:
    """Return the last plan of every partition of a topic."""
    rows = await reader.all(select(_T).where(_T.c.topic == topic))
    return {row.partition: Plan(row.topic, row.partition, row.first_offset, row.last_offset, row.newest_at, row.done) for row in rows}


async def take_partitions(tx: Transaction, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """Take partitions and return their new epochs: whoever had one of them before can plan it no more."""
    epochs = {}
    for partition in sorted(partitions):
        where = (_O.c.topic == topic, _O.c.partition == partition)
        if (await tx.execute(update(_O).where(*where).values(epoch=_O.c.epoch + 1))).rowcount:
            epochs[partition] = int(await tx.scalar(select(_O.c.epoch).where(*where)))
        else:
            epochs[partition] = 1
            await tx.execute(_O.insert().values(topic=topic, partition=partition, epoch=1))
    return epochs


async def overtaken(tx: Transaction, topic: str, epochs: Mapping[int, int]) -> list[int]:
    """Return those of the partitions that somebody else has taken since they were taken with these epochs."""
    rows = await tx.all(select(_O).where(_O.c.topic == topic, _O.c.partition.in_(epochs)))
    current = {row.partition: row.epoch for row in rows}
    return sorted(partition for partition, epoch in epochs.items() if current.get(partition) != epoch)


async def put_plans(tx: Transaction, plans: Sequence[Plan], now: datetime) -> None:
    """Make these the plans of their partitions, not done. The caller has asked `overtaken` in the same transaction."""
    for plan in plans:
        values = {
            "first_offset": plan.first,
            "last_offset": plan.last,
            "newest_at": plan.newest_at,
            "planned_at": now,
            "done": False,
        }
        where = (_T.c.topic == plan.topic, _T.c.partition == plan.partition)
        if not (await tx.execute(update(_T).where(*where).values(**values))).rowcount:
            await tx.execute(_T.insert().values(topic=plan.topic, partition=plan.partition, **values))


async def finish_plans(tx: Transaction, plans: Sequence[Plan]) -> None:
    """Note that these ranges are inserted and committed. One that another process has replaced meanwhile is left alone."""
    for plan in plans:
        await tx.execute(
            update(_T)
            .where(
                _T.c.topic == plan.topic,
                _T.c.partition == plan.partition,
                _T.c.first_offset == plan.first,
                _T.c.last_offset == plan.last,
            )
            .values(done=True)
        )


async def newest_done(reader: Reader, topic: str) -> datetime | None:
    """Return when the newest record that is in the column store was received; None before the first one."""
    found: datetime | None = await reader.scalar(select(func.max(_T.c.newest_at)).where(_T.c.topic == topic, _T.c.done))
    return found


async def tried(reader: Reader, event_ids: Collection[str]) -> set[str]:
    """Return those of the dead letters that were tried again."""
    rows = await reader.all(select(SEEN.c.event_id).where(SEEN.c.consumer == _REPLAY, SEEN.c.event_id.in_(event_ids)))
    return {row.event_id for row in rows}


async def note_tried(tx: Transaction, event_ids: Collection[str]) -> None:
    """Note that these dead letters were tried again."""
    for event_id in event_ids:
        await tx.first_time(_REPLAY, event_id)
