"""Servers of a test's own, for tests that kill or restart them; everything else shares those of `make servers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.servers import Server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Start a server of a kind (`postgres`, `kafka`, …) on ports and data of its own; killed when the test ends."""
    with ExitStack() as servers:
        yield lambda kind: servers.enter_context(Server(kind, tmp_path / kind))
