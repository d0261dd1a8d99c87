"""`latebindd doctor`: holds a configuration against its servers and says in words what is wrong and what to do.

It asks the adapters of this configuration to examine themselves, and looks at what lies between them: settings, secrets, upstreams,
addresses. It changes nothing that the first start would not make; it repairs nothing and prints no secret.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx2
from dotenv import dotenv_values
from pydantic import ValidationError

from gateway.openapi import fetch_document
from gateway.settings import GatewaySettings
from gateway.upstreams import HttpUpstream, ask
from kit.blobs import open_blobs
from kit.checks import Finding, Findings, fault, note, ok
from kit.clock import Clock
from kit.db import Database, open_database
from kit.db.migrate import revisions
from kit.errors import Problem, Unauthorized
from kit.eventlog import open_eventlog
from kit.identity import PrincipalSeal
from kit.logs import redact
from kit.olap import open_olap
from kit.ports import PortSettings, Secrets
from kit.settings import Settings
from kit.signing import MasterKeyError, load_master_key
from kit.tracing import traces_endpoint
from services.deployer.settings import DeployerSettings
from services.packager.settings import PackagerSettings
from services.registry.settings import RegistrySettings
from services.telemetry.columnstore import SCHEMA
from services.telemetry.settings import TelemetrySettings
from services.topics import TOPICS

GATEWAY = "gateway"
#: Keys in the secrets folder; every process of one installation has the same.
PURPOSES = ("gateway", "links", "api-keys", "device-tokens", "package", "assignment")
_PARTS: tuple[type[Settings], ...] = (GatewaySettings, RegistrySettings, PackagerSettings, DeployerSettings, TelemetrySettings)
_PORT_S = 30.0
_HTTP_S = 3.0

Port = TypeVar("Port")
_Examination = tuple[str, Callable[[], Awaitable[list[Finding]]]]


async def examine(
    settings: PortSettings, parts: Sequence[str], addresses: Sequence[tuple[str, int]], clock: Clock, *, traces_url: str = ""
) -> Findings:
    """Look at everything that these parts (services, `gateway`) need. `addresses` is where this process would listen."""
    for finding in examine_settings(type(settings)):
        yield finding
    for finding in examine_secrets(settings.secrets):
        yield finding
    services = [part for part in parts if part != GATEWAY]
    with _data_folder(settings.data_dir) as busy:
        if busy:
            yield note("data folder", f"process {busy} works on {settings.data_dir}", "ask its /readyz, or stop it to examine its files")
        for url, examination in _ports(settings, services, clock):
            if not busy or str(settings.data_dir.absolute()) not in url:
                for finding in await examination():
                    yield finding
    if GATEWAY in parts:
        async for finding in examine_upstreams(settings.secrets):
            yield finding
    if traces_url:
        yield await examine_traces(traces_url)
    for host, port in addresses:
        yield await examine_address(host, port)


def settings_faults(error: ValidationError) -> list[Finding]:
    """Return what is wrong with settings, one finding each, without their values."""
    prefix = "LATEBIND_"
    for part in _PARTS:
        if part.__name__ == error.title:
            prefix = str(part.model_config["env_prefix"])
    return [
        fault(
            "settings", f"{prefix}{'_'.join(str(step) for step in one['loc'])}".upper() + f": {one['msg']}", "docs/settings.md lists them"
        )
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]


def examine_settings(process: type[Settings]) -> Iterator[Finding]:
    """Read every part's settings, and look for names that no part knows: a typing mistake is otherwise silent."""
    known: set[str] = set()
    faults: list[Finding] = []
    for part in (process, *_PARTS):
        known |= {f"{part.model_config['env_prefix']}{field}".upper() for field in part.model_fields}
        try:
            part()
        except ValidationError as error:
            faults += settings_faults(error)
    given = {name.upper() for name in (*os.environ, *dotenv_values(".env")) if name.upper().startswith("LATEBIND_")}
    # What tests and the SDK read is not ours to judge.
    unknown = sorted(name for name in given - known if not name.startswith("LATEBIND_TEST_"))
    yield from faults
    for name in unknown:
        yield note("settings", f"no part of the server reads {name}", "correct its name: docs/settings.md lists them")
    if not faults:
        yield ok("settings", "can be read")


