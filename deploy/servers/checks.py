"""Asks each kind of server for something that only a server that works can do. Every check raises when it cannot, or not yet."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import urllib3
from aiokafka.admin import AIOKafkaAdminClient
from clickhouse_driver import Client
from minio import Minio

_TIMEOUT_S = 5


def _run(check: Coroutine[Any, Any, None]) -> None:
    """Run it on a loop in a thread of its own: a test that starts a server may be on a loop already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, check).result()


def postgres(ports: Mapping[str, int]) -> None:
    """Connect, and make the role and the database of the product: a role that is no superuser, or row security would not bind it."""
    _run(_postgres(ports["sql"]))


async def _postgres(port: int) -> None:
    connection = await asyncpg.connect(host="127.0.0.1", port=port, user="latebind", database="postgres", timeout=_TIMEOUT_S, ssl=False)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'latebind_app'"):
            await connection.execute("CREATE ROLE latebind_app LOGIN NOSUPERUSER NOBYPASSRLS")
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'latebind'"):
            await connection.execute("CREATE DATABASE latebind OWNER latebind_app")
    finally:
        await connection.close()


def kafka(ports: Mapping[str, int]) -> None:
    """Ask the broker for its topics."""
    _run(_kafka(ports["broker"]))


async def _kafka(port: int) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=_TIMEOUT_S * 1000)
    try:
        await client.start()
        await client.list_topics()
    finally:
        await client.close()


def s3(port: int, key: str, secret: str) -> None:
    """Write an object: a store that only lists buckets may still be electing its master."""
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(_TIMEOUT_S), retries=False)
    client = Minio(f"127.0.0.1:{port}", access_key=key, secret_key=secret, secure=False, region="us-east-1", http_client=pool)
    if not client.bucket_exists(bucket_name="latebind"):
        client.make_bucket(bucket_name="latebind")
    client.put_object(bucket_name="latebind", object_name="ready", data=io.BytesIO(b"ready"), length=5)


def clickhouse(ports: Mapping[str, int]) -> None:
    """Run a statement."""
    client = Client("127.0.0.1", port=ports["native"], connect_timeout=_TIMEOUT_S, send_receive_timeout=_TIMEOUT_S)
    try:
        client.execute("CREATE DATABASE IF NOT EXISTS latebind")
    finally:
        client.disconnect()
