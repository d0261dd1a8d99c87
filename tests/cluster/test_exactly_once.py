"""SEC-C8 in small: gateways, writers, broker, column store and database are killed while devices send; then every sample is looked for."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.chaos import answers, scene, stored
from deploy.chaos.campaign import campaign
from deploy.chaos.fleet import Habits
from deploy.chaos.history import History, Known
from deploy.chaos.nemesis import Temper
from deploy.chaos.stored import Verdict

pytestmark = pytest.mark.cluster
KILLS = int(os.environ.get("LATEBIND_TEST_KILLS", "3"))
SAMPLES = 50_000
DEVICES = 60


async def test_what_was_acknowledged_is_counted_once_whoever_is_killed(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    with scene.started(tmp_path, tell=print) as system, History(tmp_path / "history.jsonl") as history:
        verdict = await campaign(
            system, history, devices=DEVICES, samples=SAMPLES, seed=seed, temper=Temper(KILLS), habits=Habits(), tell=print
        )
        print(history.totals)
        assert verdict.good, verdict.summary()
        assert verdict.acked >= 0.75 * SAMPLES  # who fails often gives up often
        assert verdict.stored >= verdict.acked
        assert verdict.dead_letters > 0
        assert set(history.kills.values()) == {KILLS}
        assert history.answers.keys() <= {"202", "503", "504", "lost"}, "nobody is told anything but to come again"
        letters = await stored.dead_letters(system.eventlog_url)
        the_checker_sees_what_is_wrong(system, history, letters)


def the_checker_sees_what_is_wrong(system: scene.Scene, history: History, letters: dict[bytes, str]) -> None:
    """A checker that always nods proves nothing: with a history that differs from the truth in one place, it must say so."""
    client = stored.clickhouse(system.olap_url)

    def judged() -> Verdict:
        verdict, counted = stored.judge(history, client, system.account, letters)
        verdict.questions, verdict.answers = answers.differences(counted, system.ask)
        return verdict

    good = next(batch for batch in history.batches.values() if not batch.poison and history.known[batch.id] is Known.ACKED)
    poisoned = next(batch for batch in history.batches.values() if batch.poison and history.known[batch.id] is Known.ACKED)

    # Acknowledged, and not there.
    never = replace(good, id=bytes(16))
    history.batches[never.id], history.known[never.id] = never, Known.ACKED
    assert judged().lost == good.size
    del history.batches[never.id], history.known[never.id]

    # There, and counted, though nobody sent it.
    del history.batches[good.id]
    verdict = judged()
    assert verdict.wrong
    assert len(verdict.answers) >= verdict.questions // 2
    history.batches[good.id] = good

    # Another value of one sample.
    series = good.series[-1]
    history.batches[good.id] = replace(good, series=[*good.series[:-1], replace(series, values=series.values + 1000)])
    assert judged().wrong
    history.batches[good.id] = good

    # A poisoned batch whose dead letter is missing.
    letter = letters.pop(poisoned.id)
    assert judged().lost == 1
    letters[poisoned.id] = letter
    assert judged().good
    client.disconnect()
