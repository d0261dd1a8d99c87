"""All processes of a cluster below one folder: `migrate/`, `front/`, `gateway-0/`, …, and `secrets/`, which they share."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Self

from deploy.cluster import front
from deploy.cluster.process import PORTS, Process, migrate, told
from deploy.cluster.stores import Stores
from deploy.processes import Daemon, reserve_ports

#: The arguments of each part's processes.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "registry": ("registry",),
        "packager": ("packager",),
        "deployer": ("deployer",),
        "telemetry": ("telemetry", "--only", "api"),
        "writer": ("telemetry", "--only", "workers"),
        "gateway": ("gateway",),
    }
)
_UPSTREAMS = ("registry", "packager", "deployer", "telemetry")
_RECORD = "cluster.json"

Tell = Callable[[str, str], None]


def _tell_nobody(_name: str, _text: str) -> None:
    """Say nothing."""


class Cluster:
    """A cluster on a folder. `with Cluster(folder, stores) as cluster:` starts it and kills what is left at the end.

    `replicas` says how many processes a part has (two otherwise). `environment` is told to every process, `overrides` to those of one part
    or to one process: `{"deployer": {…}, "writer-1": {…}}`.
    """

    def __init__(
        self,
        folder: Path,
        stores: Stores,
        *,
        replicas: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        overrides: Mapping[str, Mapping[str, str]] | None = None,
        tell: Tell = _tell_nobody,
    ) -> None:
        self.folder = folder.absolute()
        self.stores = stores
        self._replicas = dict.fromkeys(PARTS, 2) | dict(replicas or {})
        self._environment = dict(environment or {})
        self._overrides = {name: dict(more) for name, more in (overrides or {}).items()}
        self._tell = tell
        self._front = Daemon(self.folder / "front", "front.log")
        self._processes = {part: [self._process(part, number) for number in range(count)] for part, count in self._replicas.items()}
        self._give_ports()

    @classmethod
    def at(cls, folder: Path, *, tell: Tell = _tell_nobody) -> Self:
        """Return the cluster that was started on the folder. Raises `FileNotFoundError`."""
        record = json.loads((folder / _RECORD).read_text())
        return cls(folder, Stores(**record.pop("stores")), **record, tell=tell)

    @property
    def url(self) -> str:
        """The address of the gateways."""
        return f"http://127.0.0.1:{self._front.ports['public']}"

    @property
    def operator_key(self) -> str:
        """The key that `latebindd migrate` made."""
        return (self.folder / "migrate" / "operator.key").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        """What every process is told; enough for `latebindd doctor` and `latebindd migrate`."""
        shared = {"LATEBIND_SECRETS_DIR": str(self.folder / "secrets"), "LATEBIND_DRAIN_S": "1", "LATEBIND_LOG_LEVEL": "warning"}
        return shared | self.stores.environment | self._environment

    def process(self, part: str, number: int = 0) -> Process:
        """Return a process of a part of `PARTS`."""
        return self._processes[part][number]

    def processes(self, *parts: str) -> Iterator[Process]:
        """All processes, or those of some parts."""
        for part in parts or PARTS:
            yield from self._processes[part]

    def start(self) -> Self:
        """Migrate, start what does not run, all at once, and wait until everything is ready. Raises `ProcessFailed`."""
        self.prepare()
        with ThreadPoolExecutor(sum(self._replicas.values())) as pool:
            list(pool.map(self._start, self.processes()))
        return self

    def prepare(self) -> None:
        """Migrate and open the address of the gateways, without starting a process. Raises `ProcessFailed`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remember()
        self._open_front()
        migrate(self.folder / "migrate", self.environment)
        self._tell("migrate", "done")

    def stop(self) -> None:
        """End every process cleanly: the gateways first, so that nobody is asked who has gone."""
        for parts in (("gateway",), tuple(part for part in PARTS if part != "gateway")):
            with ThreadPoolExecutor(sum(self._replicas[part] for part in parts)) as pool:
                list(pool.map(self._stop, self.processes(*parts)))
        self._front.end(signal.SIGTERM)

    def kill(self) -> None:
        """End every process at once."""
        for process in self.processes():
            process.kill()
        self._front.end(signal.SIGKILL)
        for port in self._reserved:
            port.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def _start(self, process: Process) -> None:
        runs = process.pid is not None
        process.start()
        self._tell(process.name, f"runs already: {process.url}" if runs else f"ready: {process.url}")

    def _stop(self, process: Process) -> None:
        if process.pid is not None:
            process.stop()
            self._tell(process.name, "stopped")

    def _process(self, part: str, number: int) -> Process:
        name = f"{part}-{number}"
        own = {"LATEBIND_INSTANCE": name} | self.environment | self._overrides.get(part, {}) | self._overrides.get(name, {})
        door = self._front.folder if part == "gateway" else None
        return Process(name, PARTS[part], self.folder / name, own, door=door)

    def _give_ports(self) -> None:
        """Ports of all processes are chosen before the first starts: the gateways must be told."""
        new = [one for one in (self._front, *self.processes()) if not one.ports]
        self._reserved = reserve_ports(len(new) * len(PORTS))
        numbers = iter(self._reserved)
        for one in new:
            one.ports = {name: next(numbers).port for name in PORTS}
        for gateway in self.processes("gateway"):
            gateway.ports = {**gateway.ports, "public": self._front.ports["public"]}
            for part in _UPSTREAMS:
                urls = ",".join(process.url for process in self.processes(part))
                gateway.environment.setdefault(f"LATEBIND_GATEWAY_{part.upper()}_URL", urls)

    def _open_front(self) -> None:
        if self._front.pid is None:
            self._front.folder.mkdir(parents=True, exist_ok=True)
            self._front.launch([sys.executable, "-I", front.__file__, str(self._front.ports["public"])], told({}))
        self._tell("front", f"holds {self.url}")

    def _remember(self) -> None:
        record = {
            "stores": asdict(self.stores),
            "replicas": self._replicas,
            "environment": self._environment,
            "overrides": self._overrides,
        }
        descriptor = os.open(self.folder / _RECORD, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # URLs hold passwords
        with os.fdopen(descriptor, "w") as file:
            json.dump(record, file, indent=1)