def examine_secrets(secrets: Secrets) -> Iterator[Finding]:
    """Look at the key files. The fingerprints tell whether two processes have the same keys, and nothing about the keys."""
    folder = secrets.folder
    if not folder.exists():
        yield note("secrets", f"{folder} is not there; the first start makes it", "several processes share one folder: make it once")
        return
    if folder.stat().st_mode & 0o077:
        yield fault("secrets", f"others may look into {folder}", f"chmod 700 {folder}")
    for purpose in PURPOSES:
        path = folder / f"{purpose}.key"
        if not path.exists():
            yield note(f"secret {purpose}", "is not there; the first use makes it", "several processes share one folder: copy it to all")
            continue
        try:
            key = load_master_key(path)
        except MasterKeyError as wrong:
            yield fault(
                f"secret {purpose}", str(wrong), "chmod 600, or restore the file from a backup: a new key invalidates what the old one made"
            )
        else:
            fingerprint = hashlib.sha256(b"latebind key fingerprint\0" + key).hexdigest()[:12]
            yield ok(f"secret {purpose}", f"fingerprint {fingerprint}: equal in every process")


@contextmanager
def _data_folder(folder: Path) -> Iterator[str]:
    """Hold the folder's lock if there is one, so that no server starts on it meanwhile. Yields the id of the process that has it, or ""."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield ""
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
        else:
            yield ""
    finally:
        os.close(descriptor)


def _ports(settings: PortSettings, services: Sequence[str], clock: Clock) -> Iterator[_Examination]:
    """Yield the URL of each port that the services use, and what examines it."""

    def at(name: str, url: str, opened: AbstractAsyncContextManager[Port], look: Callable[[Port], Findings]) -> _Examination:
        return url, lambda: _examined(name, opened, look)

    for service in services:
        url = settings.database_of(service)
        yield at(f"database {service}", url, open_database(url, clock), partial(_examine_database, service=service))
    yield at("blob store", settings.blobs, open_blobs(settings.blobs, link_secret=b"doctor"), lambda blobs: blobs.examine())
    if services:
        yield at("event log", settings.eventlog, open_eventlog(settings.eventlog), lambda log: log.examine(TOPICS))
    if "telemetry" in services:
        yield at("column store", settings.olap, open_olap(settings.olap), lambda store: store.examine(SCHEMA))


async def _examine_database(database: Database, *, service: str) -> Findings:
    async for finding in database.dialect.examine(database):
        yield finding
        if finding.check == "server" and finding.state == "fault":
            return
    has, newest = await revisions(database, f"services.{service}")
    if has == newest:
        yield ok("revision", f"{newest}, the newest")
    elif has is not None and has > newest:
        yield fault("revision", f"{has} was made by a newer release; this one knows {newest}", "install the newer release")
    elif database.dialect.starts_migrate:
        said = "has no tables yet" if has is None else f"{has}, behind {newest}"
        yield note("revision", said, "the next start makes it new" if has is None else "the next start upgrades it: back up before")
    elif has is None:
        advice = f"run `latebindd migrate {service}`; where it has run, database or schema_prefix of LATEBIND_DATABASE_URL is another one"
        yield fault("revision", "has no tables: the service answers 503 NOT_MIGRATED", advice)
    else:
        yield fault("revision", f"{has}, behind {newest}: the service is not ready", f"back up, then run `latebindd migrate {service}`")


async def _examined(name: str, opened: AbstractAsyncContextManager[Port], look: Callable[[Port], Findings]) -> list[Finding]:
    found: list[Finding] = []
    try:
        async with asyncio.timeout(_PORT_S), opened as port:
            async for finding in look(port):
                found.append(replace(finding, check=f"{name}: {finding.check}"))
    except ModuleNotFoundError as missing:
        found.append(fault(name, f"the driver {missing.name} is not installed", "install the extra `cluster` of latebind-server"))
    except ValueError as wrong:
        found.append(fault(name, str(wrong), "correct its URL: docs/settings.md"))
    except TimeoutError:
        found.append(fault(name, f"did not answer all questions within {_PORT_S:.0f} s", "look at the server's load and at the network"))
    except Problem as problem:
        found.append(fault(name, problem.detail, "look into the server's log"))
    except Exception as other:  # a store that is damaged raises what its library likes to
        words = redact((str(other).splitlines() or [""])[0])
        found.append(
            fault(name, f"cannot be used ({type(other).__name__}: {words})", "it may be damaged: restore a backup (docs/operating.md)")
        )
    return found


async def examine_upstreams(secrets: Secrets) -> AsyncIterator[Finding]:
    """Ask each service that the gateway's settings name: it answers, is ready, knows our seal, and is of our release."""
    try:
        settings = GatewaySettings()
    except ValidationError:
        return  # said before
    urls: Mapping[str, str] = {name.removesuffix("_url"): value for name, value in settings.model_dump().items() if name.endswith("_url")}
    for service, url in ((service, url.strip()) for service, listed in urls.items() for url in listed.split(",") if url.strip()):
        upstream = HttpUpstream(url)
        try:
            async with asyncio.timeout(_PORT_S):
                finding = await _examine_upstream(service, upstream, PrincipalSeal(secrets.key("gateway")))
        except TimeoutError:
            finding = fault("", f"did not answer within {_PORT_S:.0f} s", "look at its load and at the network")
        finally:
            await upstream.close()
        yield replace(finding, check=f"upstream {service}")


