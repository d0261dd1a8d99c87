"""The column store port: batches of columns in, aggregates out. Adapters: `chdb` (embedded), `clickhouse`.

SQL keeps to what ClickHouse 18.16 and chDB 26 both understand (docs/adr). Tables are made by `kit.olap.migrate`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from kit.checks import Findings


@dataclass(frozen=True, slots=True)
class Coded:
    """A text column with few different values: row i holds `values[codes[i]]`; `codes` is an int32 numpy array."""

    values: Sequence[str]
    codes: Any

    def __len__(self) -> int:
        return len(self.codes)


#: One batch: column name -> values (list, numpy array, pyarrow array or `Coded`), all of one length.
Columns = Mapping[str, Any]


class StatementFailed(Exception):
    """The engine refuses a statement or a batch: a fault in our SQL, our rows or our parameters. `code` is the engine's number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ColumnStore(Protocol):
    """Whole batch or error; the same batch twice under one token is one insert in effect.

    Tables hold rows with an identity (`ReplacingMergeTree`) and are read with `FINAL` or by identity: an old server that knows no tokens
    keeps the rows of a repeated insert twice until it merges them (docs/adr/0115).

    Every method raises `Unavailable` when the store cannot do it now (not reachable, no memory, no disk, too slow) and
    `StatementFailed` when it never will.
    """

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        """Insert one batch. When this returns the rows survive a crash. Repeating the same batch under the same token adds
        nothing in effect.

        A reader may see the rows of one partition before those of another; within a partition the batch appears whole.

        A token has 1 to 200 letters, digits and `_ . : / -`; where the engine knows tokens it is remembered for thousands of inserts
        into that table, not for ever.
        """
        ...

    async def query(self, sql: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Run one fixed statement and return rows as dictionaries.

        Values are bound as `{name:Type}` (ClickHouse's own syntax), never formatted into the text: text, numbers, bools, dates, times
        and lists of them. In the rows `Date` is a `date`, `DateTime` an aware `datetime` in UTC; numbers that are not finite are None.
        """
        ...

    async def execute(self, sql: str) -> None:
        """Run one statement without a result (DDL, DROP PARTITION)."""
        ...

    async def ping(self) -> None:
        """Raise `Unavailable` when the store cannot be used now."""
        ...

    def examine(self, schema: Path) -> Findings:
        """Look for what could be wrong with the store, and whether the files in `schema` are applied, in words (`latebindd doctor`).

        Raises `Unavailable` when it cannot go on.
        """
        ...


def row_count(columns: Columns) -> int:
    """Return the length of a batch. Raises `ValueError` when the columns differ in length."""
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"columns differ in length: {sorted(lengths)}")
    return lengths.pop() if lengths else 0


#: scheme -> adapter; the contract suite runs over these.
SCHEMES = ("chdb", "clickhouse")


@asynccontextmanager
async def open_olap(url: str) -> AsyncIterator[ColumnStore]:
    """Open the store that the URL names: `chdb:/path/to/folder` or `clickhouse://host/database`.

    Nothing starts before the first statement.
    """
    scheme = urlsplit(url).scheme
    if scheme == "chdb":
        from kit.olap.chdb import open_chdb  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_chdb(url) as store:
            yield store
        return
    if scheme == "clickhouse":
        from kit.olap.clickhouse import open_clickhouse  # noqa: PLC0415 - only the chosen adapter is loaded

        async with open_clickhouse(url) as store:
            yield store
        return
    raise ValueError(f"no column store adapter for {scheme!r}: use one of {', '.join(SCHEMES)}")


__all__ = ["SCHEMES", "Coded", "ColumnStore", "Columns", "open_olap", "row_count"]
