"""Telemetry on real stores: log, SQLite and chDB in a folder, or Kafka, PostgreSQL and ClickHouse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.clock import FakeClock
from kit.identity import PrincipalSeal
from kit.ports import PortSettings
from tests import real_servers
from tests.telemetry.stores import Stores, open_stores


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.cluster)])
async def stores(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock, seal: PrincipalSeal) -> AsyncIterator[Stores]:
    at = PortSettings(data_dir=tmp_path)
    if request.param == "servers":
        urls = {"database_url": real_servers.postgres(), "eventlog_url": real_servers.kafka(), "olap_url": real_servers.clickhouse()}
        at = PortSettings(data_dir=tmp_path, **urls)
    async with open_stores(at, clock, seal) as opened:
        yield opened
