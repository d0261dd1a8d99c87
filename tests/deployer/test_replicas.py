"""Several processes on the same tables agree: no device sees something older after something newer, whomever it asks."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from kit.clock import Clock, FakeClock, SystemClock
from kit.ports import PortSettings
from kit.workers import running
from services.deployer.app import create_part
from services.deployer.settings import DeployerSettings
from tests.deployer.conftest import World, context, manifest, open_world


def serve(version: int) -> dict[str, Any]:
    return {"model": "yolo", "version": version}


@asynccontextmanager
async def replica_of(world: World, clock: Clock | None = None, *, looks: bool = True) -> AsyncIterator[World]:
    """Another process that answers devices. Without `looks` it loads once, and afterwards looks only when it must."""
    clock = clock or world.clock
    ports = replace(world.ports, holder="other", clock=clock)
    other = World(create_part(DeployerSettings(ready_wait_s=0), ports), ports, clock)
    await other.freshness.look()
    async with AsyncExitStack() as stack:
        if looks:
            await stack.enter_async_context(running(other.part.beside_api, clock=clock))
        yield other


@pytest.fixture
async def world(ports_at: PortSettings) -> AsyncIterator[World]:
    """The first process, in real time: it looks all the time."""
    async with open_world(ports_at, SystemClock(), ready_wait_s=0) as world, running(world.part.beside_api):
        yield world


async def served(world: World, collection: str, device: dict[str, Any], **sent: Any) -> int:
    answer = await world.resolve(collection, device, **sent)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["revision"])


def counter_of(answer: Any) -> int:
    return int(json.loads(base64.b64decode(answer.json()["assignment"]["payload"]))["counter"])


async def yolo(world: World) -> str:
    await world.ready(manifest("yolo", 1))
    await world.ready(manifest("yolo", 2))
    return await world.publish({"rules": [], "default": serve(1)})


async def test_all_switch_at_the_same_moment_though_nobody_sends_an_etag(world: World, install_id: str) -> None:
    collection = await yolo(world)
    async with replica_of(world) as other:
        for revision in (2, 3):
            publishing = asyncio.create_task(world.publish({"rules": [], "default": serve(revision - 1)}, collection=collection))
            seen = []
            while not publishing.done():
                seen += [await served(one, collection, context(install_id)) for one in (world, other, other, world)]
            seen += [await served(one, collection, context(install_id)) for one in (other, world)]
            assert seen == sorted(seen)
            assert seen[0] == revision - 1, "the lead was over before anybody asked"
            assert seen[-2:] == [revision, revision]


async def test_who_publishes_gets_what_was_published_from_every_process(world: World, install_id: str) -> None:
    collection = await yolo(world)
    async with replica_of(world, looks=False) as other:
        await world.publish({"rules": [], "default": serve(2)}, collection=collection)
        assert await served(other, collection, context(install_id)) == 2


async def test_an_alias_that_moves_is_followed_by_all_at_once(world: World, install_id: str) -> None:
    collection = await yolo(world)
    await world.alias("yolo", "stable", 1)
    await world.publish({"rules": [], "default": {"model": "yolo", "alias": "stable"}}, collection=collection)
    async with replica_of(world) as other:
        moving = asyncio.create_task(world.alias("yolo", "stable", 2))
        versions: list[int] = []
        async with asyncio.timeout(20):
            while versions[-1:] != [2]:
                for one in (world, other):
                    versions.append((await one.resolve(collection, context(install_id))).json()["package"]["version"])
        await moving
        assert versions == sorted(versions)


async def test_counters_never_fall_from_one_process_to_another(world: World, install_id: str) -> None:
    collection = await yolo(world)
    async with replica_of(world) as other:
        counters = []
        for version in (2, 1, 2):
            await world.publish({"rules": [], "default": serve(version)}, collection=collection)
            counters += [counter_of(await one.resolve(collection, context(install_id))) for one in (world, other, world)]
    assert counters == sorted(counters)
    assert len(set(counters)) == 3


async def test_a_device_that_has_seen_more_than_the_tables_is_answered_and_keeps_its_counter(world: World, install_id: str) -> None:
    """The tables were restored from a backup: devices hold positions that no process can reach."""
    collection = await yolo(world)
    first = await world.resolve(collection, context(install_id))
    lost = counter_of(first) + 1_000_000
    etag = f'"{lost:013x}{first.headers["etag"][14:]}'
    kept = await world.resolve(collection, context(install_id), etag=etag)
    assert kept.status_code == 304
    assert kept.headers["etag"] == first.headers["etag"]
    again = await world.resolve(collection, context(install_id), counter=str(lost))
    assert counter_of(again) == lost
    assert again.json()["package"] == first.json()["package"]


@pytest.mark.parametrize("counter", ["", "-1", "x", "9" * 16, "9" * 40, "1_0"])
async def test_a_counter_that_is_none_changes_nothing(world: World, install_id: str, counter: str) -> None:
    collection = await yolo(world)
    plain = await world.resolve(collection, context(install_id))
    assert counter_of(await world.resolve(collection, context(install_id), counter=counter)) == counter_of(plain)


async def test_etags_of_the_release_before_are_read_as_none(world: World, install_id: str) -> None:
    collection = await yolo(world)
    first = await world.resolve(collection, context(install_id))
    old = f'"{"f" * 16}.{"0" * 16}.{first.json()["package"]["digest"][:16]}"'
    answer = await world.resolve(collection, context(install_id), etag=old)
    assert answer.status_code == 304
    assert answer.headers["etag"] == first.headers["etag"]


async def test_a_clock_that_is_behind_waits_for_the_edge_that_the_device_has_seen(ports_at: PortSettings, install_id: str) -> None:
    window = {"from": "2026-11-22T11:00:00Z", "until": "2026-11-22T12:00:00Z"}
    rules = {"rules": [{"id": "hour", "active": window, "serve": serve(2)}], "default": serve(1)}
    clock = FakeClock()
    async with open_world(ports_at, clock, ready_wait_s=0) as world:
        await world.ready(manifest("yolo", 1))
        await world.ready(manifest("yolo", 2))
        collection = await world.publish(rules)
        late = FakeClock(clock.now())
        async with replica_of(world, late, looks=False) as other:
            clock.advance(3600)
            late.advance(3599.75)
            opened = await world.resolve(collection, context(install_id))
            assert opened.json()["package"]["version"] == 2
            asking = asyncio.create_task(other.resolve(collection, context(install_id, locale="fr"), etag=opened.headers["etag"]))
            async with asyncio.timeout(10):
                while not late.sleepers:
                    await asyncio.sleep(0)
            late.advance(0.25)
            assert (await asking).status_code == 304
            assert (await other.resolve(collection, context(install_id))).json()["package"]["version"] == 2
