"""The snapshot on disk: a process whose database is down when it starts answers from it, or not at all when it is damaged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kit.clock import FakeClock
from kit.db import DatabaseUnavailable, open_database
from kit.eventlog import open_eventlog
from kit.identity import PrincipalSeal
from kit.metrics import PrometheusMetrics
from kit.ports import Ports, Secrets
from services.deployer.app import create_part
from services.deployer.settings import DeployerSettings
from services.deployer.snapshot_file import SnapshotRefused, read
from tests.deployer.conftest import World, context, manifest, open_world

FILE = "deployer-rules.snapshot"


def rules(version: int) -> dict[str, Any]:
    late = {"from": "2026-11-22T11:00:00Z", "until": None}
    needs = {"when": {"attr": "device.soc", "op": "eq", "value": "tensor-g4"}, "serve": {"model": "yolo", "version": version}}
    return {
        "rules": [{"id": "later", "active": late, "serve": {"model": "yolo", "alias": "stable"}}, {"id": "soc", **needs}],
        "default": {"model": "yolo", "version": 1, "variant": "onnx-fp32"},
    }


async def publish_and_save(folder: Path, install_id: str) -> tuple[str, str]:
    """Leave a folder as a process does; returns collection and the device's ETag."""
    async with open_world(folder, FakeClock(), ready_wait_s=0) as world:
        for version in (1, 2):
            requires = {"ram_mb": 512, "abi": ["arm64-v8a"], "accelerators": []}
            await world.ready(manifest("yolo", version, requires=requires, engine={"min_version": "1.19.0rc1"}))
        await world.alias("yolo", "stable", 1)
        collection = await world.publish(rules(2))
        answer = await world.resolve(collection, context(install_id))
        assert answer.json()["package"]["version"] == 2
        await world.freshness.save()
        await world.settle()
    return collection, str(answer.headers["etag"])


@contextmanager
def no_database(folder: Path) -> Iterator[None]:
    """Let nobody open the database: a folder lies where its file was."""
    database, aside = folder / "deployer.db", folder / "aside.db"
    database.rename(aside)
    database.mkdir()
    try:
        yield
    finally:
        database.rmdir()
        aside.rename(database)


@asynccontextmanager
async def started(folder: Path, clock: FakeClock) -> AsyncIterator[World]:
    """A process on the folder that has not loaded anything yet."""
    async with open_database(f"sqlite:{folder}/deployer.db", clock) as database, open_eventlog(f"local:{folder}/events.db") as eventlog:
        seal, secrets = PrincipalSeal(b"s" * 32), Secrets(folder / "secrets")
        ports = Ports(database, None, eventlog, None, clock, PrometheusMetrics(), seal, secrets, "test", folder)  # type: ignore[arg-type]
        yield World(create_part(DeployerSettings(ready_wait_s=0), ports), ports, clock)


def rules_age(world: World) -> float:
    lines = world.ports.metrics.render().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("latebind_deployer_rules_age_seconds "))


async def test_without_its_database_a_process_answers_from_the_file(tmp_path: Path, install_id: str) -> None:
    collection, etag = await publish_and_save(tmp_path, install_id)
    clock = FakeClock()
    async with started(tmp_path, clock) as world:
        with no_database(tmp_path):
            await world.freshness.look()
            assert world.part.unready() is None
            assert world.freshness.trouble
            assert rules_age(world) == 0
            clock.advance(7)
            await world.freshness.look()
            assert rules_age(world) == 7
            assert (await world.resolve(collection, context(install_id), etag=etag)).status_code == 304
            assert (await world.resolve(collection, context(install_id))).json()["package"]["version"] == 2
            other = await world.resolve(collection, context(install_id, device={"soc": "x", "abi": "arm64-v8a", "ram_mb": 256}))
            assert other.json()["packages"][0]["condition"] == "ram_mb"
            newer = f'"{int(etag[1:14], 16) + 1:013x}{etag[14:]}'
            behind = await world.resolve(collection, context(install_id, locale="fr"), etag=newer)
            assert (behind.status_code, behind.json()["code"]) == (503, "RULES_OUTDATED")
            assert behind.headers["retry-after"] == "1"
            clock.advance(3600)  # windows open without the database too
            assert (await world.resolve(collection, context(install_id))).json()["package"]["version"] == 1
        await world.freshness.look()
        assert world.freshness.trouble is None
        assert rules_age(world) == 0
        await world.publish(rules(1), collection=collection)
        assert (await world.resolve(collection, context(install_id))).json()["revision"] == 2


