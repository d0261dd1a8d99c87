"""Kills processes with SIGKILL at moments nobody chose, and starts each again as a supervisor would."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploy.chaos.history import History


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that may be killed. Both calls block; `start` returns when it works again and raises when it does not."""

    name: str
    kill: Callable[[], object]
    start: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Temper:
    """How often each kind is killed, how long between two kills, and how long a victim stays away. Times in seconds."""

    kills: int
    pause_s: tuple[float, float] = (0.3, 2.5)
    down_s: tuple[float, float] = (0.0, 3.0)
    #: A victim that does not come back within this time ends the run.
    patience_s: float = 600.0


class Nemesis:
    """`victims` by kind; each kind is hit `kills` times, in random order, also while another victim is down."""

    def __init__(self, victims: Mapping[str, Sequence[Victim]], history: History, *, seed: int, temper: Temper) -> None:
        self._victims, self._history, self._temper = victims, history, temper
        self._rng = random.Random(seed)
        self._busy = {victim.name: asyncio.Lock() for some in victims.values() for victim in some}

    async def run(self) -> None:
        """Kill as planned; returns when every victim is back. Raises what a victim raised that stayed away."""
        plan = [kind for kind in self._victims for _ in range(self._temper.kills)]
        self._rng.shuffle(plan)
        async with asyncio.TaskGroup() as restarts:
            for kind in plan:
                await asyncio.sleep(self._rng.uniform(*self._temper.pause_s))
                victim = self._rng.choice(self._victims[kind])
                await self._busy[victim.name].acquire()
                await asyncio.to_thread(victim.kill)
                self._history.killed(kind)
                restarts.create_task(self._restart(victim, self._rng.uniform(*self._temper.down_s)))

    async def _restart(self, victim: Victim, down_s: float) -> None:
        try:
            await asyncio.sleep(down_s)
            until = time.monotonic() + self._temper.patience_s
            while True:
                try:
                    await asyncio.to_thread(victim.start)
                except Exception as error:  # what it needs may be down too: try again, as a supervisor does
                    self._history.write("start failed", victim=victim.name, error=f"{type(error).__name__}: {error}"[-300:])
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(0.5)
                else:
                    self._history.write("started", victim=victim.name)
                    return
        finally:
            self._busy[victim.name].release()
