"""`python -m deploy.cluster`: Latebind as many processes, on the servers of `make servers`, below build/cluster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from uuid import uuid4

from deploy.cluster.cluster import PARTS, Cluster
from deploy.cluster.process import ProcessFailed
from deploy.cluster.stores import Stores
from deploy.processes import Progress

FOLDER = Path("build/cluster")
SERVERS = Path("build/servers/servers.env")
_PREFIX = "LATEBIND_TEST_"


def read_servers(path: Path) -> dict[str, str]:
    """Return the addresses that `make servers` wrote: `POSTGRES_URL`, … Raises `FileNotFoundError`."""
    lines = (line.partition("=") for line in path.read_text().splitlines())
    return {name.removeprefix(_PREFIX): value for name, _, value in lines}


def up(folder: Path, servers: Path) -> int:
    """Start what does not run; the data of an earlier start is found again."""
    progress = Progress(sys.stderr)
    try:
        cluster = Cluster.at(folder, tell=progress.tell)
    except FileNotFoundError:
        cluster = Cluster(folder, Stores.within(read_servers(servers), f"c{uuid4().hex[:12]}"), tell=progress.tell)
    try:
        cluster.start()
    except ProcessFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    addresses = folder / "cluster.env"
    write_addresses(cluster, addresses)
    print(f"Latebind serves {cluster.url}; addresses: {addresses} (stop with: make cluster-stop)", file=sys.stderr)
    print(f"operator key: {cluster.folder / 'migrate' / 'operator.key'}", file=sys.stderr)
    return 0


def write_addresses(cluster: Cluster, path: Path) -> None:
    """Write where everything is, as `LATEBIND_…=…` lines, whole or not at all; the command line `latebind` reads the first."""
    lines = [f"LATEBIND_SERVER={cluster.url}\n"]
    for process in cluster.processes():
        name = process.name.upper().replace("-", "_")
        lines += [f"LATEBIND_CLUSTER_{name}_URL={process.url}\n", f"LATEBIND_CLUSTER_{name}_INTERNAL_URL={process.internal_url}\n"]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(lines))
    partial.replace(path)


def stop(folder: Path) -> int:
    """Stop what runs; data stays."""
    progress = Progress(sys.stderr)
    try:
        Cluster.at(folder, tell=progress.tell).stop()
    except FileNotFoundError:
        progress.tell("cluster", f"there is none in {folder}")
    return 0


def status(folder: Path) -> int:
    """Say what runs and what troubles it; exit code 1 when something is not ready."""
    try:
        cluster = Cluster.at(folder)
    except FileNotFoundError:
        print(f"there is no cluster in {folder}")
        return 1
    good = True
    for process in cluster.processes():
        code, document = process.readiness()
        good &= code == 200
        troubles = [f"{name}: {check['detail']}" for name, check in document.get("checks", {}).items() if check["status"] == "down"]
        print(f"{process.name:<12} {document.get('status', 'not running'):<12} {process.url}  {'; '.join(troubles)}")
    return int(not good)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 a process failed or is not ready."""
    parser = argparse.ArgumentParser("python -m deploy.cluster", description=f"{__doc__} Parts: {', '.join(PARTS)}.")
    parser.add_argument("command", choices=["up", "stop", "status"])
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default {FOLDER}")
    parser.add_argument("--servers", type=Path, default=SERVERS, help=f"addresses of the servers, for a new cluster (default {SERVERS})")
    given = parser.parse_args(arguments)
    if given.command == "up":
        return up(given.folder, given.servers)
    return {"stop": stop, "status": status}[given.command](given.folder)


if __name__ == "__main__":
    sys.exit(main())
