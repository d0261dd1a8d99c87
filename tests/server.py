"""The real server as its own process, for tests that kill it, restart it, or talk to it over sockets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

from deploy.cluster.process import told

ROOT = Path(__file__).parents[1]
_START_S = 60.0


class Api:
    """The public address of a server, for its operator. `World` needs no more."""

    url: str

    @property
    def operator_key(self) -> str:
        """The operator's key."""
        raise NotImplementedError  # abstract: each kind of server keeps it elsewhere

    def client(self, key: str | None = None) -> httpx2.Client:
        """A client with this key (default: the operator's)."""
        return httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {key or self.operator_key}"}, timeout=30)

    def new_account(self, name: str = "acme") -> str:
        """Make an account and return its first admin API key."""
        with self.client() as client:
            answer = client.post("/v1/accounts", json={"account": name})
            assert answer.status_code == 201, answer.text
            document: dict[str, Any] = answer.json()
            return str(document["api_key"]["key"] if isinstance(document.get("api_key"), dict) else document["api_key"])


class ServerProcess(Api):
    """`latebindd` on a data folder. `start` returns when it answers; `kill` is SIGKILL."""

    def __init__(self, data_dir: Path, *, environment: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.environment = {"LATEBIND_LOG_LEVEL": "warning", **(environment or {})}
        self.url = ""
        self.internal_url = ""
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data_dir.parent / f"{data_dir.name}.log"

    def start(self, *arguments: str) -> ServerProcess:
        """Start on the port of the start before, if any, so that devices find it again."""
        ready = self.data_dir.parent / f"{self.data_dir.name}.ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "services", "--port", str(self.port), "--internal-port", "0", "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(ready), *arguments],
                cwd=ROOT,
                env=told(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while not ready.exists() or not ready.read_text().endswith("\n"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)
        addresses = json.loads(ready.read_text())
        self.url, self.internal_url = addresses["url"], addresses["internal_url"]
        self.port = int(self.url.rpartition(":")[2])
        return self

    @property
    def operator_key(self) -> str:
        """The key that the first start made."""
        return (self.data_dir / "operator.key").read_text().strip()

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout_s: float = 30) -> int:
        """Ask it to stop and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def __enter__(self) -> ServerProcess:
        return self.start()

    def end(self) -> None:
        """End it if it still runs: by asking, else by force."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()

    def __exit__(self, *_: object) -> None:
        self.end()
