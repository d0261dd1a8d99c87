"""What the contract suites share: a child process that is killed in the middle of its work, and the table of what ran on which adapter."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
#: Parameters by which the suites name an adapter; a case without one is about the suite itself.
ADAPTER = ("url", "address", "server")
PORTS = {"database": "Database", "blobs": "BlobStore", "eventlog": "EventLog", "olap": "ColumnStore", "signer": "Signer"}
RAN = pytest.StashKey[dict[tuple[str, str], Counter[str]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == FOLDER:
            item.add_marker(pytest.mark.contract)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count each case once: by its body, or by the setup or teardown that broke."""
    report = yield
    if report.when == "call" or not report.passed:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        adapter = next((str(given[name]) for name in ADAPTER if name in given), "")
        ran = item.config.stash.setdefault(RAN, defaultdict(Counter))
        ran[item.path.stem.removeprefix("test_"), adapter][report.outcome] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what ran: port × adapter × cases."""
    ran = config.stash.get(RAN, {})
    if not ran:
        return
    terminalreporter.section("contract suites: cases per port and adapter")
    terminalreporter.line(f"{'port':<13}{'adapter':<24}{'passed':>7}{'failed':>8}{'skipped':>9}")
    for (suite, adapter), outcomes in ran.items():
        if adapter:
            counts = f"{outcomes['passed']:>7}{outcomes['failed']:>8}{outcomes['skipped']:>9}"
            terminalreporter.line(f"{PORTS.get(suite, suite):<13}{adapter:<24}{counts}")


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
