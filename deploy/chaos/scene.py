"""The system under test: four real servers and Latebind as many processes, all of its own, so that everything may be killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from deploy.chaos.campaign import Scene
from deploy.chaos.nemesis import Victim
from deploy.cluster import Cluster, Stores
from deploy.servers import Server

_SERVERS = ("postgres", "kafka", "seaweedfs", "clickhouse")
_RATES = {f"LATEBIND_GATEWAY_{who}_REQUESTS_PER_MINUTE": "100000000" for who in ("DEVICE", "ANONYMOUS", "USER")}
_NAME = "chaos"
_PATIENCE_S = 600.0
#: Analytics are asked while the machine still works off what the faults left behind.
_ASK_S = 120.0


@contextmanager
def started(folder: Path, *, tell: Callable[[str], None]) -> Iterator[Scene]:
    """Start everything below an empty folder, make an account, and kill everything at the end."""
    with ExitStack() as ends:
        servers = {kind: Server(kind, folder / "servers" / kind) for kind in _SERVERS}
        for server in servers.values():
            # Starting one again because it is slow would make a busy machine busier.
            server.kind = replace(server.kind, ready_within_s=_PATIENCE_S)
            ends.callback(server.kill)
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(lambda server: server.start(), servers.values()))
        addresses = {name: url for server in servers.values() for name, url in server.addresses.items()}
        stores = Stores.within(addresses, _NAME)
        replicas = {"registry": 1, "packager": 1, "deployer": 1, "telemetry": 1}
        cluster = Cluster(folder / "cluster", stores, replicas=replicas, environment=_RATES)
        tell("the servers are ready")
        ends.enter_context(cluster)
        tell(f"Latebind serves {cluster.url}")
        key, enrolment_key = _account(cluster)
        client = ends.enter_context(_client(cluster, key))
        processes = {part: cluster.processes(part) for part in ("gateway", "writer")}
        victims = {part: [Victim(one.name, one.kill, one.start) for one in some] for part, some in processes.items()}
        victims |= {kind: [Victim(kind, servers[kind].kill, servers[kind].start)] for kind in ("kafka", "clickhouse", "postgres")}
        yield Scene(
            gateway=cluster.url,
            account=_NAME,
            enrolment_key=enrolment_key,
            ask=lambda path, params: _asked(client, path, params),
            olap_url=stores.olap,
            eventlog_url=stores.eventlog,
            victims=victims,
        )


def _client(cluster: Cluster, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=cluster.url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def _account(cluster: Cluster) -> tuple[str, str]:
    """Make an account; returns its API key and an enrolment key."""
    with _client(cluster, cluster.operator_key) as operator:
        made = operator.post("/v1/accounts", json={"account": _NAME}).raise_for_status().json()["api_key"]
    key = str(made["key"] if isinstance(made, dict) else made)
    with _client(cluster, key) as admin:
        enrolment = admin.post("/v1/enrolment-keys", json={"name": _NAME, "quota": 1_000_000}).raise_for_status()
        return key, str(enrolment.json()["key"])


def _asked(client: httpx2.Client, path: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask until there is an answer. Raises what the last attempt raised."""
    until = time.monotonic() + _ASK_S
    while True:
        try:
            document: Mapping[str, Any] = client.get(path, params=dict(params)).raise_for_status().json()
        except httpx2.HTTPError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
        else:
            return document
