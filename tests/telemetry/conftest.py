"""Telemetry on real stores in a folder: log, SQLite, chDB."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.clock import FakeClock
from kit.identity import PrincipalSeal
from tests.telemetry.stores import Stores, open_stores


@pytest.fixture
async def stores(tmp_path: Path, clock: FakeClock, seal: PrincipalSeal) -> AsyncIterator[Stores]:
    async with open_stores(tmp_path, clock, seal) as opened:
        yield opened
