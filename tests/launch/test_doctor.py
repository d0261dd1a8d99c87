"""`latebindd doctor` on embedded stores: what is well is said, what is broken is a fault with a way out."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from kit.checks import Finding, State, clocks
from kit.clock import SystemClock
from kit.eventlog.kafka_checks import examine_topics
from kit.signing import load_master_key
from services.__main__ import main
from services.doctor import GATEWAY, examine
from services.launch import SERVICES, LaunchSettings, launched
from tests.otlp import receiving
from tests.serving import serving


async def findings(
    settings: LaunchSettings, parts: Sequence[str] = (GATEWAY, *SERVICES), addresses: Sequence[tuple[str, int]] = ()
) -> list[Finding]:
    return [finding async for finding in examine(settings, parts, addresses, SystemClock())]


def faults(found: Sequence[Finding]) -> dict[str, str]:
    return {finding.check: f"{finding.detail} -> {finding.advice}" for finding in found if finding.state is State.FAULT}


@pytest.fixture
def settings(tmp_path: Path) -> LaunchSettings:
    return LaunchSettings(data_dir=tmp_path / "data", port=0, internal_port=0)


async def test_a_folder_that_was_used_is_well_and_one_in_use_is_left_alone(settings: LaunchSettings) -> None:
    async with launched(settings) as started:
        address = started.url.rpartition("/")[2].split(":")
        busy = await findings(settings, addresses=[(address[0], int(address[1]))])
        assert not faults(busy)
        assert "works on" in next(one.detail for one in busy if one.check == "data folder")
        assert not [one for one in busy if one.check.startswith("database")]
        assert busy[-1].detail == "a Latebind process answers there"
    found = {one.check: one for one in await findings(settings)}
    assert not faults(list(found.values()))
    assert {one.state for name, one in found.items() if name.endswith("revision")} == {State.OK}
    assert found["blob store: delete"].state is State.OK
    assert found["secret gateway"].detail.startswith("fingerprint ")
    key = (settings.data_dir / "secrets" / "gateway.key").read_bytes().hex()
    assert not [one for one in found.values() if any(key[at : at + 12] in one.detail for at in range(52))]


async def test_a_folder_that_is_new_is_well_too(settings: LaunchSettings) -> None:
    assert not faults(await findings(settings))


async def test_broken_files_are_faults(settings: LaunchSettings) -> None:
    secrets = settings.data_dir / "secrets"
    for purpose in ("gateway", "links", "package"):
        load_master_key(secrets / f"{purpose}.key")
    secrets.chmod(0o755)
    (secrets / "links.key").chmod(0o644)
    (secrets / "package.key").write_bytes(b"short")
    (settings.data_dir / "registry.db").write_bytes(b"this is no database" * 1000)
    (settings.data_dir / "events.db").write_bytes(b"nor is this" * 1000)
    (settings.data_dir / "blobs").write_text("a file, no folder")
    found = faults(await findings(settings, SERVICES))
    assert "chmod 700" in found["secrets"]
    assert "0600" in found["secret links"]
    assert "32 bytes" in found["secret package"]
    assert {"secrets", "secret links", "secret package", "database registry", "event log", "blob store"} <= set(found)
    assert not [name for name in found if name.startswith(("database packager", "column store"))]


async def test_a_database_of_a_newer_release_is_a_fault(settings: LaunchSettings) -> None:
    async with launched(settings, services=("deployer",), with_gateway=False):
        pass
    import sqlite3

    with sqlite3.connect(settings.data_dir / "deployer.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    found = faults(await findings(settings, ("deployer",)))
    assert list(found) == ["database deployer: revision"]
    assert "newer release" in found["database deployer: revision"]


async def test_settings_are_read_and_typing_mistakes_are_seen(settings: LaunchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEBIND_REGISTRY_MAX_UPLOAD_BYTES", "a lot")
    monkeypatch.setenv("LATEBIND_PROT", "8080")
    found = await findings(settings, ())
    assert list(faults(found)) == ["settings"]
    assert faults(found)["settings"].startswith("LATEBIND_REGISTRY_MAX_UPLOAD_BYTES")
    assert "a lot" not in str(found)
    assert "no part of the server reads LATEBIND_PROT" in [one.detail for one in found]


@pytest.mark.parametrize(
    ("name", "url", "check"),
    [
        ("blobs_url", "ftp://host/x", "blob store"),
        ("blobs_url", "s3://host-without-keys/bucket", "blob store"),
        ("eventlog_url", "kafka://", "event log"),
        ("eventlog_url", "kafka://host:9092?partitons=3", "event log"),
        ("olap_url", "clickhouse://host", "column store"),
        ("database_url", "mysql://user:pass-word@host/db", "database telemetry"),
    ],
)
async def test_a_url_that_is_none_is_a_fault_of_its_port_alone(settings: LaunchSettings, name: str, url: str, check: str) -> None:
    found = faults(await findings(settings.model_copy(update={name: url}), ("telemetry",)))
    assert list(found) == [check]
    assert "pass-word" not in str(found)


async def test_upstreams_that_are_down_or_know_another_seal_are_faults(
    settings: LaunchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    async with (
        launched(settings, services=("packager",), with_gateway=False) as packager,
        launched(other, services=("telemetry",), with_gateway=False) as telemetry,
        serving(_hello) as hello,
    ):
        monkeypatch.setenv("LATEBIND_GATEWAY_PACKAGER_URL", packager.url)
        monkeypatch.setenv("LATEBIND_GATEWAY_TELEMETRY_URL", telemetry.url)
        monkeypatch.setenv("LATEBIND_GATEWAY_DEPLOYER_URL", hello)
        monkeypatch.setenv("LATEBIND_GATEWAY_REGISTRY_URL", "http://127.0.0.1:9")
        found = await findings(settings, (GATEWAY,))
    said = faults(found)
    assert sorted(said) == ["upstream deployer", "upstream registry", "upstream telemetry"]
    assert "does not answer" in said["upstream registry"]
    assert "same secrets folder" in said["upstream telemetry"]
    assert "LATEBIND_GATEWAY_DEPLOYER_URL" in said["upstream deployer"]


async def _hello(_scope: object, _receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b"hello"})  # type: ignore[operator]


async def test_a_receiver_of_traces_is_asked(settings: LaunchSettings) -> None:
    async def of(url: str) -> list[Finding]:
        return [one async for one in examine(settings, (), [], SystemClock(), traces_url=url) if one.check == "traces"]

    with receiving() as received:
        assert (await of(received.url))[0].state is State.OK
        assert (await of(f"{received.url}/elsewhere"))[0].state is State.FAULT
    for wrong in ("http://127.0.0.1:9", "collector:4318"):
        assert (await of(wrong))[0].state is State.FAULT


async def test_an_address_of_another_program_is_a_fault(settings: LaunchSettings) -> None:
    async with serving(_hello) as other:
        port = int(other.rpartition(":")[2])
        found = await findings(settings, (), [("127.0.0.1", port), ("127.0.0.1", 0)])
    assert list(faults(found)) == [f"address 127.0.0.1:{port}"]


def test_the_command_says_it_in_lines_or_json_and_in_its_exit_code(
    settings: LaunchSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["doctor", "gateway", "--data-dir", str(settings.data_dir), "--internal-port", "0"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([*arguments, "--port", "0"]) == 0
        assert "ok     settings: can be read" in capsys.readouterr().out
        assert main([*arguments, "--json", "--port", str(taken.getsockname()[1])]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in found if one["state"] == "fault"] == ["fault"]
    monkeypatch.setenv("LATEBIND_PORT", "eighty")
    assert main(["doctor"]) == 1
    assert "LATEBIND_PORT" in capsys.readouterr().out


def test_clocks_that_differ_are_a_fault() -> None:
    now = SystemClock().now()
    assert clocks(now, now).state is State.OK
    late = clocks(now.replace(year=now.year - 1), now)
    assert late.state is State.FAULT
    assert "behind" in late.detail


def _topic(*partitions: tuple[int, list[int], list[int]]) -> dict[str, object]:
    found = [{"partition": number, "leader": leader, "replicas": r, "isr": i} for number, (leader, r, i) in enumerate(partitions)]
    return {"topic": "x", "partitions": found}


@pytest.mark.parametrize(
    ("topics", "brokers", "replication", "words"),
    [
        ([], 1, 3, "3 replicas are asked for, 1 brokers"),
        ([_topic((-1, [1], [1]), (1, [1], [1]))], 1, 1, "have no leader"),
        ([_topic((1, [1, 2], [1]), (1, [1, 2], [1, 2]))], 2, 2, "are behind or down"),
        ([_topic((1, [1], [1]), (1, [1], [1]))], 3, 3, "has 1 replicas, 3 are asked for"),
    ],
)
def test_topics_that_could_lose_events_are_faults(topics: list[dict[str, object]], brokers: int, replication: int, words: str) -> None:
    found = list(examine_topics(["x"], topics, brokers=brokers, partitions=2, replication=replication))
    assert words in " ".join(faults(found).values())
    assert "2 partitions" not in str(found)
