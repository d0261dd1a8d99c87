"""Starts what the demo shows: `latebindd` as one process on a new data folder, or a cluster on real servers; and stops it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from deploy.cluster import Cluster, ProcessFailed, Stores
from deploy.cluster.__main__ import read_servers

# Phones ask every few hours; nobody wants to wait that long here.
SETTINGS = {"LATEBIND_DEPLOYER_POLL_AFTER_S": "4", "LATEBIND_DEPLOYER_POLL_SPREAD_S": "3"}
START_S = 60.0


class ServerFailed(Exception):
    """The server did not start; the text has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that runs. `logs` is where they are, `end` a command that stops it, `again` one that starts it again."""

    url: str
    operator_key: str
    logs: str
    end: str
    again: str
    stop: Callable[[], None]


def start(folder: Path) -> Server:
    """Start one process on a free port and wait until it answers. Raises ServerFailed."""
    ready, log, data = folder / "ready.json", folder / "server.log", folder / "data"
    ready.unlink(missing_ok=True)
    ports = ["--port", "0", "--internal-port", "0"]
    command = [str(Path(sys.executable).with_name("latebindd")), *ports, "--data-dir", str(data), "--ready-file", str(ready)]
    with log.open("wb") as output:
        # Its own session: Ctrl-C in the terminal ends the demo, which then stops the server in good order.
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **SETTINGS}, start_new_session=True)
    ends = time.monotonic() + START_S
    while not ready.exists() or not ready.read_text().endswith("\n"):
        if process.poll() is not None or time.monotonic() > ends:
            process.kill()
            raise ServerFailed("\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        time.sleep(0.05)
    url = json.loads(ready.read_text())["url"]

    def stop() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.wait()

    again = f".venv/bin/latebindd --data-dir build/demo/data --port {url.rpartition(':')[2]} &     # or: make demo KEEP=1"
    return Server(url, (data / "operator.key").read_text().strip(), "build/demo/server.log", f"kill {process.pid}", again, stop)


def start_cluster(folder: Path, servers: Path, tell: Callable[[str, str], None]) -> Server:
    """Start two processes of each part on the servers of `make servers`, in a namespace of their own. Raises ServerFailed."""
    try:
        stores = Stores.within(read_servers(servers), f"demo{uuid4().hex[:12]}")
    except (FileNotFoundError, KeyError) as missing:
        raise ServerFailed(f"the real servers do not run ({missing}): make servers") from missing
    cluster = Cluster(folder / "cluster", stores, environment=SETTINGS, tell=tell)
    try:
        cluster.start()
    except ProcessFailed as failed:
        cluster.kill()
        raise ServerFailed(str(failed)) from failed
    again = "make servers && .venv/bin/python -m deploy.cluster up --folder build/demo-cluster/cluster     # or: make demo-cluster KEEP=1"
    end = ".venv/bin/python -m deploy.cluster stop --folder build/demo-cluster/cluster; make servers-stop"
    return Server(cluster.url, cluster.operator_key, "build/demo-cluster/cluster/*/latebindd.log", end, again, cluster.stop)


@contextlib.contextmanager
def stopping(server: Server, *, keep: bool) -> Iterator[Server]:
    """Stop the server at the end, unless it is to be kept and all went well."""
    try:
        yield server
    except BaseException:
        server.stop()
        raise
    if not keep:
        server.stop()
