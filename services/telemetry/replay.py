"""Dead letters tried again: each goes back to where batches come in, and a writer treats it as any batch (`latebindd telemetry replay`).

A letter is known by its event id, which follows from the place that the rejected record had. It is remembered for two weeks which
letters were tried; trying one twice changes no figure, since its rows keep their identity. A batch that is rejected again is a new
letter with its history. Letters are never deleted here: the log forgets them in its own time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kit.clock import Clock
from kit.db import Database
from kit.eventlog import EventLog, Record
from kit.ids import new_id
from kit.workers import running
from services.telemetry import events, store
from services.telemetry.service import GROUP
from services.telemetry.writer import Writer

_TOGETHER = 200
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters: reasons (none: all), when they were written (`since` included, `until` not), and whether tried ones too."""

    reasons: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    again: bool = False

    def takes(self, letter: Record) -> bool:
        """Whether the letter is one of them."""
        at = datetime.fromtimestamp(letter.timestamp_ms / 1000, UTC)
        return (
            (not self.reasons or letter.headers.get("reason") in self.reasons)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Letters of one reason and day (UTC): how many there are, and how many of them were tried again already."""

    reason: str
    day: str
    letters: int
    tried: int
    last_detail: str


@dataclass(slots=True)
class Outcome:
    """What a replay did. `unfinished`: records that no writer had reached when the waiting ended; they are not lost."""

    run: str
    letters: int = 0
    already_tried: int = 0
    replayed: int = 0
    unfinished: int = 0
    rejected_again: dict[str, int] = field(default_factory=dict)

    @property
    def counted(self) -> int:
        """Letters that are counted now."""
        return self.replayed - self.unfinished - sum(self.rejected_again.values())


class Replay:
    """Lists letters and tries them again. `writer` helps to write them, beside those that run anyway."""

    def __init__(self, *, eventlog: EventLog, database: Database, writer: Writer, clock: Clock) -> None:
        self._log, self._database, self._writer, self._clock = eventlog, database, writer, clock

    async def groups(self, wanted: Wanted) -> list[Group]:
        """Return the letters by reason and day, those that are most first. Changes nothing."""
        letters, tried, detail = Counter[tuple[str, str]](), Counter[tuple[str, str]](), dict[tuple[str, str], str]()
        async for batch, known in self._letters(wanted):
            for letter in batch:
                day = datetime.fromtimestamp(letter.timestamp_ms / 1000, UTC).date().isoformat()
                key = (letter.headers.get("reason", ""), day)
                letters[key] += 1
                tried[key] += letter.headers["event-id"] in known
                detail[key] = letter.headers.get("detail", "")
        return [Group(*key, count, tried[key], detail[key]) for key, count in letters.most_common()]

    async def replay(self, wanted: Wanted, *, wait_s: float, tell: Callable[[Outcome], None]) -> Outcome:
        """Try letters again and wait until they were written, `wait_s` at most. `tell` hears of the progress.

        A letter is noted as tried after it is in the log again; who is killed between the two tries it once more.
        """
        outcome = Outcome(new_id("replay"))
        async for batch, known in self._letters(wanted):
            outcome.letters += len(batch)
            left = [letter for letter in batch if wanted.again or letter.headers["event-id"] not in known]
            outcome.already_tried += len(batch) - len(left)
            if left:
                await self._log.append(events.RECEIVED, [events.replayed(letter, outcome.run) for letter in left])
                async with self._database.begin() as tx:
                    await store.note_tried(tx, [letter.headers["event-id"] for letter in left])
                outcome.replayed += len(left)
            tell(outcome)
        if outcome.replayed:
            await self._wait(outcome, wait_s, tell)
        return outcome

    async def _wait(self, outcome: Outcome, wait_s: float, tell: Callable[[Outcome], None]) -> None:
        goals = {partition: head for partition, (_, head) in (await self._log.progress(GROUP, events.RECEIVED)).items()}
        until = self._clock.monotonic() + wait_s
        async with running([self._writer], clock=self._clock):
            while True:
                progress = await self._log.progress(GROUP, events.RECEIVED)
                behind = sum(max(0, goal - progress[partition][0]) for partition, goal in goals.items())
                outcome.unfinished = min(behind, outcome.replayed)
                tell(outcome)
                if not behind or self._clock.monotonic() >= until:
                    break
                await asyncio.sleep(_LOOK_S)
        again = Counter[str]()
        async for batch, _ in self._letters(Wanted()):
            again.update(letter.headers.get("reason", "") for letter in batch if letter.headers.get(events.REPLAY) == outcome.run)
        outcome.rejected_again = dict(again.most_common())

    async def _letters(self, wanted: Wanted) -> AsyncIterator[tuple[Sequence[Record], set[str]]]:
        """Yield wanted letters, each once, and which event ids of them were tried already."""
        seen: set[str] = set()
        async for records in self._log.read(events.REJECTED):
            letters = []
            for record in records:
                name = record.headers["event-id"]
                if name not in seen:
                    seen.add(name)
                    if wanted.takes(record):
                        letters.append(record)
            for start in range(0, len(letters), _TOGETHER):
                some = letters[start : start + _TOGETHER]
                async with self._database.read() as reader:
                    known = await store.tried(reader, [letter.headers["event-id"] for letter in some])
                yield some, known
