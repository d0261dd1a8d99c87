"""The second fence (SEC-E3): with every `WHERE account = …` removed, PostgreSQL still shows and changes no row of another account."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Float, Integer, LargeBinary, Table, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from kit.clock import SystemClock
from kit.context import acting_for
from kit.db import Database, open_database
from kit.db.migrate import migrate
from kit.db.types import Json, Timestamp
from tests import real_servers

SERVICES = ("registry", "packager", "deployer", "telemetry")
pytestmark = pytest.mark.cluster


def metadata(service: str) -> Any:
    return importlib.import_module(f"services.{service}.tables").metadata


def account_tables(service: str) -> list[Table]:
    return [table for table in metadata(service).sorted_tables if "account" in table.columns]


@pytest.fixture(params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Database]]:
    async with open_database(f"{real_servers.postgres()}#{request.param}", SystemClock()) as database:
        await migrate(database, f"services.{request.param}")
        yield request.param, database


def row(table: Table, account: str) -> dict[str, Any]:
    """A row with a value in every column that needs one; text and bytes differ between accounts, as ids do."""
    values: dict[str, Any] = {}
    for column in table.columns:
        kind = column.type
        if isinstance(kind, Timestamp):
            values[column.name] = datetime(2026, 11, 22, tzinfo=UTC)
        elif isinstance(kind, Json):
            values[column.name] = []
        elif isinstance(kind, Boolean):
            values[column.name] = False
        elif isinstance(kind, Float):
            values[column.name] = 0.5
        elif isinstance(kind, Integer | BigInteger):
            values[column.name] = 1 + sum(account.encode())
        elif isinstance(kind, LargeBinary):
            values[column.name] = account.encode()
        else:
            values[column.name] = account
    return values


async def test_no_foreign_row_is_seen_or_changed_without_a_filter(service: tuple[str, Database]) -> None:
    name, database = service
    tables = account_tables(name)
    async with database.begin() as tx:
        for table in tables:
            for account in ("acme", "other"):
                await tx.execute(insert(table).values(**row(table, account)))
    for table in reversed(tables):
        for account, expected in (("acme", ["acme"]), ("other", ["other"]), ("", []), ("nobody", [])):
            with acting_for(account):
                async with database.read() as reader:
                    assert [found.account for found in await reader.all(select(table))] == expected, table.name
        with acting_for("acme"):
            async with database.begin() as tx:
                assert (await tx.execute(update(table).values(account=table.c.account))).rowcount == 1, table.name
            with pytest.raises(DBAPIError, match="row-level security"):
                async with database.begin() as tx:
                    await tx.execute(insert(table).values(**row(table, "third") | {"account": "third"}))
            with pytest.raises(DBAPIError, match="row-level security"):
                async with database.begin() as tx:
                    await tx.execute(update(table).values(account="third"))
            async with database.begin() as tx:
                assert (await tx.execute(delete(table))).rowcount == 1, table.name
        async with database.read() as reader:
            assert [found.account for found in await reader.all(select(table))] == ["other"], table.name
