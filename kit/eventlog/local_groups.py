"""Consumer groups of the local log: who reads which partition, how far, and what a commit may say.

All of it lives in the event loop; only commits are durable. Partitions are shared inside one process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from kit.eventlog import Batch, PartitionLost
from kit.eventlog.local_file import Lane
from kit.eventlog.local_reader import LogReader


class Owner(Protocol):
    """The log, as far as its consumers need it."""

    reader: LogReader
    lanes: dict[int, Lane]

    def lane(self, topic: str, partition: int) -> Lane | None:
        """Return a lane, or None."""

    async def write_commit(self, group: Group, offsets: Mapping[int, int]) -> None:
        """Put a commit on disk."""


class Group:
    """Members of a consumer group and what each lane was committed to."""

    def __init__(self, name: str, committed: Mapping[int, int]) -> None:
        self.name = name
        self.committed = dict(committed)
        self.members: list[LocalConsumer] = []

    def share(self, lanes: Sequence[Lane]) -> None:
        """Spread the lanes of one topic evenly over the members that read it; who has one keeps it if the shares allow."""
        members = [member for member in self.members if lanes[0].topic in member.topics]
        if not members:
            return
        least, more = divmod(len(lanes), len(members))
        free = {lane.id: lane for lane in lanes}
        shares: list[tuple[LocalConsumer, int, list[Lane]]] = []
        for number, member in enumerate(members):
            share = least + (number < more)
            kept = [lane for lane in lanes if lane.id in member.positions][:share]
            for lane in kept:
                free.pop(lane.id, None)
            shares.append((member, share, kept))
        for member, share, kept in shares:
            while len(kept) < share:
                kept.append(free.pop(next(iter(free))))
            member.take(lanes, kept)


class LocalConsumer:
    """A member of a group. `positions` says what it reads next, `handed` how far it has handed out since it owns the lane."""

    def __init__(self, owner: Owner, group: Group, topics: frozenset[str]) -> None:
        self.topics = topics
        self.positions: dict[int, int] = {}
        self.wake = asyncio.Event()
        self._handed: dict[int, int] = {}
        self._log, self._group = owner, group
        self._turn = 0

    def take(self, lanes: Sequence[Lane], mine: Sequence[Lane]) -> None:
        """Own `mine` of the lanes of one topic from now on."""
        keep = {lane.id for lane in mine}
        for lane in lanes:
            if lane.id in keep and lane.id not in self.positions:
                self.positions[lane.id] = self._handed[lane.id] = self._group.committed.get(lane.id, 0)
            elif lane.id not in keep:
                self.positions.pop(lane.id, None)
                self._handed.pop(lane.id, None)
        self.wake.set()

    async def batch(self, *, max_records: int, max_bytes: int, max_wait_s: float) -> Batch:
        """Return what is there, waiting at most `max_wait_s`; see `kit.eventlog.Consumer`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + max_wait_s
        while True:
            self.wake.clear()
            if ready := self._ready():
                batch = await self._read(ready, max_records, max_bytes)
                if batch.records:
                    return batch
                continue
            try:
                async with asyncio.timeout_at(until):
                    await self.wake.wait()
            except TimeoutError:
                return Batch(())

    def _ready(self) -> list[tuple[Lane, int]]:
        """Lanes with something to read. Each call begins with another one, so that a busy lane does not starve the rest."""
        lanes = [(lane, position) for lane_id, position in self.positions.items() if position < (lane := self._log.lanes[lane_id]).head]
        if lanes:
            self._turn = (self._turn + 1) % len(lanes)
        return lanes[self._turn :] + lanes[: self._turn]

    async def _read(self, ready: Sequence[tuple[Lane, int]], max_records: int, max_bytes: int) -> Batch:
        records = await self._log.reader.read(ready, max_records, max_bytes)
        asked = {(lane.topic, lane.partition): (lane.id, position) for lane, position in ready}
        # A lane that moved away, or was rewound, while we read is not ours to hand out.
        valid = {place for place, (lane_id, position) in asked.items() if self.positions.get(lane_id) == position}
        batch = Batch(tuple(record for record in records if (record.topic, record.partition) in valid))
        for place, offset in batch.next_offsets().items():
            lane_id = asked[place][0]
            self.positions[lane_id] = offset
            self._handed[lane_id] = max(self._handed[lane_id], offset)
        return batch

    async def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Remember durably; see `kit.eventlog.Consumer`. Raises `PartitionLost` and commits nothing if one partition is lost."""
        done: dict[int, int] = {}
        for (topic, partition), offset in offsets.items():
            lane = self._log.lane(topic, partition)
            if lane is None or offset > self._handed.get(lane.id, -1):
                raise PartitionLost(f"{topic}/{partition} belongs to another consumer of {self._group.name}")
            done[lane.id] = offset
        if done:
            await self._log.write_commit(self._group, done)

    async def rewind(self) -> None:
        """Go back to the last commit."""
        for lane_id in self.positions:
            self.positions[lane_id] = self._group.committed.get(lane_id, 0)
        self.wake.set()
