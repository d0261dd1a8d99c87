"""What a command shows: tables, facts, trees and progress for people, one JSON document for programs.

Rich honours NO_COLOR and terminals by itself; where stdout is no terminal, lines are never cut to its width.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from latebind.cli._errors import as_json, details_of, hint_of
from latebind.errors import LatebindError

WIDE = 200

# Moments are shown to the second, in UTC as they come; --json has all of them.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

#: Heading → key of an item, or what makes the cell of it.
Columns = Mapping[str, str | Callable[[Mapping[str, Any]], Any]]


class Output:
    """Writes answers to stdout and everything else to stderr. `json` is set by the command's `--json`."""

    def __init__(self, *, json_mode: bool = False) -> None:
        self.json_mode = json_mode
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr, stderr=True)

    def emit(self, value: Any, show: Callable[[], None]) -> None:
        """Print the value as JSON, or call what shows it to people."""
        if self.json_mode:
            self.json(value)
        else:
            show()

    def json(self, value: Any) -> None:
        """Print one JSON document on stdout."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def items(self, items: Iterable[Mapping[str, Any]], columns: Columns, empty: str) -> None:
        """Print a list: a JSON array, or a table with a column per entry of `columns` (heading → key or function)."""
        listed = list(items)
        if self.json_mode:
            self.json(listed)
        elif not listed:
            self.note(empty)
        else:
            self.table(list(columns), [[_cell(item, source) for source in columns.values()] for item in listed])

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
        """Print a table; numbers stand right."""
        rows = [list(row) for row in rows]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.title, table.title_justify, table.title_style = title, "left", "bold"
        for place, heading in enumerate(headings):
            cells = [row[place] for row in rows if row[place] is not None]
            numeric = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
            table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_text(value) for value in row))
        self.out.print(table)

    def facts(self, facts: Mapping[str, Any], *, title: str | None = None) -> None:
        """Print names and values, one pair per line."""
        if title:
            self.out.print(Text(title, style="bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        for name, value in facts.items():
            grid.add_row(name, _text(value))
        self.out.print(grid)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line of the answer; not in JSON mode."""
        if not self.json_mode:
            self.out.print(Text(text, style=style or ""), soft_wrap=True)

    def tree(self, tree: Tree) -> None:
        """Print a tree."""
        self.out.print(tree, soft_wrap=not self.out.is_terminal)

    def note(self, text: str) -> None:
        """Print a message for people on stderr, in every mode."""
        self.err.print(Text(text, style="dim"), soft_wrap=True)

    def done(self, text: str) -> None:
        """Print on stderr that something was done."""
        self.err.print(Text.assemble(("✓ ", "green"), text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning on stderr."""
        self.err.print(Text.assemble(("! ", "yellow"), text), soft_wrap=True)

    def error(self, error: LatebindError) -> None:
        """Print an error and what to try next on stderr; with `--json` the error as a document on stdout too."""
        if self.json_mode:
            self.json(as_json(error))
        self.err.print(Text.assemble(("error ", "bold red"), (error.code, "red"), "  ", error.detail), soft_wrap=True)
        for line in details_of(error):
            self.err.print(Text(f"  · {line}"), soft_wrap=True)
        self.err.print(Text.assemble(("next  ", "bold cyan"), hint_of(error)), soft_wrap=True)

    @contextmanager
    def transfer(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar for bytes on stderr; the value takes the bytes done so far."""
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with self._progress(*columns) as progress:
            task = progress.add_task(escape(label), total=max(total, 1))
            yield lambda done: progress.update(task, completed=done)

    @contextmanager
    def steps(self, label: str) -> Iterator[Callable[[str, float | None], None]]:
        """A progress line on stderr; the value takes what is being done, and how much of it (0 to 1, None: nobody knows)."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with self._progress(*columns) as progress:
            task: TaskID = progress.add_task(escape(label), total=None)

            def step(text: str, share: float | None) -> None:
                progress.update(task, description=escape(text), total=None if share is None else 1.0, completed=share or 0.0)

            yield step

    def _progress(self, *columns: Any) -> Progress:
        return Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal)


def _console(file: Any, *, stderr: bool = False) -> Console:
    if file.isatty():
        return Console(stderr=stderr, highlight=False)
    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else WIDE
    return Console(file=file, width=width, highlight=False)


def _cell(item: Mapping[str, Any], source: str | Callable[[Mapping[str, Any]], Any]) -> Any:
    return item.get(source) if isinstance(source, str) else source(item)


def _text(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("–", style="dim")
    return Text(_plain(value))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list | tuple):
        return ", ".join(str(one) for one in value)
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        return f"{value[:10]} {value[11:19]}" if value[11:19] != "00:00:00" else value[:10]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def size_text(size: int | float | None) -> str:
    """Bytes in words: 3.2 MB."""
    if size is None:
        return "–"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return ""


def short(digest: str | None) -> str:
    """The first characters of a digest: enough for people."""
    return (digest or "–")[:12]


def shape_text(tensor: Mapping[str, Any]) -> str:
    """A tensor in words: `image float32 [1, 416, 416, 3]`."""
    shape = ", ".join("?" if size is None else str(size) for size in tensor.get("shape") or [])
    return f"{tensor['name']} {tensor['dtype']} [{shape}]"
