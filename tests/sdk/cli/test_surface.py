"""What holds for every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from latebind.cli._errors import ExitCode
from latebind.cli._output import Output, size_text
from latebind.cli._times import parse_duration
from latebind.cli.main import app, main
from latebind.errors import LatebindError

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its path."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))


def test_every_command_takes_json_and_says_what_it_does() -> None:
    for path, command in ALL.items():
        assert "--json" in {option for param in command.params for option in param.opts}, path
        assert command.help, path


def test_every_command_and_exit_code_is_documented() -> None:
    text = DOCS.read_text()
    for path in ALL:
        assert f"latebind {' '.join(path)}" in text, path
    documented = {int(code): name for code, name in re.findall(r"^\| (\d+) \| `([A-Z_]+)`", text, re.MULTILINE)}
    assert documented == {int(code): code.name for code in ExitCode}


def test_help_is_quick_and_imports_no_engine() -> None:
    program = """
import sys
from latebind.cli.main import main
main(["--help"])
main(["push", "--help"])
heavy = {"numpy", "onnxruntime", "ai_edge_litert", "reactivex", "cryptography", "google.protobuf", "zstandard"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "simulate-fleet" in done.stdout


def test_what_is_no_terminal_gets_no_colours_and_no_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    output = Output()
    output.table(["name", "count"], [["a" * 150, 1]])
    output.done("yes")
    with output.steps("working") as step, output.transfer("file", 10) as progress:
        step("half", 0.5)
        progress(10)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "a" * 150 in printed.out
    assert "working" not in printed.err


def test_errors_end_with_what_to_try_next(capsys: pytest.CaptureFixture[str]) -> None:
    Output().error(LatebindError("it broke", code="ODD"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error ODD  it broke"
    assert lines[-1].startswith("next  ")


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    assert main(["model", "show"]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("latebind ")


def test_a_closed_pipe_is_no_fault(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "latebind.cli.main", "simulate-fleet", "--show-kinds"]
    command = f"{' '.join(program)} | head -1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    )
    assert "Traceback" not in done.stderr


def test_words_for_sizes_and_durations() -> None:
    assert [size_text(size) for size in (None, 5, 3_163_737, 2_000_000_000)] == ["–", "5 B", "3.2 MB", "2.0 GB"]
    assert [parse_duration(text) for text in ("90", "1.5s", "2m", "12h", "1d", "2w")] == [90, 1.5, 120, 43_200, 86_400, 1_209_600]