async def _examine_upstream(service: str, upstream: HttpUpstream, seal: PrincipalSeal) -> Finding:
    try:
        status, answer = await ask(upstream, seal, "GET", "/internal/openapi.json")
        if status != 200:
            return _refusal(service, status)
        await fetch_document(service, upstream, seal)
        status, answer = await ask(upstream, seal, "GET", "/readyz")
    except Problem as problem:
        return fault("", problem.detail, f"check LATEBIND_GATEWAY_{service.upper()}_URL, and that the service runs")
    except json.JSONDecodeError:
        return fault("", "is no service of Latebind", f"check LATEBIND_GATEWAY_{service.upper()}_URL")
    except Exception as other:
        return fault("", f"is of another release than this gateway ({type(other).__name__})", "install one release everywhere")
    troubles = "; ".join(
        f"{name}: {check['detail']}" for name, check in (answer or {}).get("checks", {}).items() if check["status"] == "down"
    )
    if status == 200:
        return (
            note("", f"answers, degraded: {troubles}", "run `latebindd doctor` where it runs")
            if troubles
            else ok("", "answers and is ready")
        )
    return fault("", f"is not ready ({troubles or 'starting or draining'})", "run `latebindd doctor` where it runs")


def _refusal(service: str, status: int) -> Finding:
    if status == Unauthorized.status:
        return fault("", "does not believe this gateway: its secret `gateway` differs", "give all processes the same secrets folder")
    return fault("", f"answers {status} where a service tells its API", f"check LATEBIND_GATEWAY_{service.upper()}_URL")


async def examine_traces(url: str) -> Finding:
    """Send a receiver of traces an empty message, which is a valid one."""
    try:
        async with httpx2.AsyncClient(timeout=_HTTP_S) as client:
            answer = await client.post(traces_endpoint(url), content=b"", headers={"content-type": "application/x-protobuf"})
    except ValueError as wrong:
        return fault("traces", str(wrong), "correct LATEBIND_TRACES_URL")
    except httpx2.HTTPError as error:
        return fault("traces", f"no answer ({type(error).__name__})", "check LATEBIND_TRACES_URL; spans are lost meanwhile")
    if answer.is_success:
        return ok("traces", "the receiver takes them")
    return fault(
        "traces", f"the receiver answers {answer.status_code}", "LATEBIND_TRACES_URL is an OTLP/HTTP receiver, http://collector:4318"
    )


async def examine_address(host: str, port: int) -> Finding:
    """Say whether this process could listen there. A Latebind that answers there is fine."""
    check = f"address {host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except OSError as error:
            reason = error
        else:
            return ok(check, "is free")
    if reason.errno != errno.EADDRINUSE:
        return fault(check, f"cannot be listened on ({reason.strerror})", "choose another with LATEBIND_HOST and LATEBIND_PORT")
    at = f"[{host}]" if ":" in host else host
    try:
        async with httpx2.AsyncClient(timeout=_HTTP_S, trust_env=False) as client:
            answer = await client.get(f"http://{at}:{port}/livez")
        ours = answer.status_code == 200 and answer.json() == {"status": "ok"}
    except (httpx2.HTTPError, ValueError):
        ours = False
    if ours:
        return ok(check, "a Latebind process answers there")
    return fault(check, "another program listens there", "choose another with LATEBIND_HOST, LATEBIND_PORT, LATEBIND_INTERNAL_PORT")
