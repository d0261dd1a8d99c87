"""Servers that a test may kill: same ports and data afterwards, and what was acknowledged is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import pytest

from deploy.servers import Server

pytestmark = pytest.mark.cluster


async def test_postgresql_starts_again_at_once_though_its_children_were_at_work(own_server: Callable[[str], Server]) -> None:
    server = own_server("postgres")
    connection = await asyncpg.connect(server.url, ssl=False)
    busy = asyncio.create_task(connection.execute("SELECT count(*) FROM generate_series(1, 1000000000)"))
    await asyncio.sleep(0.2)
    server.kill()
    server.start()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await busy


async def test_postgresql_comes_back_with_what_it_acknowledged(own_server: Callable[[str], Server]) -> None:
    server = own_server("postgres")
    connection = await asyncpg.connect(server.url, ssl=False)
    await connection.execute("CREATE TABLE kept (number integer)")
    await connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
    server.kill()
    connection.terminate()
    url = server.url
    server.start()
    assert server.url == url
    connection = await asyncpg.connect(url, ssl=False)
    try:
        assert await connection.fetchval("SELECT count(*) FROM kept") == 1000
        role = await connection.fetchrow("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
        assert role is not None
        assert tuple(role) == (False, False)
    finally:
        await connection.close()
