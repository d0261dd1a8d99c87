"""Before `latebindd migrate` has run, every process says so, to whoever asks and in readiness; afterwards it serves without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kit.eventlog import Message, open_eventlog
from kit.identity import PRINCIPAL_HEADER, Kind, Principal, PrincipalSeal, Scope, granted
from services.launch import SERVICES, LaunchSettings, Started, launched, migrate_all
from services.registry.accounts.domain import SecretKind, new_secret
from services.telemetry import events
from tests import real_servers

pytestmark = pytest.mark.cluster
ADMIN = Principal(Kind.USER, "user-1", "acme", granted(frozenset({Scope.ADMIN})))
#: A question to each service's tables.
QUESTIONS = {
    "registry": "/v1/models",
    "packager": "/v1/jobs/j_none",
    "deployer": "/v1/collections",
    "telemetry": "/v1/analytics/active-installs",
}


@pytest.fixture
def settings(tmp_path: Path) -> LaunchSettings:
    return LaunchSettings(
        data_dir=tmp_path / "data",
        database_url=real_servers.postgres(),
        blobs_url=real_servers.s3("seaweedfs"),
        eventlog_url=real_servers.kafka(),
        olap_url=real_servers.clickhouse(),
        port=0,
        internal_port=0,
    )


async def readiness(started: Started) -> tuple[int, Mapping[str, Any]]:
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{started.internal_url}/readyz", timeout=10)
        return answer.status_code, answer.json()["checks"]


async def ready(started: Started) -> None:
    async with asyncio.timeout(60):
        while (status := await readiness(started))[0] != 200:
            await asyncio.sleep(0.1)
    assert status[0] == 200


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_without_tables_says_what_to_run_and_serves_as_soon_as_they_are_there(
    service: str, settings: LaunchSettings
) -> None:
    seal = PrincipalSeal(settings.secrets.key("gateway"))
    headers = {PRINCIPAL_HEADER.decode(): seal.seal(ADMIN).decode()}
    command = f"`latebindd migrate {service}`"
    async with launched(settings, services=(service,), with_gateway=False) as started, httpx2.AsyncClient(base_url=started.url) as client:
        status, checks = await readiness(started)
        assert status == 503
        assert command in checks[f"database {service}"]["detail"]
        async with open_eventlog(settings.eventlog) as eventlog:  # analytics look into their tables while something is not written yet
            await eventlog.append(events.RECEIVED, [Message("acme/install", b"no batch")])
        answer = await client.get(QUESTIONS[service], headers=headers)
        assert (answer.status_code, answer.json().get("code")) == (503, "NOT_MIGRATED"), answer.text
        assert command in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) > 0
        await migrate_all(settings, SERVICES)
        await ready(started)
        answer = await client.get(QUESTIONS[service], headers=headers)
        assert answer.status_code in {200, 404}, answer.text


async def test_a_gateway_passes_on_why_it_cannot_know_anybody(settings: LaunchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with launched(settings, services=("registry",), with_gateway=False) as registry:
        for service in SERVICES:
            monkeypatch.setenv(f"LATEBIND_GATEWAY_{service.upper()}_URL", registry.url)
        elsewhere = settings.model_copy(update={"data_dir": settings.data_dir.parent / "gateway", "secrets_dir": settings.secrets.folder})
        async with launched(elsewhere, services=(), with_gateway=True) as gateway, httpx2.AsyncClient() as client:
            key = {"authorization": f"Bearer {new_secret(SecretKind.API).text}"}
            answer = await client.get(f"{gateway.url}/v1/models", headers=key)
            assert (answer.status_code, answer.json()["code"]) == (503, "NOT_MIGRATED"), answer.text
            assert "`latebindd migrate registry`" in answer.json()["detail"]
            await migrate_all(settings, SERVICES)
            answer = await client.get(f"{gateway.url}/v1/models", headers=key)
            assert answer.status_code == 401, answer.text
