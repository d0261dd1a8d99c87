"""`latebindd backup` and `latebindd restore`: the databases and the event log of a cluster, as they were at one moment.

The moment is taken while no service writes, for some milliseconds: then a snapshot of PostgreSQL holds every fact, and the log up to its
ends of that moment every event that left an outbox before (docs/adr/0152). Blobs and column store are copied afterwards with their own
tools (docs/backup.md). An embedded installation is backed up by copying its folder instead.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kit.clock import SystemClock, rfc3339
from kit.db import Database
from kit.errors import Problem
from kit.eventlog import EventLog, Message, Record
from kit.logs import configure_logging
from kit.metrics import KIT_METRICS, PrometheusMetrics
from kit.ports import Part, Ports, PortSettings, open_ports

DUMP, LOG, MANIFEST = "postgres.dump", "log.jsonl.gz", "manifest.json"
_BATCH = 500

#: (topic, partition) -> first offset that is wanted, and the first one that is not.
Ranges = dict[tuple[str, int], tuple[int, int]]
CreatePart = Callable[[str, Ports], Part]


class BackupDamaged(Exception):
    """The folder holds no backup, or not what was written into it."""


def _parser(command: str) -> argparse.ArgumentParser:
    said = {
        "backup": "Writes databases and event log, as they are at one moment, into a new folder. The services go on meanwhile.",
        "restore": "Fills empty databases and an empty event log from such a folder. No service may run meanwhile.",
    }
    parser = argparse.ArgumentParser(f"latebindd {command}", description=f"{said[command]} docs/backup.md has the whole procedure.")
    parser.add_argument("folder", type=Path, help="the folder of the backup")
    parser.add_argument("--pg-bin", type=Path, help="folder of pg_dump and pg_restore (default: from the PATH)")
    return parser


def main(command: str, arguments: Sequence[str], services: Sequence[str], create: CreatePart, migrate: Callable[[], Awaitable[Any]]) -> int:
    """Run a command. Exit codes: 0 done, 1 cannot (the reason is said), 2 wrong arguments."""
    given = _parser(command).parse_args(arguments)
    configure_logging(level="warning")
    try:
        settings = PortSettings()
        if command == "backup":
            asyncio.run(backup(settings, services, create, given.folder, given.pg_bin))
        else:
            asyncio.run(restore(settings, services, migrate, given.folder, given.pg_bin))
    except Problem as problem:
        sys.stderr.write(f"latebindd {command}: {problem.detail}\n")
    except (ValidationError, ValueError, OSError, BackupDamaged) as error:
        sys.stderr.write(f"latebindd {command}: {error}\n")
    else:
        return 0
    return 1


async def backup(settings: PortSettings, services: Sequence[str], create: CreatePart, folder: Path, programs: Path | None) -> None:
    """Write a backup into a folder that does not exist; it appears whole or not at all."""
    partial = _new_folder(folder)
    clock = SystemClock()
    async with open_ports(settings, services, clock=clock, metrics=PrometheusMetrics(*KIT_METRICS)) as ports:
        places = _places(ports, create)
        log = next(iter(ports.values())).eventlog
        databases = [own.database for own in ports.values()]
        await _progress(log, places)  # connects, so that writers need not wait for that
        async with AsyncExitStack() as snapshot:
            began = time.monotonic()
            name, ranges = await _cut(snapshot, databases, log, places)
            at, paused_s = rfc3339(clock.now()), time.monotonic() - began
            _tell(f"the moment is {at}; writers waited {paused_s:.2f} s")
            await databases[0].dialect.dump(name, [one.dialect for one in databases], partial / DUMP, programs)
        _tell(f"databases: {(partial / DUMP).stat().st_size} bytes")
        records = await _export(log, ranges, partial / LOG)
        _tell(f"event log: {records} records that not every reader has handled")
    manifest = {"format": 1, "at": at, "records": records, "sha256": {part: _sha256(partial / part) for part in (DUMP, LOG)}}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    partial.rename(folder)


async def restore(
    settings: PortSettings, services: Sequence[str], migrate: Callable[[], Awaitable[Any]], folder: Path, programs: Path | None
) -> None:
    """Restore databases, then the log. Raises `BackupDamaged` before anything is changed."""
    manifest = _checked(folder)
    async with open_ports(settings, services, clock=SystemClock(), metrics=PrometheusMetrics(*KIT_METRICS)) as ports:
        log = next(iter(ports.values())).eventlog
        databases = [own.database for own in ports.values()]
        await databases[0].dialect.load([one.dialect for one in databases], folder / DUMP, programs)
        _tell(f"databases are as of {manifest['at']}")
        await migrate()  # makes topics with their partitions, and the tables of the column store
        records = await _import(log, folder / LOG)
        _tell(f"event log: {records} records")


def _new_folder(folder: Path) -> Path:
    """Return where to write before it is whole. Raises `ValueError` when the folder is there."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: a backup goes into a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    return partial


