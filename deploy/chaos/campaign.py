"""SEC-C8 as one run: senders and nemesis side by side, then quiet, then the verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploy.chaos import answers, stored
from deploy.chaos.answers import Ask
from deploy.chaos.fleet import Fleet, Habits
from deploy.chaos.history import History
from deploy.chaos.nemesis import Nemesis, Temper, Victim
from deploy.chaos.stored import Verdict

_QUIET_S = 300.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Scene:
    """What is examined: an account of a system that runs, where its data lies, and who may be killed."""

    gateway: str
    account: str
    enrolment_key: str
    ask: Ask
    olap_url: str
    eventlog_url: str
    victims: Mapping[str, Sequence[Victim]]


async def campaign(
    scene: Scene, history: History, *, devices: int, samples: int, seed: int, temper: Temper, habits: Habits, tell: Callable[[str], None]
) -> Verdict:
    """Send at least `samples` samples and kill as `temper` says, whichever lasts longer; then compare. Raises when it does not recover."""
    tell(f"seed {seed}: {devices} devices, at least {samples} samples, {temper.kills} kills of each of {', '.join(scene.victims)}")
    history.write("campaign", seed=seed, devices=devices, samples=samples, kills=temper.kills)
    stop = asyncio.Event()
    fleet = Fleet(scene.gateway, scene.account, scene.enrolment_key, history, size=devices, seed=seed)
    await fleet.enrol()
    tell(f"{devices} devices are enrolled")
    nemesis = Nemesis(scene.victims, history, seed=seed, temper=temper)
    async with asyncio.TaskGroup() as running:
        killing = running.create_task(nemesis.run())
        running.create_task(fleet.run(stop, habits))
        told = time.monotonic()
        while not killing.done() or history.samples < samples:
            await asyncio.sleep(_LOOK_S)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                tell(_progress(history))
        stop.set()
    tell(f"{_progress(history)}; everything is up, waiting for the writers")
    await _all_written(scene.ask)
    return await asyncio.to_thread(_judge, scene, history, await stored.dead_letters(scene.eventlog_url), tell)


def _progress(history: History) -> str:
    kills = ", ".join(f"{kind} {count}" for kind, count in sorted(history.kills.items()))
    attempts = ", ".join(f"{answer} {count}" for answer, count in sorted(history.answers.items()))
    return f"{history.samples} samples in {len(history.batches)} batches; answers: {attempts}; kills: {kills or 'none'}"


async def _all_written(ask: Ask) -> None:
    """Wait until the answer says that nothing is pending."""
    until = time.monotonic() + _QUIET_S
    while True:
        pending: object = "no answer"
        try:
            pending = (await asyncio.to_thread(ask, "/v1/analytics/inferences", {}))["pending_batches"]
        except Exception as error:  # right after the last kill a service may still be coming back
            pending = f"{type(error).__name__}: {error}"
        if pending == 0:
            return
        if time.monotonic() > until:
            raise TimeoutError(f"not everything was written within {_QUIET_S:.0f} s: {pending}")
        await asyncio.sleep(_LOOK_S)


def _judge(scene: Scene, history: History, letters: Mapping[bytes, str], tell: Callable[[str], None]) -> Verdict:
    client = stored.clickhouse(scene.olap_url)
    try:
        verdict, counted = stored.judge(history, client, scene.account, letters)
    finally:
        client.disconnect()
    verdict.questions, verdict.answers = answers.differences(counted, scene.ask)
    history.write("verdict", **verdict.summary())
    tell(f"{_progress(history)}; {verdict.summary()}")
    return verdict
