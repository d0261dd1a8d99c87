"""One server process: started in a session of its own, waited for, stopped or killed, found again by a later program.

A server is its folder: `process.json` says which process serves it and on which ports. A process is signalled only when its id *and*
its start time agree, so that a number that was given to another program meanwhile is never hit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from deploy.servers.install import NotInstalled
from deploy.servers.kinds import KINDS

_POLL_S = 0.1
_STOP_S = 30.0
_LOG_TAIL = 3000


class ServerFailed(Exception):
    """A server did not start or did not become ready; the text holds the end of its log."""


def _ignore(_text: str) -> None:
    """Tell nobody."""


class Server:
    """A server of one kind on a folder. `with Server("kafka", folder) as server:` starts and stops it; `addresses` has its URLs."""

    def __init__(self, kind: str, folder: Path, *, tell: Callable[[str], None] = _ignore, advertised: int | None = None) -> None:
        """`advertised`: the port that Kafka tells its clients, when something stands between them."""
        self.kind = KINDS[kind]
        self._advertised = {} if advertised is None else {"advertised": advertised}
        self.folder = folder.absolute()
        self.ports: Mapping[str, int] = {}
        self.started_here = False
        self._tell = tell
        self._child: subprocess.Popen[bytes] | None = None
        self._process_file = self.folder / "process.json"
        self.log = self.folder / "server.log"
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
            self.ports = json.loads(self._process_file.read_text())["ports"]

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
        """Install, start and wait until it works, unless it does already; one that does not is killed.

        Raises `ServerFailed`, `NotInstalled`.
        """
        if self.pid is not None:
            self.wait_ready()
            return self
        program = self.kind.install(self._tell)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.ports or not all(_is_free(port) for port in self.ports.values()):
            self.ports = dict(zip(self.kind.ports, _free_ports(len(self.kind.ports)), strict=True))
        self._tell("starting")
        try:
            command = self.kind.start(program, self.folder, {**self.ports, **self._advertised})
        except subprocess.CalledProcessError as error:
            output = (error.stdout or b"") + (error.stderr or b"")
            raise ServerFailed(f"{self.kind.name} cannot be prepared: {output.decode(errors='replace')[-_LOG_TAIL:]}") from error
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **self.kind.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started_here = True
        record = {"pid": self._child.pid, "started": _started(self._child.pid), "ports": self.ports}
        self._process_file.write_text(json.dumps(record) + "\n")
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

    @property
    def pid(self) -> int | None:
        """Id of the process that serves this folder, or None."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
            record = json.loads(self._process_file.read_text())
            if _started(record["pid"]) == record["started"]:
                return int(record["pid"])
        return None

    def stop(self) -> None:
        """Let it end cleanly; kill it when it takes longer than half a minute."""
        self._end(self.kind.stop_signal)

    def kill(self) -> None:
        """SIGKILL to it and all its children at once, as a crash does, and wait until all are gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same ports and data."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        deadline = time.monotonic() + _STOP_S
        if number == signal.SIGKILL:
            family = _kill_family(pid)
        else:
            family = {pid: _started(pid)}
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while self.pid is not None or any(started is not None and _started(one) == started for one, started in family.items()):
            if time.monotonic() > deadline:
                family = {**family, **_kill_family(pid)}
                deadline += _STOP_S
            time.sleep(0.02)

    def log_tail(self) -> str:
        """Return the end of the server's output."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:] if self.log.exists() else "(nothing)"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.kill()


def _started(pid: int) -> int | None:
    """Return when a process started, in the kernel's ticks since boot, or None when it is gone (proc(5), field 22 of stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _kill_family(pid: int) -> Mapping[int, int | None]:
    """SIGKILL to a process and its descendants; returns when each started.

    Not by process group: PostgreSQL's children have sessions of their own, and while one lives its data cannot be opened again.
    """
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    family, found = {pid: _started(pid)}, [pid]
    while found:
        for child in children.get(found.pop(), ()):
            family[child] = _started(child)
            found.append(child)
    for one in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return family


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now and that no server of ours was just given."""
    bound = []
    try:
        for _ in range(count):
            one = socket.socket()
            bound.append(one)
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]
    finally:
        for one in bound:
            one.close()


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


__all__ = ["NotInstalled", "Server", "ServerFailed"]
