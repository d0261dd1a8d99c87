"""Knows whether the snapshot is as new as the tables, and brings it there: all the time, and at once when a device has seen more.

A state starts at a moment that lies `LEAD` after its transaction. A process that has looked less than `LEAD` ago has therefore heard of
everything that can have started, and may answer; otherwise it looks first (docs/adr/0135). When nobody can be asked, nobody can have
published either: then memory answers, except where it is known to be older than what the device or the log has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta
from pathlib import Path

from structlog import get_logger

from kit.clock import Clock
from kit.db import DatabaseUnavailable
from kit.db.lease import Lease
from kit.errors import NotMigrated, Problem
from kit.metrics import Metric, Metrics
from kit.single_flight import SingleFlight
from services.deployer import snapshot_file
from services.deployer.domain import LEAD
from services.deployer.errors import Outdated, Starting
from services.deployer.loader import Loader
from services.deployer.snapshot import Snapshot

log = get_logger(__name__)

RULES_AGE = Metric("latebind_deployer_rules_age_seconds", "gauge", "Time since rules in memory were last known to be the newest.")
#: How long a look proves that nothing else has started: `LEAD`, less the time that a commit may take.
PROVES = LEAD - timedelta(seconds=0.15)
#: A question to the database, and a device that waits for it, wait no longer than this.
DEADLINE_S = 1.0
#: A start with a file to answer from waits so long for the database.
_START_S = 2.0
#: `_saved` after a failure.
_NEVER = -1


class Freshness:
    """The one who looks. `present` is this process's name among those that answer devices, `file` the snapshot on disk and `place`
    the database that it is of. For one event loop.
    """

    def __init__(
        self, loader: Loader, snapshot: Snapshot, present: Lease, clock: Clock, *, metrics: Metrics, file: Path, place: str
    ) -> None:
        self._loader, self._snapshot, self._present, self._clock = loader, snapshot, present, clock
        self._metrics, self._file, self._place = metrics, file, place
        metrics.register(RULES_AGE)
        #: When the last look began that came to its end; the start of this process before the first one.
        self._looked_at = clock.now()
        self._saved = 0
        self._surveys: SingleFlight[str, list[tuple[str, str]]] = SingleFlight()
        self._surveying = False
        #: Why there is nothing to answer from until the first load is done.
        self.waits_for: Problem = Starting("the rules are still being loaded; ask again in a moment")
        #: What is wrong with the database, None while it answers.
        self.trouble: str | None = None

    async def look(self) -> None:
        """Look, and load what is new. Raises `DatabaseUnavailable` while nothing is there to answer from; afterwards that is only noted."""
        try:
            if self._snapshot.complete:
                with contextlib.suppress(DatabaseUnavailable):
                    await self._loader.load(await self._survey())
            else:
                await self._start()
        finally:
            self._metrics.gauge(RULES_AGE.name, max(0.0, (self._clock.now() - self._looked_at).total_seconds()))

    async def _start(self) -> None:
        """Load everything: from the database, or, while that cannot be used, what the file on disk has."""
        restored = await self._restore()
        began = self._clock.now()
        try:
            async with asyncio.timeout(_START_S if restored else None):
                # First be known, then look: who publishes afterwards gives us time to hear of it.
                await self._present.hold()
                behind = await self._loader.survey()
        except NotMigrated as lacking:
            self.waits_for = lacking
            raise
        except (TimeoutError, DatabaseUnavailable):
            if not restored:
                raise
            self._failed("the database cannot be used; the rules are those of the file on disk")
        else:
            self._proved(began)
            await self._loader.load(behind)
        self._snapshot.complete = True

    async def _restore(self) -> bool:
        """Read the file on disk; returns whether there was one of use."""
        try:
            states = await asyncio.to_thread(snapshot_file.read, self._file, self._place)
        except FileNotFoundError:
            return False
        except (snapshot_file.SnapshotRefused, OSError) as error:
            log.error("the snapshot on disk is not used", path=str(self._file), reason=str(error))
            return False
        await self._loader.restore(states)
        return True

    async def save(self) -> None:
        """Write the file on disk when something has changed. A disk that takes nothing is said once; nothing else depends on it."""
        changes = self._snapshot.changes
        if changes == self._saved or not self._snapshot.complete:
            return
        try:
            await asyncio.to_thread(snapshot_file.write, self._file, self._place, self._snapshot.records())
        except OSError as error:
            if self._saved != _NEVER:
                log.warning("the snapshot on disk cannot be written", path=str(self._file), reason=str(error))
            self._saved = _NEVER
            return
        self._saved = changes

    async def be_present(self) -> None:
        """Renew this process's name among those that answer devices."""
        await self._present.hold()

    async def leave(self) -> None:
        """Give the name back: nobody need wait for this process any more."""
        await self._present.release()

    async def catch_up(self, account: str, collection: str, seen: int) -> None:
        """Bring one collection to the position `seen`, or to the newest there is. Raises `Outdated` when that takes over a second."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._survey()
                if self._snapshot.awaits(account, collection):
                    await self._loader.refresh(account, collection)
                await self._wait_for_turn(account, collection, seen)
        except (TimeoutError, DatabaseUnavailable) as error:
            if self._is_behind(account, collection, seen):
                raise Outdated("newer rules are known than this server has; ask again in a moment") from error

    def _is_behind(self, account: str, collection: str, seen: int) -> bool:
        live = self._snapshot.find(account, collection)
        bound = None if live is None else live.at(self._clock.now())
        return self._snapshot.awaits(account, collection) or (0 if bound is None else bound.position) < seen

    async def _wait_for_turn(self, account: str, collection: str, seen: int) -> None:
        """Another process's clock may be ahead of ours: it has switched already to what we switch to in a moment."""
        live = self._snapshot.find(account, collection)
        if live is None:
            return
        now = self._clock.now()
        bound = live.at(now)
        turn = live.next_turn(now)
        if (bound is None or bound.position < seen) and turn is not None and turn - now <= timedelta(seconds=DEADLINE_S):
            await self._clock.sleep((turn - now).total_seconds())

    async def _survey(self) -> list[tuple[str, str]]:
        """Return what a survey found that began after this call; many callers share one. Raises `DatabaseUnavailable`."""
        if self._surveying:  # it may have read before what the caller has heard of
            await self._surveys.get("", self._survey_once)
        return await self._surveys.get("", self._survey_once)

    async def _survey_once(self) -> list[tuple[str, str]]:
        began = self._clock.now()
        self._surveying = True
        try:
            async with asyncio.timeout(DEADLINE_S):
                behind = await self._loader.survey()
        except (TimeoutError, DatabaseUnavailable) as error:
            self._failed(f"the database does not answer within {DEADLINE_S:.0f} s" if isinstance(error, TimeoutError) else error.detail)
            raise DatabaseUnavailable("the database cannot be used now; try again") from error
        finally:
            self._surveying = False
        self._proved(began)
        return behind

    def _proved(self, began: datetime) -> None:
        if self.trouble is not None:
            log.info("the database answers again; the rules are kept current")
        self.trouble = None
        self._looked_at = began
        self._snapshot.fresh_until = began + PROVES

    def _failed(self, trouble: str) -> None:
        if self.trouble is None:
            log.warning("devices are answered from memory until the database answers again", trouble=trouble)
        self.trouble = trouble
        self._snapshot.degrade()
