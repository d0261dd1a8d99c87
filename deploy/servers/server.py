"""One server process: installed, started in a session of its own, waited for, stopped or killed, found again by a later program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from deploy.processes import LOG_TAIL, Daemon, locked
from deploy.servers.install import NotInstalled
from deploy.servers.kinds import KINDS

_POLL_S = 0.1


class ServerFailed(Exception):
    """A server did not start or did not become ready; the text holds the end of its log."""


def _ignore(_text: str) -> None:
    """Tell nobody."""


class Server(Daemon):
    """A server of one kind on a folder. `with Server("kafka", folder) as server:` starts and stops it; `addresses` has its URLs."""

    def __init__(self, kind: str, folder: Path, *, tell: Callable[[str], None] = _ignore, advertised: int | None = None) -> None:
        """`advertised`: the port that Kafka tells its clients, when something stands between them."""
        super().__init__(folder, "server.log")
        self.kind = KINDS[kind]
        self._advertised = {} if advertised is None else {"advertised": advertised}
        self.started_here = False
        self._tell = tell

    @property
    def addresses(self) -> Mapping[str, str]:
        """URLs by name: `POSTGRES_URL`, `KAFKA_URL`, …"""
        return self.kind.addresses(self.ports)

    @property
    def url(self) -> str:
        """The first of `addresses`; it may hold a password."""
        return next(iter(self.addresses.values()))

    @property
    def place(self) -> str:
        """`url` without user and password, for people."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def start(self) -> Self:
        """Install, start and wait until it works, unless it does already; one that does not is killed. Two who start it take turns.

        Raises `ServerFailed`, `NotInstalled`.
        """
        with locked(self.folder / "start.lock"):
            return self._start()

    def _start(self) -> Self:
        if self.pid is not None:
            self.recall_ports()
            self.wait_ready()
            return self
        program = self.kind.install(self._tell)
        self.choose_ports(self.kind.ports)
        self._tell("starting")
        try:
            command = self.kind.start(program, self.folder, {**self.ports, **self._advertised})
        except subprocess.CalledProcessError as error:
            output = (error.stdout or b"") + (error.stderr or b"")
            raise ServerFailed(f"{self.kind.name} cannot be prepared: {output.decode(errors='replace')[-LOG_TAIL:]}") from error
        self.launch(command, {**os.environ, **self.kind.environment})
        self.started_here = True
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def wait_ready(self) -> None:
        """Return when the server does its work. Raises `ServerFailed` with the end of its log."""
        deadline = time.monotonic() + self.kind.ready_within_s
        while True:
            try:
                # A bare connection first: client libraries log at length that nobody listens yet.
                socket.create_connection(("127.0.0.1", next(iter(self.ports.values()))), timeout=1).close()
                self.kind.ready(self.ports)
            except Exception as error:  # every client has its own words for "not yet"
                reason = f"{type(error).__name__}: {error}"
            else:
                return
            ended = self.pid is None
            if ended or time.monotonic() > deadline:
                what = "ended by itself" if ended else f"does not answer after {self.kind.ready_within_s:.0f} s ({reason})"
                raise ServerFailed(f"{self.kind.name} {what}; the end of {self.log}:\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def is_ready(self) -> bool:
        """Whether it runs and works now."""
        if self.pid is None:
            return False
        try:
            self.kind.ready(self.ports)
        except Exception:
            return False
        return True

    def stop(self) -> None:
        """Let it end cleanly; kill it when it takes longer than half a minute."""
        self.end(self.kind.stop_signal)

    def kill(self) -> None:
        """SIGKILL to it and all its children at once, as a crash does, and wait until all are gone."""
        self.end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same ports and data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.kill()


__all__ = ["NotInstalled", "Server", "ServerFailed"]
