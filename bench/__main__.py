"""Run benchmarks by goal: `python -m bench R1 T1`, `python -m bench --list`.

Each module of this folder declares `GOALS = {"R1": "what is compared"}` and `run(goal, seconds) -> dict`. Per goal one JSON document
goes to standard output and to build/bench/results/<goal>.json, and a short table to standard error. The exit code is 1 when answers
differ or a program fails, never because something was slow. A peer that is not there is reported as "not run".
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import bench
from bench._measure import BUILD, AnswersDiffer, NotRun, base_document, table


def modules() -> dict[str, ModuleType]:
    """Return goal -> module, for every module of this folder that has goals."""
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(bench.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"bench.{info.name}")
        for goal in getattr(module, "GOALS", {}):
            if goal in found:
                raise SystemExit(f"goal {goal} is in two modules: {found[goal].__name__} and {module.__name__}")
            found[goal] = module
    return found


def run_goal(goal: str, module: ModuleType, seconds: float) -> dict[str, Any]:
    """Run one goal and return its document, also when it fails."""
    document = {**base_document(goal, module.GOALS[goal]), "module": module.__name__}
    try:
        return {**document, "status": "done", **module.run(goal, seconds)}
    except NotRun as reason:
        return {**document, "status": "not run", "reason": str(reason)}
    except AnswersDiffer as difference:
        return {**document, "status": "answers differ", "reason": str(difference)}
    except Exception as error:
        traceback.print_exc()
        return {**document, "status": "failed", "reason": f"{type(error).__name__}: {error}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments, run, print, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("goals", nargs="*", metavar="GOAL", help="ids as in PERFORMANCE section 9, for example R1 T1; none: all")
    parser.add_argument("--list", action="store_true", help="say what can be run")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of A and B (default: %(default)s)")
    options = parser.parse_args(arguments)
    found = modules()
    if options.list:
        for goal, module in sorted(found.items()):
            print(f"{goal:4} {module.__name__.removeprefix('bench.'):32} {module.GOALS[goal]}")
        return 0
    goals = [goal.upper().removeprefix("PERF-") for goal in options.goals] or sorted(found)
    if unknown := [goal for goal in goals if goal not in found]:
        parser.error(f"unknown goal {', '.join(unknown)}; known are {', '.join(sorted(found))}")
    os.environ["BENCH_PAIRS"] = str(options.pairs)
    results: Path = BUILD / "results"
    results.mkdir(parents=True, exist_ok=True)
    failed = False
    for goal in goals:
        document = run_goal(goal, found[goal], options.seconds)
        text = json.dumps(document, indent=2, default=str)
        print(text, flush=True)
        (results / f"{goal}.json").write_text(text + "\n")
        print(table(document), file=sys.stderr, flush=True)
        failed = failed or document["status"] in {"failed", "answers differ"}
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
