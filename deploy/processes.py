"""A process on a folder, as servers and parts of Latebind are run here: in a session of its own, found again by a later program.

`process.json` in the folder says which process works on it and on which ports. A process is signalled only when its id *and* its start
time agree, so that a number that was given to another program meanwhile is never hit.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

STOP_S = 30.0
LOG_TAIL = 3000


class Daemon:
    """What runs on a folder, if anything; `ports` by name are kept from one start to the next."""

    def __init__(self, folder: Path, log_name: str) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / log_name
        self.ports: Mapping[str, int] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._file = self.folder / "process.json"
        self.recall_ports()

    def recall_ports(self) -> None:
        """Take the ports of the last start, which another program may have made."""
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
            self.ports = json.loads(self._file.read_text())["ports"]

    def choose_ports(self, names: Sequence[str]) -> None:
        """Take free ports, the old ones when they still are. Written down with the start."""
        if self.ports.keys() != set(names) or not all(is_free(port) for port in self.ports.values()):
            self.ports = dict(zip(names, free_ports(len(names)), strict=True))

    def launch(self, command: Sequence[str], environment: Mapping[str, str], *, stdin: int | IO[Any] = subprocess.DEVNULL) -> None:
        """Start the command in the folder; its output is added to the log."""
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command, cwd=self.folder, env=dict(environment), stdin=stdin, stdout=log, stderr=log, start_new_session=True
            )
        record = {"pid": self._child.pid, "started": started(self._child.pid), "ports": self.ports}
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(record) + "\n")
        partial.replace(self._file)

    @property
    def pid(self) -> int | None:
        """Id of the process that works on this folder, or None."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
            record = json.loads(self._file.read_text())
            if started(record["pid"]) == record["started"]:
                return int(record["pid"])
        return None

    def end(self, number: signal.Signals) -> int | None:
        """Signal it and wait until it is gone; SIGKILL goes to its descendants too, and so it does after `STOP_S`.

        Returns its exit code when this program started it.
        """
        child, pid = self._child, self.pid
        if pid is None:
            return None
        deadline = time.monotonic() + STOP_S
        if number == signal.SIGKILL:
            family = kill_family(pid)
        else:
            family = {pid: started(pid)}
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while self.pid is not None or any(since is not None and started(one) == since for one, since in family.items()):
            if time.monotonic() > deadline:
                family = {**family, **kill_family(pid)}
                deadline += STOP_S
            time.sleep(0.02)
        return None if child is None else child.returncode

    def log_tail(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(errors="replace")[-LOG_TAIL:] if self.log.exists() else "(nothing)"


class Progress:
    """One line per thing that happens, with the seconds since the start; several threads tell at once."""

    def __init__(self, out: IO[str]) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._out = out

    def tell(self, name: str, text: str) -> None:
        """Print a line."""
        with self._lock:
            print(f"  {time.monotonic() - self._began:6.1f} s  {name:<11} {text}", file=self._out, flush=True)


def started(pid: int) -> int | None:
    """Return when a process started, in the kernel's ticks since boot, or None when it is gone (proc(5), field 22 of stat).

    A first thread that has ended shows as a zombie while others still run, or still hold the ports: that is not gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ended = fields[0] == "Z" and len([*Path(f"/proc/{pid}/task").iterdir()]) == 1
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if ended else int(fields[19])


def kill_family(pid: int) -> Mapping[int, int | None]:
    """SIGKILL to a process and its descendants; returns when each started.

    Not by process group: PostgreSQL's children have sessions of their own, and while one lives its data cannot be opened again.
    """
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    family, found = {pid: started(pid)}, [pid]
    while found:
        for child in children.get(found.pop(), ()):
            family[child] = started(child)
            found.append(child)
    for one in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return family


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; other threads and programs wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, and that the kernel gives to no outgoing connection: they are still free at the next start."""
    reserved = reserve_ports(count)
    for one in reserved:
        one.close()
    return [one.port for one in reserved]


def reserve_ports(count: int) -> list[Reserved]:
    """Take ports that nobody else takes while these are open; a server that sets SO_REUSEADDR may listen on them all the same."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    reserved: list[Reserved] = []
    for port in random.sample(range(10_000, max(lowest, 20_000)), 5_000):
        if len(reserved) == count:
            break
        with contextlib.suppress(OSError):
            reserved.append(Reserved(port))
    return reserved


class Reserved:
    """A port that is bound and not listened on."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.socket()
        try:
            # Without SO_REUSEADDR first: with it the port of another one's reservation would look free.
            self._socket.bind(("127.0.0.1", port))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Give the port up."""
        self._socket.close()


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
