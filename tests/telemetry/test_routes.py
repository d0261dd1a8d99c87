"""The analytics API: who may ask, what comes back, how fresh it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from kit.identity import PRINCIPAL_HEADER, Kind, Principal, Scope
from services.telemetry.app import create_part
from services.telemetry.settings import TelemetrySettings
from tests.conftest import user
from tests.telemetry.factories import OLD_PHONE, batch, envelope, failure, package, samples
from tests.telemetry.stores import Stores

PATHS = ("active-installs", "inferences", "latency", "adoption", "failures")
COMPARE = "compare?model=yolo&version=7&to=8"


class Client:
    """Asks as one principal."""

    def __init__(self, stores: Stores, http: httpx2.AsyncClient) -> None:
        self._stores, self._http = stores, http

    async def get(self, path: str, principal: Principal | None = None, **params: Any) -> httpx2.Response:
        header = {PRINCIPAL_HEADER.decode(): self._stores.seal.seal(principal or user("acme", Scope.READ)).decode()}
        return await self._http.get(f"/v1/analytics/{path}", params=params or None, headers=header)

    async def ok(self, path: str, **params: Any) -> Any:
        answer = await self.get(path, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
async def client(stores: Stores) -> AsyncIterator[Client]:
    part = create_part(TelemetrySettings(), stores.ports())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(part.app), base_url="http://telemetry") as http:
        yield Client(stores, http)


async def test_answers_carry_their_group_time_and_freshness(stores: Stores, client: Client) -> None:
    await stores.send(
        [
            envelope(
                batch(samples([2000] * 3), samples([90_000], phase=1), failures=[failure(detail="no memory")], dropped=2), install="a"
            ),
            envelope(batch(samples([1000] * 2, of=package(version=8)), facts=OLD_PHONE), install="b"),
            envelope(batch(samples([1000]), facts={}), install="c"),
        ]
    )
    empty = await client.ok("inferences")
    assert (empty["pending_batches"], empty["as_of"], empty["items"]) == (3, "1970-01-01T00:00:00Z", [{"inferences": 0, "installs": 0}])
    await stores.write_all()

    answer = await client.ok("latency", group_by="soc,version", phase=["load", "steady"])
    assert {name: answer[name] for name in ("since", "until", "as_of", "pending_batches", "truncated")} == {
        "since": "2026-11-15T10:00:00Z",
        "until": "2026-11-23T10:00:00Z",
        "as_of": "2026-11-22T10:00:00Z",
        "pending_batches": 0,
        "truncated": False,
    }
    assert answer["items"][0] == {
        "soc": "tensor-g4",
        "version": 7,
        "phase": "steady",
        "count": 3,
        "installs": 1,
        **dict.fromkeys(("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"), 2.0),
    }
    assert {(row["soc"], row["version"], row["phase"]): row["count"] for row in answer["items"]} == {
        ("tensor-g4", 7, "steady"): 3,
        ("tensor-g4", 7, "load"): 1,
        ("sm6225", 8, "steady"): 2,
        (None, 7, "steady"): 1,
    }
    counted = await client.ok("inferences", group_by=["model", "api_level"], interval="day")
    assert counted["dropped_samples"] == 2
    assert {"start": "2026-11-22T00:00:00Z", "model": "yolo", "api_level": None, "inferences": 1, "installs": 1} in counted["items"]
    active = await client.ok("active-installs")
    assert active["items"][-1] == {"start": "2026-11-22T00:00:00Z", "active_installs": 3}
    assert (await client.ok("active-installs", interval="month", country="DE"))["items"] == [
        {"start": "2026-11-01T00:00:00Z", "active_installs": 1}
    ]
    adopted = await client.ok("adoption", model="yolo")
    assert adopted["items"] == [
        {"start": "2026-11-22T00:00:00Z", "model": "yolo", "version": 7, "installs": 2, "share": 0.666667},
        {"start": "2026-11-22T00:00:00Z", "model": "yolo", "version": 8, "installs": 1, "share": 0.333333},
    ]
    failed = await client.ok("failures", phase="run", code="RUN_FAILED")
    assert failed["items"] == [
        {
            "phase": "run",
            "code": "RUN_FAILED",
            "count": 1,
            "installs": 1,
            "last_at": "2026-11-22T09:59:30Z",
            "last_detail": "no memory",
        }
    ]
    compared = await client.ok(COMPARE)
    assert (compared["baseline"]["inferences"], compared["candidate"]["inferences"]) == (4, 2)
    steady = next(row for row in compared["items"] if row["phase"] == "steady")
    assert steady["ratio"]["p50"] == 0.5


async def test_an_account_sees_its_own_figures_only(stores: Stores, client: Client) -> None:
    await stores.send(
        [envelope(batch(samples([10], of=package(version=number)), failures=[failure()]), account="rival") for number in (7, 8)]
    )
    await stores.write_all()
    for path in (*PATHS, COMPARE):
        mine = await client.get(path)
        theirs = await client.get(path, user("rival"))
        assert mine.status_code == theirs.status_code == 200
        assert not any(row.get("installs") or row.get("active_installs") or row.get("count") for row in mine.json()["items"])
        assert theirs.json()["items"]


@pytest.mark.parametrize("path", [*PATHS, COMPARE])
async def test_who_may_ask(client: Client, path: str) -> None:
    for principal, status in (
        (user("acme", Scope.READ), 200),
        (user("acme", Scope.PUBLISH), 200),
        (Principal(Kind.NOBODY), 401),
        (Principal(Kind.DEVICE, "i", "acme"), 403),
        (Principal(Kind.OPERATOR, "op"), 403),
        (Principal(Kind.USER, "k", "acme", frozenset()), 403),
    ):
        assert (await client.get(path, principal)).status_code == status, principal


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("latency?group_by=colour", 400, "group_by"),
        ("latency?phase=warm", 400, "phase"),
        ("failures?phase=steady", 400, "phase"),
        ("inferences?interval=week", 400, "interval"),
        ("active-installs?interval=hour", 400, "interval"),
        ("latency?limit=0", 400, "limit"),
        ("latency?limit=10001", 400, "limit"),
        ("latency?since=2026-11-22T00:00:00Z&until=2026-11-21T00:00:00Z", 400, "since"),
        ("latency?since=2020-01-01T00:00:00Z", 400, "since"),
        ("latency?since=yesterday", 422, "since"),
        ("latency?since=2026-11-21T00:00:00", 422, "since"),
        ("latency?api_level=new", 422, "api_level.0"),
        ("latency?color=red", 422, "color"),
        ("latency?version=-1", 400, "version"),
        ("compare?model=yolo&version=7", 422, "to"),
        ("compare?model=yolo&version=7&to=8&group_by=x", 400, "group_by"),
    ],
)
async def test_wrong_questions_name_the_parameter(client: Client, path: str, status: int, field: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == status, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    if status == 400:
        assert answer.json()["code"] == "ANALYTICS_QUERY_INVALID"


async def test_the_document_names_every_operation(stores: Stores) -> None:
    part = create_part(TelemetrySettings(), stores.ports())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(part.app), base_url="http://telemetry") as http:
        header = {PRINCIPAL_HEADER.decode(): stores.seal.seal(Principal(Kind.SERVICE, "gateway")).decode()}
        document = (await http.get("/internal/openapi.json", headers=header)).json()
    assert {
        (path, method): operation["x-latebind-access"] for path, one in document["paths"].items() for method, operation in one.items()
    } == {
        **{(f"/v1/analytics/{path}", "get"): "read" for path in (*PATHS, "compare")},
        ("/v1/device/telemetry", "post"): "device",
    }
    names = {parameter["name"] for parameter in document["paths"]["/v1/analytics/latency"]["get"]["parameters"]}
    assert {"since", "until", "group_by", "limit", "phase", "model", "version", "soc", "country"} <= names
