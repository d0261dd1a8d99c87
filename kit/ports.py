"""Opens what a process needs from outside itself, and closes it in reverse.

Which adapter serves a port is decided by the scheme of its URL; nothing else in the code asks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kit.blobs import BlobStore, open_blobs
from kit.clock import Clock
from kit.db import Database, open_database
from kit.db.lease import Lease
from kit.errors import Problem
from kit.eventlog import EventLog, open_eventlog
from kit.http import ASGIApp
from kit.identity import PrincipalSeal
from kit.metrics import Metrics
from kit.olap import ColumnStore, open_olap
from kit.settings import Settings
from kit.signing import load_master_key
from kit.workers import Worker


class PortSettings(Settings):
    """Where the data is. An empty URL means the embedded default below `data_dir`."""

    data_dir: Path = Path("data")
    database_url: str = ""
    blobs_url: str = ""
    eventlog_url: str = ""
    olap_url: str = ""
    secrets_dir: Path | None = None
    instance: str = ""

    def database_of(self, service: str) -> str:
        """Return the URL of one service's database: a SQLite file each, or one server with a schema each."""
        return f"{self.database_url}#{service}" if self.database_url else f"sqlite:{self.data_dir.absolute() / service}.db"

    @property
    def blobs(self) -> str:
        """URL of the blob store."""
        return self.blobs_url or f"file:{self.data_dir.absolute() / 'blobs'}"

    @property
    def eventlog(self) -> str:
        """URL of the event log."""
        return self.eventlog_url or f"local:{self.data_dir.absolute() / 'events.db'}"

    @property
    def olap(self) -> str:
        """URL of the column store."""
        return self.olap_url or f"chdb:{self.data_dir.absolute() / 'olap'}"

    @property
    def secrets(self) -> Secrets:
        """The folder of key files."""
        return Secrets(self.secrets_dir or self.data_dir / "secrets")

    @property
    def holder(self) -> str:
        """Name of this process in leases. One process per data folder keeps its name over restarts and need not wait for its lease."""
        if self.instance:
            return self.instance
        return f"{socket.gethostname()}/{os.getpid()}" if self.database_url else "embedded"


class Secrets:
    """32-byte keys in files of mode 0600, one per purpose, made at first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, purpose: str) -> bytes:
        """Return the key for a purpose: `gateway` (principal header), `links`, `api-keys`, `device-tokens`, `package`, `assignment`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return load_master_key(self.folder / f"{purpose}.key")


@dataclass(frozen=True, slots=True)
class Ports:
    """What one service is given. `database` is its own."""

    database: Database
    blobs: BlobStore
    eventlog: EventLog
    olap: ColumnStore
    clock: Clock
    metrics: Metrics
    seal: PrincipalSeal
    secrets: Secrets
    holder: str
    #: A folder of this process's own for what it can do without: copies, scratch.
    data_dir: Path = Path("data")
    #: Held by one process of the service at a time: the one that relays the outbox and does the periodic work.
    lease: Lease = field(init=False)

    def __post_init__(self) -> None:
        """Make what follows from the rest."""
        object.__setattr__(self, "lease", Lease(self.database, self.clock, name="background", holder=self.holder))


@dataclass(frozen=True, slots=True)
class Part:
    """A service that was put together: its application, and its work beside it.

    `beside_api` runs in every process that serves `app` (it keeps what `app` reads from memory); `background` runs once or more
    anywhere (`latebindd <service> --only workers`).

    `needs` names what the API can do nothing without: `database`, `event log`, `blob store`, `column store`; without the others it is
    degraded. `unready` returns what to answer while the service itself cannot.
    """

    app: ASGIApp
    beside_api: Sequence[Worker] = ()
    background: Sequence[Worker] = field(default=())
    needs: Collection[str] = ()
    unready: Callable[[], Problem | None] = lambda: None


@asynccontextmanager
async def open_ports(
    settings: PortSettings, services: Collection[str], *, clock: Clock, metrics: Metrics
) -> AsyncIterator[dict[str, Ports]]:
    """Open the ports and return them per service. The column store starts at its first statement and costs nothing elsewhere."""
    async with AsyncExitStack() as stack:
        secrets = settings.secrets
        seal = PrincipalSeal(secrets.key("gateway"))
        blobs = await stack.enter_async_context(open_blobs(settings.blobs, link_secret=secrets.key("links")))
        eventlog = await stack.enter_async_context(open_eventlog(settings.eventlog))
        olap = await stack.enter_async_context(open_olap(settings.olap))
        ports: dict[str, Ports] = {}
        for service in services:
            database = await stack.enter_async_context(open_database(settings.database_of(service), clock))
            ports[service] = Ports(database, blobs, eventlog, olap, clock, metrics, seal, secrets, settings.holder, settings.data_dir)
        yield ports
