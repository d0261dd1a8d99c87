"""`make fuzz`: SEC-B1 at full length. Malformed models through whole children; prints a line per thousand and what they ended as.

python -m tests.packager.fuzz --cases 10000 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.packager.environments import Environments
from services.packager.errors import ModelRejected, Reason
from services.packager.sandbox import SAFE, Level, Limits, Sandbox, open_sandbox
from tests.packager.conftest import Examiner
from tests.packager.malformed import hand_made, mutants

LIMITS = Limits(seconds=20, memory_bytes=2 * 2**30, disk_bytes=32 * 2**20)
#: The service must not grow, whatever passes through it.
MOST_GROWTH = 64 * 2**20


def resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def examine_all(sandbox: Sandbox, models: Iterable[bytes], forbidden: str) -> Counter[str]:
    """Examine models two at a time; return how they ended. Raises `AssertionError` when one ends as none may."""
    ended: Counter[str] = Counter()
    rest = iter(models)

    async def work() -> None:
        for data in rest:
            try:
                await Examiner(sandbox)(data, seconds=5)
                ended["good"] += 1
            except ModelRejected as rejected:
                assert rejected.detail and forbidden not in rejected.detail, rejected
                # Neither our own reader nor our own code may be what failed.
                assert rejected.reason is not Reason.CHILD_ANSWER_INVALID, (rejected, data[:2000])
                ended[rejected.reason] += 1

    await asyncio.gather(work(), work())
    return ended


async def main(cases: int, seed: int, levels: Sequence[Level]) -> int:
    """Run so many cases at the first of `levels` that holds here, and print what they came to."""
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        async with open_sandbox(Path(folder) / "scratch", LIMITS, Environments(Path(folder) / "environments"), levels) as sandbox:
            models = itertools.islice(itertools.chain(hand_made().values(), mutants(seed)), cases)
            started, before = time.monotonic(), resident()
            while batch := list(itertools.islice(models, 1000)):
                total += await examine_all(sandbox, batch, folder)
                growth = resident() - before
                print(
                    f"{total.total()} cases, {time.monotonic() - started:.0f} s, level {sandbox.level}, grown {growth >> 20} MiB",
                    flush=True,
                )
                assert growth <= MOST_GROWTH
            left = [entry.name.partition("-")[0] for entry in (Path(folder) / "scratch").glob("*/*")]
            assert sorted(left) == ["lock", "warm"], left
    for name, count in total.most_common():
        print(f"{count:7}  {name}")
    print(f"{total.total()} malformed models, seed {seed}: every one a package or a refusal with a reason")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--level", type=Level, choices=SAFE, help="of the sandbox; the strongest that holds here otherwise")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.cases, given.seed, [given.level] if given.level else SAFE)))
