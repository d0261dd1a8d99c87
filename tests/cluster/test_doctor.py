"""`latebindd doctor` against real servers, well and really broken ones."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text

from kit.checks import Finding, State
from kit.clock import SystemClock
from kit.db import open_database
from services.doctor import examine
from services.launch import SERVICES, LaunchSettings, migrate_all
from tests import real_servers

pytestmark = pytest.mark.cluster


async def findings(settings: LaunchSettings) -> list[Finding]:
    return [finding async for finding in examine(settings, SERVICES, [], SystemClock())]


def faults(found: list[Finding]) -> dict[str, str]:
    return {finding.check: f"{finding.detail} -> {finding.advice}" for finding in found if finding.state is State.FAULT}


@pytest.fixture(params=["seaweedfs", "minio"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> LaunchSettings:
    return LaunchSettings(
        data_dir=tmp_path / "data",
        database_url=real_servers.postgres(),
        blobs_url=real_servers.s3(request.param),
        eventlog_url=real_servers.kafka(),
        olap_url=real_servers.clickhouse(),
    )


#: What is not there before the first use, and is there after `latebindd migrate`; the bucket is made by the doctor itself.
MADE = {
    "blob store: bucket": "was not there and is made now",
    "event log: topics": "13 of 13 are missing",
    "column store: schema": "no database",
}


async def test_servers_that_are_well_lack_nothing_but_what_migrate_makes(settings: LaunchSettings) -> None:
    before = await findings(settings)
    said = faults(before)
    assert said.keys() == {f"database {service}: revision" for service in SERVICES}
    assert all(f"`latebindd migrate {service}`" in said[f"database {service}: revision"] for service in SERVICES)
    notes = {one.check: one for one in before if one.state is State.NOTE}
    for check, words in MADE.items():
        assert words in notes[check].detail
        assert "another" in notes[check].advice, "the name may be mistyped"
    await migrate_all(settings, SERVICES)
    after = {one.check: one for one in await findings(settings)}
    assert not faults(list(after.values()))
    assert {after[check].state for check in MADE} == {State.OK}
    assert after["database deployer: fences"].state is State.OK
    assert after["blob store: privacy"].state is State.OK
    assert {one.state for name, one in after.items() if name.endswith(("revision", "clock"))} == {State.OK}


def with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))


async def test_everything_wrong_is_said_without_a_secret(tmp_path: Path) -> None:
    admin = real_servers.address("POSTGRES_ADMIN_URL")
    found = await findings(
        LaunchSettings(
            data_dir=tmp_path / "data",
            database_url=admin,
            blobs_url=with_login(real_servers.s3("seaweedfs"), "latebind", "a-wrong-secret"),
            eventlog_url="kafka://127.0.0.1:9",
            olap_url=with_login(real_servers.clickhouse(), "nobody", "a-wrong-password"),
        )
    )
    said = faults(found)
    assert "row-level security does not bind it" in said["database registry: role"]
    assert "secret key is wrong" in said["blob store: bucket"]
    assert "LATEBIND_EVENTLOG_URL" in said["event log: brokers"]
    assert "user or password" in said["column store: server"]
    assert "a-wrong" not in str(found)


async def test_servers_that_are_not_there_are_said_per_port(tmp_path: Path) -> None:
    said = faults(
        await findings(
            LaunchSettings(
                data_dir=tmp_path / "data",
                database_url="postgresql://one:two@127.0.0.1:9/latebind",
                blobs_url="s3+http://one:two@127.0.0.1:9/latebind",
                eventlog_url="kafka://127.0.0.1:9",
                olap_url="clickhouse://one:two@127.0.0.1:9/latebind",
            )
        )
    )
    assert sorted(said) == [
        "blob store: bucket",
        "column store: server",
        *(f"database {service}: server" for service in sorted(SERVICES)),
        "event log: brokers",
    ]


async def test_names_that_are_mistyped_after_the_first_start_are_seen(settings: LaunchSettings) -> None:
    """Everything would work with them, on stores that are empty."""
    await migrate_all(settings, SERVICES)
    assert not faults(await findings(settings))
    other = real_servers.namespace()
    mistyped = {
        "blobs_url": urlsplit(settings.blobs_url)._replace(path=f"/{other}").geturl(),
        "eventlog_url": settings.eventlog_url.replace("prefix=", f"prefix={other}"),
        "olap_url": urlsplit(settings.olap_url)._replace(path=f"/{other}").geturl(),
        "database_url": settings.database_url.replace("schema_prefix=", f"schema_prefix={other}_"),
    }
    found = {one.check: one for one in await findings(settings.model_copy(update=mistyped))}
    assert faults(list(found.values())).keys() == {f"database {service}: revision" for service in SERVICES}
    for check in MADE:
        assert found[check].state is State.NOTE
        assert "another" in found[check].advice


async def test_a_database_of_an_older_release_is_a_fault(settings: LaunchSettings) -> None:
    await migrate_all(settings, SERVICES)
    async with open_database(settings.database_of("deployer"), SystemClock()) as database, database.begin() as tx:
        await tx.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    said = faults(await findings(settings))
    assert list(said) == ["database deployer: revision"]
    assert "back up, then run `latebindd migrate deployer`" in said["database deployer: revision"]


async def test_a_role_that_does_not_exist_is_said(settings: LaunchSettings) -> None:
    server = urlsplit(settings.database_url)
    nobody = server._replace(netloc=f"nobody_x:a-wrong-password@{server.hostname}:{server.port}").geturl()
    said = faults(await findings(settings.model_copy(update={"database_url": nobody})))
    assert said.keys() == {f"database {service}: server" for service in SERVICES}
    assert "no such role" in said["database registry: server"]


async def test_a_database_that_does_not_exist_and_links_that_lead_nowhere_are_faults(settings: LaunchSettings) -> None:
    database = urlsplit(settings.database_url)._replace(path="/no_such_database").geturl()
    blobs = real_servers.with_query(settings.blobs_url, public_url="http://127.0.0.1:9")
    said = faults(await findings(settings.model_copy(update={"database_url": database, "blobs_url": blobs})))
    assert sorted(said) == ["blob store: links", *(f"database {service}: server" for service in sorted(SERVICES))]
    assert "CREATE DATABASE" in said["database packager: server"]
    assert "public_url" in said["blob store: links"]
