"""Types commands as a person would: each is printed, then run as a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

WIDTH = 118


class CommandFailed(Exception):
    """A command ended with an error; the text says which and how."""


class Shell:
    """Runs `latebind` with its configuration in the demo's own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = Console(width=WIDTH if not sys.stdout.isatty() else None, highlight=False, soft_wrap=False)
        self.commands = 0
        self._began = time.monotonic()
        self._environ = {**os.environ, "LATEBIND_CONFIG": str(folder / "config.toml"), "COLUMNS": str(self.console.width)}
        for name in ("LATEBIND_SERVER", "LATEBIND_API_KEY", "LATEBIND_PROFILE"):
            self._environ.pop(name, None)
        if self.console.is_terminal and not self.console.no_color:
            self._environ["FORCE_COLOR"] = "1"

    def headline(self, number: int, text: str) -> None:
        """Begin a part of the story."""
        self.console.print()
        after = f"after {time.monotonic() - self._began:.0f} s"
        self.console.print(Panel(Text(text, style="bold"), title=f"{number}", title_align="left", subtitle=after, border_style="cyan"))

    def remark(self, text: str, style: str = "") -> None:
        """Say something between commands."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def show(self, *arguments: str, stdin: str | None = None, expect: int = 0) -> None:
        """Run `latebind` and let it print for itself. Raises CommandFailed when it ends with another code than expected."""
        self._print(arguments, stdin)
        ended = subprocess.run(self._line(arguments), env=self._environ, input=stdin, text=True, check=False)
        self._check(arguments, ended.returncode, expect, "")

    def ask(self, *arguments: str, stdin: str | None = None, hide: str | None = None) -> Any:
        """Run `latebind … --json`; the parsed answer. `hide` is a secret that is not printed."""
        self._print((*arguments, "--json"), stdin, hide)
        ended = subprocess.run(
            self._line((*arguments, "--json")),
            env=self._environ,
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
        )
        self._check(arguments, ended.returncode, 0, ended.stderr)
        return json.loads(ended.stdout)

    def begin(self, *arguments: str, output: Path) -> subprocess.Popen[bytes]:
        """Start `latebind … --json` and let it run; its answer goes to a file."""
        self._print((*arguments, "--json"), None, note=f"> {_short(output)} &")
        with output.open("wb") as out, output.with_suffix(".log").open("wb") as log:
            return subprocess.Popen(self._line((*arguments, "--json")), env=self._environ, stdout=out, stderr=log)

    def _line(self, arguments: tuple[str, ...]) -> list[str]:
        self.commands += 1
        return [str(Path(sys.executable).with_name("latebind")), *arguments]

    def _print(self, arguments: tuple[str, ...], stdin: str | None, hide: str | None = None, note: str = "") -> None:
        line = shlex.join(("latebind", *(_short(one) for one in arguments)))
        if hide:
            line = line.replace(hide, hide[:8] + "…")
        if stdin is not None:
            note = "< rules"
        self.console.print()
        self.console.print(Text.assemble(("$ ", "bold green"), (line, "bold"), f" {note}" if note else ""), soft_wrap=True)

    @staticmethod
    def _check(arguments: tuple[str, ...], code: int, expected: int, errors: str) -> None:
        if code != expected:
            raise CommandFailed(f"latebind {shlex.join(arguments)} ended with {code}\n{errors}")


def _short(argument: object) -> str:
    """Paths below the working folder as people write them."""
    text = str(argument)
    return text.removeprefix(str(Path.cwd()) + "/")
