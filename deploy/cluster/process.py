"""One `latebindd` of a cluster: started, waited for, stopped or killed, on the same ports every time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.cluster import front
from deploy.processes import Daemon

PORTS = ("public", "internal")
_START_S = 180.0
_POLL_S = 0.05
#: Standard input becomes descriptor 3, and the process id is told, as sd_listen_fds(3) wants it.
_HAND_OVER = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 </dev/null'


class ProcessFailed(Exception):
    """A process did not start or did not become ready; the text holds the end of its log."""


class Process(Daemon):
    """One process of a part. `name` is `deployer-0`; `environment` is all it is told."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], *, door: Path | None) -> None:
        super().__init__(folder, "latebindd.log")
        self.name = name
        self.environment = dict(environment)
        self._arguments = tuple(arguments)
        self._door = door

    @property
    def url(self) -> str:
        """Its own address. Gateways have one in common: `Cluster.url`."""
        return f"http://127.0.0.1:{self.ports['public']}"

    @property
    def internal_url(self) -> str:
        """Where its probes and metrics are."""
        return f"http://127.0.0.1:{self.ports['internal']}"

    @property
    def data_dir(self) -> Path:
        """What it keeps on its own disk."""
        return self.folder / "data"

    def start(self, *, wait: bool = True) -> None:
        """Start it unless it runs; `wait` until it is ready. Raises `ProcessFailed`."""
        if self.pid is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.ports:
                self.choose_ports(PORTS)
            ports = ["--port", str(self.ports["public"]), "--internal-port", str(self.ports["internal"])]
            command = [*latebindd(), *self._arguments, *ports, "--data-dir", str(self.data_dir)]
            if self._door is None:
                self.launch(command, self._told())
            else:
                with front.take(self._door) as listening:
                    self.launch(["sh", "-c", _HAND_OVER, "sh", *command], self._told(), stdin=listening)
        if wait:
            self.wait_ready()

    def wait_ready(self, within_s: float = _START_S) -> None:
        """Return when `/readyz` says 200. Raises `ProcessFailed` with what it says, or with the end of its log."""
        deadline = time.monotonic() + within_s
        while (status := self.readiness())[0] != 200:
            if self.pid is None:
                raise ProcessFailed(f"{self.name} ended by itself; the end of {self.log}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} is not ready after {within_s:.0f} s: {json.dumps(status[1])}\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Return status and document of `/readyz`; 0 and nothing when it does not answer."""
        with contextlib.suppress(OSError, ValueError):
            try:
                with urllib.request.urlopen(f"{self.internal_url}/readyz", timeout=5) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as refused:
                with refused:
                    return refused.code, json.load(refused)
        return 0, {}

    def stop(self) -> int | None:
        """SIGTERM, and wait until it has ended; returns its exit code when this program started it."""
        return self.end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash does."""
        self.end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections are taken by the kernel and nothing answers, as on a machine that hangs."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop cleanly, start, and wait until it is ready."""
        self.stop()
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)

    def _told(self) -> dict[str, str]:
        return told(self.environment)


def latebindd() -> list[str]:
    """Return the command that belongs to the running Python."""
    return [str(Path(sys.executable).with_name("latebindd"))]


def told(environment: Mapping[str, str]) -> dict[str, str]:
    """Return these settings in an environment without the caller's own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LATEBIND_")} | dict(environment)


def migrate(folder: Path, environment: Mapping[str, str]) -> None:
    """Run `latebindd migrate`; a new operator key is in `folder/operator.key`. Raises `ProcessFailed`."""
    done = subprocess.run(
        [*latebindd(), "migrate", "--data-dir", str(folder)], env=told(environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ProcessFailed(f"latebindd migrate ended with {done.returncode}:\n{done.stderr[-3000:]}")