async def test_the_tables_win_over_the_file(tmp_path: Path, install_id: str) -> None:
    """Between the file and the start somebody published, and restored a backup."""
    collection, _ = await publish_and_save(tmp_path, install_id)
    old = (tmp_path / FILE).read_bytes()
    backup = (tmp_path / "deployer.db").read_bytes()
    async with open_world(tmp_path, FakeClock(), ready_wait_s=0) as world:
        await world.publish(rules(1), collection=collection)
        await world.freshness.save()
        assert (tmp_path / FILE).read_bytes() != old
        extra = await world.publish(rules(1))
        await world.freshness.save()
        assert len(read(tmp_path / FILE, world.ports.database.place)) == 2
    for rest in tmp_path.glob("deployer.db-*"):
        rest.unlink()
    (tmp_path / "deployer.db").write_bytes(backup)
    async with started(tmp_path, FakeClock()) as world:
        await world.freshness.look()
        assert (await world.resolve(collection, context(install_id))).json()["revision"] == 1
        assert (await world.resolve(extra, context(install_id))).status_code == 404


def _other_head(content: bytes, **changed: Any) -> bytes:
    head, _, body = content.partition(b"\n")
    return json.dumps(json.loads(head) | changed).encode() + b"\n" + body


DAMAGES = {
    "cut off": lambda content: content[:-20],
    "one bit": lambda content: content[:-30] + bytes([content[-30] ^ 1]) + content[-29:],
    "longer": lambda content: content + b"\0",
    "empty": lambda _content: b"",
    "garbage": lambda _content: b"\xff" * 500,
    "another program": lambda content: _other_head(content, program="other"),
    "another format": lambda content: _other_head(content, format=2),
    "another database": lambda content: _other_head(content, database="sqlite:/other.db"),
    "another number": lambda content: _other_head(content, collections=7),
    "no checksum": lambda content: _other_head(content, sha256=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_file_that_is_damaged_or_foreign_is_refused_whole(tmp_path: Path, install_id: str, damage: str) -> None:
    collection, etag = await publish_and_save(tmp_path, install_id)
    file = tmp_path / FILE
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    async with started(tmp_path, FakeClock()) as world:
        with no_database(tmp_path), capture_logs() as logs:
            with pytest.raises(DatabaseUnavailable):
                await world.freshness.look()
            with pytest.raises(SnapshotRefused):
                read(file, world.ports.database.place)
            assert world.part.unready()
            answer = await world.resolve(collection, context(install_id), etag=etag)
            assert (answer.status_code, answer.json()["code"]) == (503, "STARTING")
        said = [entry for entry in logs if entry["event"] == "the snapshot on disk is not used"]
        assert said
        assert said[0]["log_level"] == "error"
        assert said[0]["path"] == str(file)
        assert said[0]["reason"]
        await world.freshness.look()  # the database is back
        assert (await world.resolve(collection, context(install_id), etag=etag)).status_code == 304


async def test_a_disk_that_takes_nothing_changes_nothing(tmp_path: Path, install_id: str) -> None:
    collection, etag = await publish_and_save(tmp_path, install_id)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    async with started(tmp_path, FakeClock()) as world:
        await world.freshness.look()
        with capture_logs() as logs:
            await world.freshness.save()
            await world.freshness.save()
        assert len([entry for entry in logs if entry["event"] == "the snapshot on disk cannot be written"]) == 1
        assert (await world.resolve(collection, context(install_id), etag=etag)).status_code == 304
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(f".{FILE}")] == []
