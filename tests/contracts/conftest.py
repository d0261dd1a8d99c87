"""What the contract suites share: a child process that is killed in the middle of its work."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Victim:
    """A Python program that prints what it was told is durable, one line each, until it is killed."""

    def __init__(self, program: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_after(self, lines: int) -> list[str]:
        """Read so many lines, kill -9, and return every whole line it had printed by then."""
        assert self._process.stdout is not None
        found = []
        for _ in range(lines):
            line = self._process.stdout.readline()
            assert line, f"the program ended by itself with {self._process.wait()}"
            found.append(line)
        self._process.kill()
        rest, _ = self._process.communicate()
        return [line.strip() for line in [*found, *rest.splitlines(keepends=True)] if line.endswith("\n")]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def victim() -> Iterator[Callable[..., Victim]]:
    started: list[Victim] = []

    def start(program: str, *arguments: str) -> Victim:
        started.append(Victim(program, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()