def _places(ports: Mapping[str, Ports], create: CreatePart) -> set[tuple[str, str]]:
    """Return every (group, topic) that some worker reads."""
    parts = [create(service, own) for service, own in ports.items()]
    return {place for part in parts for worker in (*part.beside_api, *part.background) for place in worker.reads}


async def _cut(stack: AsyncExitStack, databases: Sequence[Database], log: EventLog, places: set[tuple[str, str]]) -> tuple[str, Ranges]:
    """Take the moment: hold every service's turn to write, name a snapshot that lives with `stack`, and note how far the log goes."""
    async with AsyncExitStack() as turns:
        for database in databases:
            await turns.enter_async_context(database.begin())
        reader = await stack.enter_async_context(databases[0].read())
        name = str(await reader.scalar(databases[0].dialect.name_snapshot()))
        ranges = await _progress(log, places)
    return name, ranges


async def _progress(log: EventLog, places: set[tuple[str, str]]) -> Ranges:
    """Return per partition where the slowest of its readers is, and the end."""
    ranges: Ranges = {}
    ordered = sorted(places)
    for (_, topic), found in zip(ordered, await asyncio.gather(*(log.progress(*place) for place in ordered)), strict=True):
        for partition, (done, end) in found.items():
            first, last = ranges.get((topic, partition), (done, end))
            ranges[topic, partition] = (min(first, done), max(last, end))
    return ranges


async def _export(log: EventLog, ranges: Ranges, path: Path) -> int:
    count = 0
    with gzip.open(path, "wt", compresslevel=1) as file:
        for topic in sorted({topic for topic, _ in ranges}):
            async for records in log.read(topic):
                for record in records:
                    first, end = ranges.get((topic, record.partition), (0, 0))
                    if first <= record.offset < end:
                        file.write(json.dumps(_line(record)) + "\n")
                        count += 1
    return count


def _line(record: Record) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "key": record.key,
        "value": base64.b64encode(record.value).decode(),
        "headers": dict(record.headers),
    }


async def _import(log: EventLog, path: Path) -> int:
    """Append in the order of the file, which keeps the order of each key."""
    count = 0
    topic, waiting = "", list[Message]()
    with gzip.open(path, "rt") as file:
        for line in file:
            one = json.loads(line)
            if waiting and (one["topic"] != topic or len(waiting) == _BATCH):
                await log.append(topic, waiting)
                waiting = []
            topic = one["topic"]
            waiting.append(Message(one["key"], base64.b64decode(one["value"]), one["headers"]))
            count += 1
    if waiting:
        await log.append(topic, waiting)
    return count


def _checked(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        wrong = [part for part, digest in manifest["sha256"].items() if _sha256(folder / part) != digest]
    except (OSError, ValueError, KeyError) as error:
        raise BackupDamaged(f"{folder} holds no whole backup ({error})") from error
    if wrong or manifest.get("format") != 1:
        raise BackupDamaged(f"{folder} was changed since it was written, or is of another release: {', '.join(wrong) or MANIFEST}")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
