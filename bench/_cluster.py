"""Real servers and the gateway as a process of its own, for benchmarks that count the hop."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from bench._measure import ROOT, NotRun, Server, cpu_seconds, free_port, serving
from deploy.servers import Server as RealServer

_RATE = "100000000"


@dataclass(slots=True)
class Chain(Server):
    """Servers that answer together: `port` is the first one's, the CPU time is everybody's."""

    behind: Sequence[Server] = ()

    def cpu_seconds(self) -> float:
        """Return the CPU time that all of them have used so far."""
        return cpu_seconds(self.pid) + sum(one.cpu_seconds() for one in self.behind)


def stores() -> dict[str, str]:
    """Return the settings of a PostgreSQL, a Kafka and a ClickHouse with schemas, topics and tables of their own. Raises `NotRun`."""
    found = {}
    for kind in ("postgres", "kafka", "clickhouse"):
        server = RealServer(kind, ROOT / "build" / "servers" / kind)
        if server.pid is None:
            raise NotRun(f"{kind} does not run; start it with: make servers")
        found[kind] = server.url
    name = f"bench{uuid4().hex[:8]}"
    return {
        "LATEBIND_DATABASE_URL": f"{found['postgres']}?schema_prefix={name}_",
        "LATEBIND_EVENTLOG_URL": f"{found['kafka']}?prefix={name}.",
        "LATEBIND_OLAP_URL": found["clickhouse"].rpartition("/")[0] + f"/{name}",
    }


@contextmanager
def service(name: str, folder: Path, settings: Mapping[str, str], *arguments: str) -> Iterator[Server]:
    """Run one service on core 0."""
    port = free_port()
    command = [sys.executable, "-m", "services", name, "--port", str(port), "--internal-port", "0", "--data-dir", str(folder), *arguments]
    with serving(command, port, environment={"LATEBIND_LOG_LEVEL": "warning", **settings}) as server:
        yield server


@contextmanager
def gateway(folder: Path, upstreams: Mapping[str, Server]) -> Iterator[Server]:
    """Run the gateway on core 0 before these services; a service that no request goes to need not run."""
    some = next(iter(upstreams.values()))
    urls = {
        f"LATEBIND_GATEWAY_{name.upper()}_URL": f"http://127.0.0.1:{upstreams.get(name, some).port}"
        for name in ("registry", "packager", "deployer", "telemetry")
    }
    limits = {f"LATEBIND_GATEWAY_{kind}_REQUESTS_PER_MINUTE": _RATE for kind in ("DEVICE", "USER", "ANONYMOUS")}
    with service("gateway", folder, {**urls, **limits}) as server:
        yield server
