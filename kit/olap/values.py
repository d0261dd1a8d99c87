"""What both column stores share: names, the engine's passing errors, and parameters in the text form that the engine reads."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

from kit.errors import Unavailable
from kit.olap import Columns, row_count

#: So many statements may wait for a thread of an adapter; more are refused at once.
MAX_WAITING = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_TOKEN = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")
WRAPPED = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)")
#: Errors of the engine that pass: timeout, no more memory, no more disk, files that cannot be read or written, too many queries, network,
#: a server that stops.
PASSING = frozenset({74, 75, 76, 159, 202, 203, 209, 210, 241, 236, 243, 252, 394})
_ESCAPES = str.maketrans(
    {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0", "\b": "\\b", "\f": "\\f", "'": "\\'"}  # as ClickHouse's TSV
)


class Queue:
    """Counts the statements that wait or run, so that a store that is away does not gather them without end."""

    def __init__(self, running: int) -> None:
        self._room = running + MAX_WAITING

    def __enter__(self) -> None:
        """Take a place. Raises `Unavailable` when there is none."""
        if self._room <= 0:
            raise Unavailable("the column store has too much to do; try again")
        self._room -= 1

    def __exit__(self, *_error: object) -> None:
        """Give the place back."""
        self._room += 1


def insertable(table: str, columns: Columns, token: str) -> bool:
    """Whether a batch has rows. Raises `ValueError` for names or tokens that cannot be ones, and columns that differ in length."""
    for name in (table, *columns):
        if not NAME.fullmatch(name):
            raise ValueError(f"not a name of a table or column: {name!r}")
    if not _TOKEN.fullmatch(token):
        raise ValueError("a token has 1 to 200 letters, digits and _ . : / -")
    return row_count(columns) > 0


def rendered(value: object) -> str:
    """A parameter in the form the engine reads: text of one value, escaped; arrays with quoted elements."""
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ",".join(_element(item) for item in value) + "]"
    if value is None:
        return "\\N"
    return _plain(value).translate(_ESCAPES)


def _element(value: object) -> str:
    if isinstance(value, list | tuple):
        return rendered(value)
    if value is None:
        return "NULL"
    text = _plain(value)
    return text if isinstance(value, int | float) else f"'{text.translate(_ESCAPES)}'"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, str | int | float | date):
        return str(value)
    raise TypeError(f"a parameter is text, a number, a bool, a date or a list of them, not {type(value).__name__}")


def quoted(text: str) -> str:
    """Return a text literal of SQL."""
    return f"'{text.translate(_ESCAPES)}'"
