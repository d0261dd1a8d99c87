"""The tables of the column store, made before the first statement of a process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.olap import Columns, ColumnStore
from kit.olap.migrate import migrate
from kit.tracing import span

SCHEMA = Path(__file__).parent / "schema"
#: Every table that rows come into; each is partitioned by the month of `day`.
TABLES = ("samples", "failures", "activity")
#: What is made of samples, partitioned by build (`rollup.py`).
ROLLED = ("rolled_samples", "rolled_installs")


class Tables:
    """A column store with our tables in it. Nothing starts before it is needed: the embedded engine costs a second and memory."""

    def __init__(self, olap: ColumnStore) -> None:
        self._olap = olap
        self._making = asyncio.Lock()
        self._made = False

    @property
    def in_use(self) -> bool:
        """Whether this process has used the store."""
        return self._made

    async def query(self, sql: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run a statement with bound parameters."""
        await self._make()
        return await self._olap.query(sql, params)

    async def insert(self, table: str, columns: Columns, *, token: str) -> None:
        """Insert a batch once per token."""
        await self._make()
        with span("telemetry", f"insert {table}", kind="client", attributes={"db.collection.name": table, "db.operation.name": "INSERT"}):
            await self._olap.insert(table, columns, token=token)

    async def months(self, table: str) -> list[int]:
        """Return the months (202611) of which the table has rows."""
        found = await self.query(
            "SELECT DISTINCT partition FROM system.parts"
            " WHERE database = currentDatabase() AND active AND table = {table:String} ORDER BY partition",
            {"table": table},
        )
        return [int(row["partition"]) for row in found]

    async def drop_month(self, table: str, month: int) -> None:
        """Delete a month of a table."""
        if table not in TABLES or not 197001 <= month <= 210612:
            raise ValueError(f"no month of ours: {table} {month}")
        await self._make()
        await self._olap.execute(f"ALTER TABLE {table} DROP PARTITION {month}")

    async def execute(self, sql: str) -> None:
        """Run a statement without a result; its text is ours."""
        await self._make()
        await self._olap.execute(sql)

    async def build_rows(self) -> Counter[int]:
        """Return how many rows each build of the roll-ups has."""
        found = Counter[int]()
        for table in ROLLED:
            for row in await self.query(
                "SELECT partition, sum(rows) AS number FROM system.parts"
                " WHERE database = currentDatabase() AND active AND table = {table:String} GROUP BY partition",
                {"table": table},
            ):
                found[int(row["partition"])] += int(row["number"])
        return found

    async def drop_build(self, build: int) -> None:
        """Delete a build of the roll-ups."""
        await self._make()
        for table in ROLLED:
            await self._olap.execute(f"ALTER TABLE {table} DROP PARTITION {int(build)}")

    async def _make(self) -> None:
        if self._made:
            return
        async with self._making:
            if not self._made:
                await migrate(self._olap, SCHEMA)
                self._made = True
