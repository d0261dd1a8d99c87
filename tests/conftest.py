"""What every test may use: a clock that stands still, secrets, a database with a service's tables, and the whole server in one process."""

from __future__ import annotations

import os

import pytest

from kit.clock import FakeClock
from kit.identity import Kind, Principal, PrincipalSeal, Scope, granted


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def seal() -> PrincipalSeal:
    return PrincipalSeal(b"s" * 32)


def user(account: str = "acme", *scopes: Scope) -> Principal:
    """An API key's principal; without scopes it may do everything."""
    return Principal(Kind.USER, "key1", account, granted(frozenset(scopes or {Scope.ADMIN})))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the test, not from the shell that runs it or a .env file in its folder."""
    for name in list(os.environ):
        if name.startswith("LATEBIND_") and not name.startswith("LATEBIND_TEST_"):
            monkeypatch.delenv(name)
