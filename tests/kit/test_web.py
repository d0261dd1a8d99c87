"""The HTTP side that every service shares (kit.web, kit.http, kit.identity)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Response
from sqlalchemy import Column, Integer, String, Table, func, insert, select

from kit.clock import FakeClock
from kit.db import Database, open_database
from kit.db.system import new_metadata
from kit.errors import Conflict, Invalid
from kit.identity import NOBODY, PRINCIPAL_HEADER, Access, Kind, Principal, PrincipalSeal, Scope, granted
from kit.web import (
    Model,
    Page,
    PageQuery,
    PolicyMissing,
    RawOperation,
    create_api,
    decode_page_token,
    encode_page_token,
    page_query,
    requires,
)

METADATA = new_metadata()
THINGS = Table("things", METADATA, Column("id", Integer, primary_key=True, autoincrement=True), Column("name", String(50), nullable=False))


class Thing(Model):
    name: str
    size: int = 0


def api(seal: PrincipalSeal, database: Database) -> FastAPI:
    router = APIRouter(prefix="/v1")

    @router.post("/things", status_code=201)
    async def create_thing(caller: Annotated[Principal, requires(Access.PUBLISH)], body: Thing, response: Response) -> Thing:
        async with database.begin() as tx:
            await tx.execute(insert(THINGS).values(name=body.name))
            if body.name == "taken":
                raise Conflict("this name is taken", name=body.name)
        if body.name == "secret":
            response.headers["cache-control"] = "no-store"
        return body

    @router.get("/things")
    async def list_things(
        _caller: Annotated[Principal, requires(Access.READ)], page: Annotated[PageQuery, Depends(page_query)]
    ) -> Page[Thing]:
        after = decode_page_token(page.token, kinds=(int,))
        async with database.read() as reader:
            rows = await reader.all(
                select(THINGS).where(THINGS.c.id > (after[0] if after else 0)).order_by(THINGS.c.id).limit(page.size + 1)
            )
        more = len(rows) > page.size
        return Page(
            items=[Thing(name=row.name) for row in rows[: page.size]],
            next_page_token=encode_page_token(rows[page.size - 1].id) if more else None,
        )

    @router.get("/broken")
    async def broken(_caller: Annotated[Principal, requires(Access.PUBLIC)]) -> Thing:
        raise RuntimeError("the password is swordfish")

    @router.get("/operators-only")
    async def operators_only(_caller: Annotated[Principal, requires(Access.OPERATOR)]) -> Thing:
        return Thing(name="x")

    return create_api("things", [router], seal=seal, database=database)


@pytest.fixture
async def database(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Database]:
    async with open_database(f"sqlite:{tmp_path}/things.db", clock) as opened:
        async with opened.write_engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
        yield opened


@pytest.fixture
async def client(seal: PrincipalSeal, database: Database) -> AsyncIterator[httpx2.AsyncClient]:
    principal = Principal(Kind.USER, "k1", "acme", granted(frozenset({Scope.PUBLISH})))
    headers = {PRINCIPAL_HEADER.decode(): seal.seal(principal).decode(), "request-id": "r_123"}
    transport = httpx2.ASGITransport(app=api(seal, database))
    async with httpx2.AsyncClient(transport=transport, base_url="http://things", headers=headers) as opened:
        yield opened


def problem(response: httpx2.Response) -> dict[str, object]:
    assert response.headers["content-type"] == "application/problem+json"
    document = dict(response.json())
    assert document["status"] == response.status_code
    assert document["instance"] == "urn:latebind:request:r_123"
    return document


async def test_problems_carry_code_and_request_id(client: httpx2.AsyncClient) -> None:
    document = problem(await client.post("/v1/things", json={"name": "taken"}))
    assert (document["code"], document["status"], document["name"]) == ("CONFLICT", 409, "taken")


async def test_unknown_fields_and_wrong_types_are_named(client: httpx2.AsyncClient) -> None:
    document = problem(await client.post("/v1/things", json={"name": "a", "size": "big", "colour": "red"}))
    assert document["code"] == "MALFORMED_BODY"
    assert {error["field"] for error in document["errors"]} == {"size", "colour"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", [b"{", b"", b"nope", b'{"name": "a"}}', b"\xff\xfe"])
async def test_a_body_that_is_not_json_is_a_422(client: httpx2.AsyncClient, body: bytes) -> None:
    assert problem(await client.post("/v1/things", content=body, headers={"content-type": "application/json"}))["status"] == 422


@pytest.mark.parametrize("bracket", [b"[", b'{"a":', b'[{"a":'])
async def test_json_nested_ten_thousand_deep_is_refused(client: httpx2.AsyncClient, bracket: bytes) -> None:
    response = await client.post("/v1/things", content=bracket * 10_000, headers={"content-type": "application/json"})
    assert problem(response)["code"] == "MALFORMED_BODY"


async def test_brackets_inside_strings_do_not_count(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/things", json={"name": '\\"[' * 500})).status_code == 201


async def test_a_body_over_the_limit_is_a_413(client: httpx2.AsyncClient) -> None:
    response = await client.post("/v1/things", content=b" " * (1 << 20) + b"{}", headers={"content-type": "application/json"})
    assert problem(response)["code"] == "BODY_TOO_LARGE"


async def test_a_fault_tells_nothing_but_its_request_id(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/broken")
    assert problem(response)["code"] == "INTERNAL"
    assert "swordfish" not in response.text


async def test_nothing_there_and_wrong_method(client: httpx2.AsyncClient) -> None:
    assert problem(await client.get("/v1/nothing"))["code"] == "NOT_FOUND"
    assert problem(await client.delete("/v1/things"))["code"] == "METHOD_NOT_ALLOWED"


async def test_pages(client: httpx2.AsyncClient) -> None:
    for number in range(5):
        await client.post("/v1/things", json={"name": f"t{number}"})
    seen: list[str] = []
    token = None
    for _ in range(3):
        page = (await client.get("/v1/things", params={"page_size": 2, **({"page_token": token} if token else {})})).json()
        seen += [item["name"] for item in page["items"]]
        token = page["next_page_token"]
    assert (seen, token) == ([f"t{number}" for number in range(5)], None)
    for wrong in ("x", "W10", encode_page_token("a"), encode_page_token(1, 2)):
        assert problem(await client.get("/v1/things", params={"page_token": wrong}))["code"] == "INVALID_REQUEST"
    assert problem(await client.get("/v1/things", params={"page_size": 0}))["code"] == "INVALID_REQUEST"


async def test_policies(seal: PrincipalSeal, client: httpx2.AsyncClient) -> None:
    assert problem(await client.get("/v1/operators-only"))["code"] == "FORBIDDEN"
    header = PRINCIPAL_HEADER.decode()
    for value, status in (("", 401), ("e30=.00", 401), (PrincipalSeal(b"x" * 32).seal(NOBODY).decode(), 401)):
        assert (await client.get("/v1/things", headers={header: value})).status_code == status
    reader = seal.seal(Principal(Kind.USER, "k", "acme", granted(frozenset({Scope.READ})))).decode()
    assert (await client.get("/v1/things", headers={header: reader})).status_code == 200
    assert (await client.post("/v1/things", json={"name": "a"}, headers={header: reader})).status_code == 403
    device = seal.seal(Principal(Kind.DEVICE, "i", "acme")).decode()
    assert (await client.get("/v1/things", headers={header: device})).status_code == 403
    expired = PrincipalSeal(b"s" * 32, lifetime_s=-1).seal(Principal(Kind.OPERATOR, "o")).decode()
    assert (await client.get("/v1/operators-only", headers={header: expired})).status_code == 401


def test_a_route_without_a_policy_fails_start_up(seal: PrincipalSeal) -> None:
    router = APIRouter()

    @router.get("/v1/open-door")
    async def open_door() -> Thing:
        return Thing(name="x")

    with pytest.raises(PolicyMissing, match="open-door"):
        create_api("doors", [router], seal=seal)


async def test_one_idempotency_key_has_one_effect(client: httpx2.AsyncClient, database: Database) -> None:
    headers = {"idempotency-key": "push-1"}
    answers = await asyncio.gather(*(client.post("/v1/things", json={"name": "once"}, headers=headers) for _ in range(100)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert any(answer.status_code == 201 for answer in answers)
    again = await client.post("/v1/things", json={"name": "once"}, headers=headers)
    assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (201, {"name": "once", "size": 0}, "true")
    other = await client.post("/v1/things", json={"name": "other"}, headers=headers)
    assert problem(other)["code"] == "IDEMPOTENCY_KEY_REUSED"
    async with database.read() as reader:
        assert await reader.scalar(select(func.count()).select_from(THINGS)) == 1


async def test_a_secret_is_not_kept_for_a_repeat(client: httpx2.AsyncClient) -> None:
    headers = {"idempotency-key": "push-2"}
    assert (await client.post("/v1/things", json={"name": "secret"}, headers=headers)).status_code == 201
    assert problem(await client.post("/v1/things", json={"name": "secret"}, headers=headers))["code"] == "IDEMPOTENCY_ANSWER_GONE"


async def test_the_document_shows_policies_problems_and_raw_operations(seal: PrincipalSeal) -> None:
    raw = RawOperation(
        "POST", "/v1/device/x", Access.DEVICE, "post_x", "Does x", "device", {"responses": {"202": {"description": "taken"}}}
    )
    app = create_api("raw", [], seal=seal, raw=[raw])
    operation = app.state.openapi_document["paths"]["/v1/device/x"]["post"]
    assert (operation["x-latebind-access"], operation["operationId"]) == ("device", "post_x")
    assert "default" in operation["responses"]
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://raw") as anybody:
        assert (await anybody.get("/internal/openapi.json")).status_code == 401
        gateway = {PRINCIPAL_HEADER.decode(): seal.seal(Principal(Kind.SERVICE, "gateway")).decode()}
        assert json.loads((await anybody.get("/internal/openapi.json", headers=gateway)).content)["info"]["title"] == "raw"


def test_an_error_says_what_it_was() -> None:
    document = Invalid("percent must be at most 100", errors=[{"field": "rules.0", "code": "TOO_LARGE", "detail": "x"}]).document("urn:1")
    assert document["type"] == "urn:latebind:error:invalid-request"
    assert document["errors"][0]["field"] == "rules.0"
