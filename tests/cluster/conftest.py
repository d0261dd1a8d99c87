"""Servers and clusters: shared ones, and a test's own for tests that break them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster import Cluster
from deploy.servers import Server
from tests import real_servers
from tests.server import Api


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Start a server of a kind (`postgres`, `kafka`, …) on ports and data of its own; killed when the test ends."""
    with ExitStack() as servers:
        yield lambda kind: servers.enter_context(Server(kind, tmp_path / kind))


class ClusterApi(Api):
    """A cluster as its operator sees it; `World` takes it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = cluster.url

    @property
    def operator_key(self) -> str:
        """The key that the migration made."""
        return self.cluster.operator_key


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two processes of each part on the servers of `make servers`. Tests take an account of their own, and leave it whole."""
    with Cluster(tmp_path_factory.mktemp("cluster"), real_servers.stores()) as cluster:
        yield cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make a cluster of the test's own (arguments of `Cluster`); it is not started, and killed at the end."""
    with ExitStack() as ends:

        def make(**options: Any) -> Cluster:
            cluster = Cluster(tmp_path / "cluster", options.pop("stores", None) or real_servers.stores(), **options)
            ends.callback(cluster.kill)
            return cluster

        yield make
