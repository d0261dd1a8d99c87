"""Models and aliases, and the history of every move."""

from __future__ import annotations

import asyncio
import itertools

from kit.identity import Scope
from latebind_proto import events_pb2
from tests.registry.conftest import Registry, code, user

ALIASES = "/v1/models/digits/aliases"


async def two_ready_versions(registry: Registry) -> None:
    await registry.create_model()
    for number in (1, 2):
        await registry.create_version()
        await registry.make_ready(number)
    await registry.create_version()


async def test_a_model_is_made_read_and_changed(registry: Registry) -> None:
    body = {"model_id": "tiny-yolo-v2", "description": "finds things", "labels": {"task": "detection"}}
    created = await registry.acme.post("/v1/models", json=body)
    assert created.status_code == 201
    model = created.json()
    assert (model["model_id"], model["description"], model["labels"]) == ("tiny-yolo-v2", "finds things", {"task": "detection"})
    assert (model["aliases"], model["contract"], model["last_version"], model["created_by"]) == ({}, None, None, "key-acme")
    read = await registry.acme.get("/v1/models/tiny-yolo-v2")
    assert (read.json(), read.headers["etag"]) == (model, created.headers["etag"])
    etag = {"if-match": created.headers["etag"]}
    changed = await registry.acme.patch("/v1/models/tiny-yolo-v2", json={"labels": {}}, headers=etag)
    assert (changed.json()["labels"], changed.json()["description"]) == ({}, "finds things")
    late = await registry.acme.patch("/v1/models/tiny-yolo-v2", json={"description": "x"}, headers=etag)
    assert code(late) == (412, "PRECONDITION_FAILED")
    assert (await registry.acme.patch("/v1/models/tiny-yolo-v2", json={}, headers={"if-match": "*"})).status_code == 200
    assert code(await registry.acme.post("/v1/models", json=body)) == (409, "MODEL_EXISTS")
    for wrong in ("", "A", "a/b", "-a", "a.", "a" * 65, "ä"):
        assert code(await registry.acme.post("/v1/models", json={"model_id": wrong}))[0] == 422
    assert code(await registry.acme.post("/v1/models", json={"model_id": "a", "labels": {"": "x"}}))[0] == 422
    assert code(await registry.acme.post("/v1/models", json={"model_id": "a", "lables": {}}))[0] == 422


async def test_models_are_found_and_paged(registry: Registry) -> None:
    for name, description in (("b-net", "Speech"), ("a-net", "100% of faces"), ("c_net", "hands"), ("cxnet", "feet")):
        await registry.acme.post("/v1/models", json={"model_id": name, "description": description, "labels": {"team": "vision"}})
    await registry.create_model("a-net", registry.client(user("other")))

    async def found(**query: object) -> list[str]:
        return [one["model_id"] for one in (await registry.acme.get("/v1/models", params=query)).json()["items"]]

    assert await found() == ["a-net", "b-net", "c_net", "cxnet"]
    assert await found(search="NET") == ["a-net", "b-net", "c_net", "cxnet"]
    assert await found(search="speech") == ["b-net"]
    assert await found(search="%") == ["a-net"]
    assert await found(search="c_n") == ["c_net"]
    assert await found(search="vision") == ["a-net", "b-net", "c_net", "cxnet"]
    assert await found(search="nothing") == []
    first = (await registry.acme.get("/v1/models", params={"page_size": 3})).json()
    rest = (await registry.acme.get("/v1/models", params={"page_size": 3, "page_token": first["next_page_token"]})).json()
    assert [one["model_id"] for one in rest["items"]] == ["cxnet"]
    assert rest["next_page_token"] is None


