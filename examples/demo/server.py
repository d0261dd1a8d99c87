"""Starts `latebindd` as a process of its own, and stops it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Phones ask every few hours; nobody wants to wait that long here.
SETTINGS = {"LATEBIND_DEPLOYER_POLL_AFTER_S": "4", "LATEBIND_DEPLOYER_POLL_SPREAD_S": "3"}
START_S = 60.0


class ServerFailed(Exception):
    """The server did not start; the text has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that runs. `pid` is its process."""

    url: str
    pid: int
    data: Path
    log: Path

    @property
    def operator_key(self) -> str:
        """The key that the first start made."""
        return (self.data / "operator.key").read_text().strip()

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)


def start(data: Path, log: Path) -> Server:
    """Start a server on a free port and wait until it answers. Raises ServerFailed."""
    ready = data.parent / "ready.json"
    ready.unlink(missing_ok=True)
    ports = ["--port", "0", "--internal-port", "0"]
    command = [str(Path(sys.executable).with_name("latebindd")), *ports, "--data-dir", str(data), "--ready-file", str(ready)]
    with log.open("wb") as output:
        # Its own session: Ctrl-C in the terminal ends the demo, which then stops the server in good order.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **SETTINGS},
            start_new_session=True,
        )
    ends = time.monotonic() + START_S
    while not ready.exists() or not ready.read_text().endswith("\n"):
        if process.poll() is not None or time.monotonic() > ends:
            process.kill()
            raise ServerFailed("\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        time.sleep(0.05)
    return Server(json.loads(ready.read_text())["url"], process.pid, data, log)


@contextlib.contextmanager
def serving(data: Path, log: Path, *, keep: bool) -> Iterator[Server]:
    """A server; it is stopped at the end, unless it is to be kept and all went well."""
    server = start(data, log)
    try:
        yield server
    except BaseException:
        server.stop()
        raise
    if not keep:
        server.stop()
