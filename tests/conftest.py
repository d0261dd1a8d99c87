"""What every test may use: a clock that stands still, secrets, a database with a service's tables, and the whole server in one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from kit.clock import FakeClock
from kit.identity import Kind, Principal, PrincipalSeal, Scope, granted
from kit.ports import PortSettings
from tests import real_servers

# Nothing here is timed: a busy machine must not fail a property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def seal() -> PrincipalSeal:
    return PrincipalSeal(b"s" * 32)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.cluster)])
def ports_at(request: pytest.FixtureRequest, tmp_path: Path) -> PortSettings:
    """Embedded stores in a folder of the test, with the metadata there too or on a real PostgreSQL."""
    return PortSettings(data_dir=tmp_path, database_url="" if request.param == "sqlite" else real_servers.postgres())


def user(account: str = "acme", *scopes: Scope) -> Principal:
    """An API key's principal; without scopes it may do everything."""
    return Principal(Kind.USER, "key1", account, granted(frozenset(scopes or {Scope.ADMIN})))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the test, not from the shell that runs it or a .env file in its folder."""
    for name in list(os.environ):
        if name.startswith("LATEBIND_") and not name.startswith("LATEBIND_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A test that configures logging leaves no handler behind: its stream is closed, and others read what is logged."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            root.removeHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()
