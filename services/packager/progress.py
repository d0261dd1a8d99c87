"""What a job says while it works: words for each step, and how far the whole is. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

#: Steps of examining one variant, in order.
EXAMINING = {
    "fetching": "fetching the files",
    "reading": "reading the model",
    "checking": "comparing it with the declaration",
    "sampling": "reading the given samples",
    "loading": "loading it into the engine",
    "running": "running it on generated input",
    "writing": "keeping the golden output",
    "replaying": "running it again in a second process",
    "comparing": "comparing it with its source",
    "evaluating": "evaluating it on the given samples",
    "measuring": "measuring speed and memory",
}


class Report(Protocol):
    """Tells how far a job is. Never waits."""

    def __call__(self, step: str, progress: float, text: str) -> None:
        """Say the step in words, the progress from 0 to 1, and a line for the job's log."""
        ...


class Progress:
    """One stretch of a job, from `start` to `end` of the whole. `label` goes before every line."""

    def __init__(self, report: Report, label: str, start: float, end: float) -> None:
        self._report, self._label, self._start, self._end = report, label[:48], start, end

    def say(self, words: str, done: float = 0.0) -> None:
        """Say a line; `done` is from 0 to 1 of this stretch."""
        at = round(self._start + (self._end - self._start) * done, 4)
        self._report(f"{self._label}: {words}"[:100], at, f"{self._label}: {words}")

    def steps(self, words: dict[str, str], start: float = 0.0, end: float = 1.0) -> Callable[[str], None]:
        """Return what a child's steps are told to; they are spread over a part of this stretch."""
        names = list(words)

        def on_step(name: str) -> None:
            self.say(words[name], start + (end - start) * names.index(name) / len(names))

        return on_step
