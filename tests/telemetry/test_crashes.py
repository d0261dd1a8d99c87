"""`kill -9` at every step of the writer and at random moments; then each sample is compared with the senders' history."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.telemetry.crash_child import batch_number
from tests.telemetry.factories import History

ROOT = Path(__file__).parents[2]
SHARE = 25
#: Where the writer dies, and at which time that it gets there. The first transaction takes the fence, then each range plans and says done;
#: the first commit only asks whether the partitions are ours.
STEPS = (
    ("after transaction", 1),
    ("before insert samples", 2),
    ("after insert samples", 1),
    ("after insert failures", 2),
    ("before insert activity", 1),
    ("after insert activity", 1),
    ("before append telemetry.rejected", 1),
    ("after append telemetry.rejected", 1),
    ("before commit", 1),
    ("before commit", 2),
    ("after commit", 2),
    ("after transaction", 2),
    ("after transaction", 3),
    ("after append telemetry.received", 11),
)
RANDOM_KILLS = 4


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.telemetry.crash_child", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_until_killed(folder: Path, number: int, step: str, count: int) -> None:
    process = child("send", folder, number * SHARE, (number + 1) * SHARE - 1, step, count)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -9, f"{step} {count} was never reached: {errors[-3000:]}"


def run_for_a_while(folder: Path, number: int, seconds: float) -> None:
    process = child("send", folder, number * SHARE, (number + 1) * SHARE - 1, "never", 1)
    time.sleep(seconds)
    assert process.poll() is None, process.communicate()[1][-3000:]
    process.kill()
    process.communicate()


def test_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number, (step, count) in enumerate(STEPS):
        run_until_killed(tmp_path, number, step, count)
    for number in range(len(STEPS), len(STEPS) + RANDOM_KILLS):
        run_for_a_while(tmp_path, number, rng.uniform(0.5, 3.0))
    total = len(STEPS) + RANDOM_KILLS
    process = child("send", tmp_path, total * SHARE, total * SHARE + 2, "-", 1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors[-3000:]
    process = child("read", tmp_path)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors[-3000:]
    compare(json.loads(output.splitlines()[-1]), tmp_path)


def compare(found: dict[str, Any], folder: Path) -> None:
    """Every answer against what was accepted. A sender asks again until it is answered, so all that was tried was accepted in the end."""
    history, poison = History(), set()
    told = [line.split() for line in (folder / "history").read_text().splitlines()]
    tried, answered = ({int(number) for word, number in told if word == kind} for kind in ("try", "ok"))
    assert tried == answered
    for number in sorted(answered):
        install, sent, record = batch_number(number)
        if sent is None:
            poison.add(record)
        else:
            history.add(install, sent)
    assert samples_found(found["rows"]) == Counter(
        (run.at_ms // 1000, run.phase, np.float32(run.value_us).item(), run.weight, run.dims["model"], run.dims["version"])
        for run in history.runs
    )
    by = ("soc", "version")
    assert {tuple(row[name] for name in by): row["inferences"] for row in found["inferences"]} == history.inferences(*by)
    expected = history.latency(*by)
    assert {(*(row[name] for name in by), row["phase"]) for row in found["latency"]} == set(expected)
    for row in found["latency"]:
        figures = expected[(*(row[name] for name in by), row["phase"])]
        assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-6)
    assert {(row["phase"], row["code"]): row["count"] for row in found["failures"]} == history.failed()
    assert {row["start"][:10]: row["active_installs"] for row in found["active"] if row["active_installs"]} == history.actives()
    assert {(row["start"][:10], row["model"], row["version"]): row["installs"] for row in found["adoption"]} == history.adoption()
    assert found["dropped"] == history.dropped
    assert {bytes.fromhex(value) for _, value in found["letters"]} == poison
    # A dead letter may be written twice; its id says that it is the same one.
    places = {(headers["source-partition"], headers["source-offset"]): headers for headers, _ in found["letters"]}
    assert {headers["event-id"] for headers, _ in found["letters"]} == {headers["event-id"] for headers in places.values()}
    assert {headers["reason"] for headers in places.values()} == {"MALFORMED"}


def samples_found(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(
        (
            int(datetime.fromisoformat(row["at"]).astimezone(UTC).timestamp()),
            row["phase"],
            np.float32(row["value_us"]).item(),
            row["weight"],
            row["model"],
            row["version"],
        )
        for row in rows
    )