async def test_an_alias_moves_and_every_move_is_kept(registry: Registry) -> None:
    await two_ready_versions(registry)
    client = registry.acme
    first = await client.put(f"{ALIASES}/stable", json={"version": 1, "why": "first release"})
    assert first.status_code == 201
    registry.clock.advance(60)
    moved = await client.put(f"{ALIASES}/stable", json={"version": 2, "why": "faster"}, headers={"if-match": first.headers["etag"]})
    assert (moved.status_code, moved.json()["version"]) == (200, 2)
    stale = await client.put(f"{ALIASES}/stable", json={"version": 1}, headers={"if-match": first.headers["etag"]})
    assert code(stale) == (412, "PRECONDITION_FAILED")
    same = await client.put(f"{ALIASES}/stable", json={"version": 2, "why": "again"})
    assert (same.status_code, same.json()) == (200, moved.json())
    assert (await client.delete(f"{ALIASES}/stable", params={"why": "retired"})).status_code == 204
    assert code(await client.get(f"{ALIASES}/stable")) == (404, "ALIAS_NOT_FOUND")
    assert code(await client.delete(f"{ALIASES}/stable")) == (404, "ALIAS_NOT_FOUND")
    remade = await client.put(f"{ALIASES}/stable", json={"version": 1})
    assert remade.headers["etag"] != first.headers["etag"]
    first_page = (await client.get(f"{ALIASES}/stable/history", params={"page_size": 3})).json()
    rest = (await client.get(f"{ALIASES}/stable/history", params={"page_size": 3, "page_token": first_page["next_page_token"]})).json()
    moves = first_page["items"] + rest["items"]
    assert [(one["from_version"], one["to_version"], one["why"]) for one in moves] == [
        (None, 1, ""),
        (2, None, "retired"),
        (1, 2, "faster"),
        (None, 1, "first release"),
    ]
    assert {one["moved_by"] for one in moves} == {"key-acme"}
    events = [events_pb2.AliasMoved.FromString(record.value) for record in await registry.told("alias.moved")]
    assert [(event.alias, event.version) for event in events] == [("stable", 1), ("stable", 2), ("stable", 0), ("stable", 1)]


async def test_an_alias_points_at_ready_versions_only(registry: Registry) -> None:
    await two_ready_versions(registry)
    draft = await registry.acme.put(f"{ALIASES}/stable", json={"version": 3})
    assert (code(draft), draft.json()["state"]) == ((409, "VERSION_NOT_READY"), "draft")
    assert code(await registry.acme.put(f"{ALIASES}/stable", json={"version": 9})) == (404, "VERSION_NOT_FOUND")
    await registry.acme.post("/v1/models/digits/versions/1:archive")
    assert code(await registry.acme.put(f"{ALIASES}/stable", json={"version": 1})) == (409, "VERSION_NOT_READY")
    assert code(await registry.acme.put(f"{ALIASES}/stable", json={"version": 2}, headers={"if-match": "*"})) == (
        412,
        "PRECONDITION_FAILED",
    )
    assert code(await registry.acme.get(f"{ALIASES}/stable/history")) == (404, "ALIAS_NOT_FOUND")
    for wrong in ({"version": 0}, {"version": "2"}, {"version": True}, {"version": 2.0}, {}):
        assert code(await registry.acme.put(f"{ALIASES}/stable", json=wrong))[0] == 422
    assert code(await registry.acme.put(f"{ALIASES}/Stable!", json={"version": 2}))[0] == 422
    assert (await registry.acme.get(ALIASES)).json() == {"items": [], "next_page_token": None}


async def test_moves_at_once_are_all_in_the_history(registry: Registry) -> None:
    await two_ready_versions(registry)
    await asyncio.gather(*(registry.acme.put(f"{ALIASES}/canary", json={"version": 1 + index % 2}) for index in range(20)))
    moves = (await registry.acme.get(f"{ALIASES}/canary/history", params={"page_size": 100})).json()["items"]
    chain = [(one["from_version"], one["to_version"]) for one in reversed(moves)]
    assert chain[0][0] is None
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chain))
    assert (await registry.acme.get(f"{ALIASES}/canary")).json()["version"] == chain[-1][1]


async def test_scopes(registry: Registry) -> None:
    await two_ready_versions(registry)
    reader = registry.client(user("acme", Scope.READ))
    assert (await reader.get("/v1/models/digits")).status_code == 200
    assert code(await reader.put(f"{ALIASES}/stable", json={"version": 1})) == (403, "FORBIDDEN")
    publisher = registry.client(user("acme", Scope.PUBLISH))
    assert (await publisher.put(f"{ALIASES}/stable", json={"version": 1})).status_code == 201
    assert code(await publisher.post("/v1/api-keys", json={"scopes": ["admin"]})) == (403, "FORBIDDEN")
