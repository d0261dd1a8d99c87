"""What is remembered of polling devices between two writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from services.deployer.sightings import Sightings
from tests.deployer.conftest import World, context, manifest

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def test_the_newest_is_kept_and_memory_is_bounded() -> None:
    noted = Sightings(max_devices=2, max_contexts=1)
    noted.told("acme", "a", NOW, b"{}", None)
    noted.told("acme", "b", NOW, b"{}", b"DE")
    noted.seen("acme", "a", NOW + timedelta(seconds=1))
    noted.seen("acme", "c", NOW)
    noted.told("acme", "d", NOW, b"{}", None)
    taken = {one.install_id: (one.at, sent) for one, sent in noted.take()}
    assert taken == {"a": (NOW + timedelta(seconds=1), (b"{}", None)), "b": (NOW, None)}
    assert (noted.take_dropped(), noted.take_dropped(), len(noted)) == (2, 0, 0)


def test_what_could_not_be_written_comes_back_unless_it_is_older() -> None:
    noted = Sightings(max_devices=2)
    noted.seen("acme", "a", NOW)
    noted.told("acme", "b", NOW, b"{}", None)
    taken = noted.take()
    noted.seen("acme", "a", NOW + timedelta(seconds=5))
    noted.put_back(taken)
    assert {one.install_id: (one.at, sent) for one, sent in noted.take()} == {
        "a": (NOW + timedelta(seconds=5), None),
        "b": (NOW, (b"{}", None)),
    }


async def test_a_failed_write_keeps_them(world: World, install_id: str) -> None:
    await world.ready(manifest("yolo", 1))
    collection = await world.publish({"rules": [], "default": {"model": "yolo", "version": 1}})
    etag = (await world.resolve(collection, context(install_id))).headers["etag"]
    await world.settle()
    assert (await world.resolve(collection, context(install_id), etag=etag)).status_code == 304
    async with world.ports.database.begin() as tx:
        await tx.execute(text("ALTER TABLE devices RENAME TO elsewhere"))
    with pytest.raises(Exception, match=r"devices|latebindd migrate"):
        await world.fleet.write_sightings()
    async with world.ports.database.begin() as tx:
        await tx.execute(text("ALTER TABLE elsewhere RENAME TO devices"))
    assert len(world.fleet._sightings) == 1
    await world.fleet.write_sightings()
    assert len(world.fleet._sightings) == 0
