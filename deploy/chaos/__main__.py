"""`python -m deploy.chaos`: SEC-C8 in full. Everything it starts is its own, below one folder; the history stays there."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
from functools import partial
from pathlib import Path

from deploy.chaos import scene
from deploy.chaos.campaign import campaign
from deploy.chaos.fleet import Habits
from deploy.chaos.history import History
from deploy.chaos.nemesis import Temper
from deploy.processes import Progress


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 every promise held, 1 one did not (the summary says which)."""
    parser = argparse.ArgumentParser("python -m deploy.chaos", description=__doc__)
    parser.add_argument("--devices", type=int, default=2_000)
    parser.add_argument("--samples", type=int, default=2_000_000, help="at least so many (default 2,000,000)")
    parser.add_argument("--kills", type=int, default=20, help="of each of gateway, writer, broker, ClickHouse, PostgreSQL (default 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="what is chosen by chance follows from it")
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"))
    given = parser.parse_args(arguments)
    shutil.rmtree(given.folder, ignore_errors=True)
    tell = partial(Progress(sys.stderr).tell, "chaos")
    # Ten batches a second, however many devices there are.
    pause = given.devices / 10
    habits = Habits(pause_s=(0.1 * pause, 1.9 * pause), samples=(100, 300))
    temper = Temper(given.kills, pause_s=(1.0, 6.0), down_s=(0.0, 8.0))
    with scene.started(given.folder, tell=tell) as system, History(given.folder / "history.jsonl") as history:
        verdict = asyncio.run(
            campaign(
                system, history, devices=given.devices, samples=given.samples, seed=given.seed, temper=temper, habits=habits, tell=tell
            )
        )
        summary = {"seed": given.seed, "good": verdict.good, "devices": given.devices, **history.totals, **verdict.summary()}
    (given.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
