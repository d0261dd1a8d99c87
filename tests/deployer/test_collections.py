"""Collections over the management API: drafts, publishing, returning, explaining, simulating."""

from __future__ import annotations

import asyncio
import re
import uuid
from pathlib import Path

import pytest

from kit.clock import SystemClock
from kit.identity import Scope
from kit.workers import running
from latebind_proto import events_pb2
from services.deployer import events
from tests.conftest import user
from tests.deployer.conftest import World, context, manifest, open_world

EMPTY = {"rules": [], "default": None}


def serve(version: int, **more):
    return {"model": "yolo", "version": version, **more}


async def test_a_new_collection_has_an_id_to_copy_and_an_empty_draft(world: World) -> None:
    made = await world.ok("POST", "/v1/collections", {"name": "cameras", "description": "all of them"})
    assert re.fullmatch(r"c_[a-z2-7]{8}", made["id"])
    assert made["revision"] is None
    assert await world.ok("GET", f"/v1/collections/{made['id']}") == made
    draft = await world.call("GET", f"/v1/collections/{made['id']}/draft")
    assert draft.json() == EMPTY
    assert draft.headers["etag"] == '"draft-1"'
    changed = await world.ok("PATCH", f"/v1/collections/{made['id']}", {"name": "doors"})
    assert (changed["name"], changed["description"]) == ("doors", "all of them")


async def test_texts_can_be_changed_conditionally(world: World) -> None:
    made = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    etag = (await world.call("GET", f"/v1/collections/{made}")).headers["etag"]
    world.clock.advance(1)
    changed = await world.call("PATCH", f"/v1/collections/{made}", {"name": "y"}, if_match=etag)
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    late = await world.call("PATCH", f"/v1/collections/{made}", {"name": "z"}, if_match=etag)
    assert late.json()["code"] == "PRECONDITION_FAILED"


async def test_lists_come_in_pages(world: World) -> None:
    made = sorted([(await world.ok("POST", "/v1/collections", {"name": f"n{n}"}))["id"] for n in range(5)])
    first = await world.ok("GET", "/v1/collections?page_size=3")
    second = await world.ok("GET", f"/v1/collections?page_size=3&page_token={first['next_page_token']}")
    assert [one["id"] for one in first["items"] + second["items"]] == made
    assert second["next_page_token"] is None
    assert (await world.call("GET", "/v1/collections?page_token=nonsense")).status_code == 400


async def test_same_idempotency_key_makes_one_collection(world: World) -> None:
    answers = [await world.ok("POST", "/v1/collections", {"name": "once"}, idempotency_key="k1") for _ in range(2)]
    assert answers[0] == answers[1]
    assert len((await world.ok("GET", "/v1/collections"))["items"]) == 1


async def test_draft_updates_can_be_conditional(world: World) -> None:
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    path = f"/v1/collections/{collection}/draft"
    first = await world.call("PUT", path, {"rules": [], "default": serve(1)}, if_match='"draft-1"')
    assert first.headers["etag"] == '"draft-2"'
    late = await world.call("PUT", path, EMPTY, if_match='"draft-1"')
    assert late.status_code == 412
    assert late.json()["code"] == "PRECONDITION_FAILED"
    assert (await world.ok("GET", path))["default"] == serve(1)
    stale = await world.call("POST", f"/v1/collections/{collection}:publish", {}, if_match='"draft-1"')
    assert stale.status_code == 412


@pytest.mark.parametrize(
    ("document", "field", "code"),
    [
        ({"rules": [], "extra": 1}, "extra", "UNKNOWN_FIELD"),
        ({"rules": {}}, "rules", "WRONG_TYPE"),
        ({"rules": [{"id": "a", "serve": serve(1), "rollout": {"percent": 120, "salt": "s"}}]}, "rules[0].rollout.percent", "OUT_OF_RANGE"),
        ({"rules": [{"id": "a", "serve": serve(1), "when": {"all": []}}]}, "rules[0].when.all", "EMPTY"),
        ({"default": {"model": "yolo"}}, "default", "VERSION_OR_ALIAS"),
    ],
)
async def test_wrong_drafts_are_refused_field_by_field(world: World, document, field: str, code: str) -> None:
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    response = await world.call("PUT", f"/v1/collections/{collection}/draft", document)
    assert response.status_code == 400
    assert response.json()["code"] == "RULES_INVALID"
    assert {"field": field, "code": code} in [{"field": one["field"], "code": one["code"]} for one in response.json()["errors"]]
    assert await world.ok("GET", f"/v1/collections/{collection}/draft") == EMPTY


async def test_rules_nested_ten_thousand_deep_are_refused_cheaply(world: World) -> None:
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    body = b'{"rules":[{"id":"a","when":' + b'{"not":' * 10_000 + b"{}" + b"}" * 10_000 + b"}]}"
    response = await world.call("PUT", f"/v1/collections/{collection}/draft", body)
    assert 400 <= response.status_code < 500
    assert response.json()["code"] == "MALFORMED_BODY"


async def test_publishing_makes_numbered_revisions_that_stay(world: World) -> None:
    await world.ready(manifest("yolo", 1))
    await world.ready(manifest("yolo", 2))
    collection = await world.publish({"rules": [], "default": serve(1)})
    await world.ok("PUT", f"/v1/collections/{collection}/draft", {"rules": [], "default": serve(2)})
    done = await world.ok("POST", f"/v1/collections/{collection}:publish", {"note": "second"})
    assert done["revision"]["revision"] == 2
    assert done["revision"]["note"] == "second"
    assert done["revision"]["published_by"] == "key1"
    listed = await world.ok("GET", f"/v1/collections/{collection}/revisions")
    assert [one["revision"] for one in listed["items"]] == [2, 1]
    first = await world.ok("GET", f"/v1/collections/{collection}/revisions/1")
    assert first["document"] == {"rules": [], "default": serve(1)}
    assert (await world.call("GET", f"/v1/collections/{collection}/revisions/3")).json()["code"] == "REVISION_NOT_FOUND"
    paged = await world.ok("GET", f"/v1/collections/{collection}/revisions?page_size=1")
    rest = await world.ok("GET", f"/v1/collections/{collection}/revisions?page_size=1&page_token={paged['next_page_token']}")
    assert [one["revision"] for one in rest["items"]] == [1]


async def test_validate_only_changes_nothing(world: World) -> None:
    await world.ready(manifest("yolo", 1))
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    await world.ok("PUT", f"/v1/collections/{collection}/draft", {"rules": [], "default": serve(1)})
    done = await world.ok("POST", f"/v1/collections/{collection}:publish", {"validate_only": True})
    assert done["revision"] is None
    assert (await world.ok("GET", f"/v1/collections/{collection}"))["revision"] is None


async def test_publish_refuses_what_is_not_there_and_lists_each(world: World) -> None:
    await world.ready(manifest("yolo", 1))
    await world.ready(manifest("yolo", 2))
    await world.archive("yolo", 2)
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    arms = [{"weight": 1, **serve(1)}, {"weight": 1, **serve(9)}]
    rules = {
        "rules": [
            {"id": "a", "serve": serve(2)},
            {"id": "b", "serve": {"split": arms, "salt": "s"}},
            {"id": "c", "serve": serve(1, variant="onnx-int8")},
            {"id": "d", "serve": {"model": "magika", "version": 1}},
        ],
        "default": {"model": "yolo", "alias": "stable"},
    }
    await world.ok("PUT", f"/v1/collections/{collection}/draft", rules)
    response = await world.call("POST", f"/v1/collections/{collection}:publish", {})
    assert response.status_code == 409
    assert response.json()["code"] == "VERSION_NOT_READY"
    assert response.headers["retry-after"] == "2"
    assert [(one["field"], one["code"]) for one in response.json()["errors"]] == [
        ("rules[0].serve.version", "VERSION_ARCHIVED"),
        ("rules[1].serve.split[1].version", "VERSION_NOT_READY"),
        ("rules[2].serve.variant", "UNKNOWN_VARIANT"),
        ("rules[3].serve.model", "UNKNOWN_MODEL"),
        ("default.alias", "UNKNOWN_ALIAS"),
    ]


async def test_archived_versions_cannot_be_published_nor_returned_to(world: World) -> None:
    await world.ready(manifest("yolo", 1))
    await world.ready(manifest("yolo", 2))
    collection = await world.publish({"rules": [], "default": serve(1)})
    await world.publish({"rules": [], "default": serve(2)}, collection=collection)
    await world.archive("yolo", 1)
    response = await world.call("POST", f"/v1/collections/{collection}:revert", {"revision": 1})
    assert response.status_code == 400
    assert response.json()["code"] == "RULES_INVALID"
    assert response.json()["errors"][0]["code"] == "VERSION_ARCHIVED"


async def test_archive_may_overtake_readiness(world: World) -> None:
    await world.archive("yolo", 1)
    await world.ready(manifest("yolo", 1))
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    await world.ok("PUT", f"/v1/collections/{collection}/draft", {"rules": [], "default": serve(1)})
    response = await world.call("POST", f"/v1/collections/{collection}:publish", {})
    assert response.json()["errors"][0]["code"] == "VERSION_ARCHIVED"


async def test_return_publishes_the_old_rules_as_a_new_revision(world: World, install_id: str) -> None:
    (one,) = await world.ready(manifest("yolo", 1))
    (two,) = await world.ready(manifest("yolo", 2))
    collection = await world.publish({"rules": [], "default": serve(1)})
    first = await world.resolve(collection, context(install_id))
    await world.publish({"rules": [], "default": serve(2)}, collection=collection)
    second = await world.resolve(collection, context(install_id), etag=first.headers["etag"])
    assert second.json()["package"]["digest"] == two
    done = await world.ok("POST", f"/v1/collections/{collection}:revert", {"revision": 1})
    assert (done["revision"]["revision"], done["revision"]["reverted_to"]) == (3, 1)
    third = await world.resolve(collection, context(install_id), etag=second.headers["etag"])
    assert third.json()["package"]["digest"] == one
    assert third.json()["revision"] == 3
    assert (await world.ok("GET", f"/v1/collections/{collection}/draft"))["default"] == serve(2)


async def test_publish_waits_for_an_event_that_is_on_its_way(live_world: World) -> None:
    world = live_world
    async with running([*world.part.background, *world.part.beside_api]):
        collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
        await world.ok("PUT", f"/v1/collections/{collection}/draft", {"rules": [], "default": serve(1)})
        publishing = asyncio.create_task(world.call("POST", f"/v1/collections/{collection}:publish", {}))
        await asyncio.sleep(0.2)
        assert not publishing.done()
        await world.ready(manifest("yolo", 1), settle=False)
        response = await publishing
        assert response.status_code == 200, response.text
        early = await world.call("PUT", f"/v1/collections/{collection}/draft", {"rules": [], "default": serve(2)})
        assert early.status_code == 200
        late = await world.call("POST", f"/v1/collections/{collection}:publish", {})
        assert late.status_code == 409
        assert late.json()["code"] == "VERSION_NOT_READY"
        assert late.headers["retry-after"] == "2"


async def test_everything_by_running_workers(live_world: World, install_id: str) -> None:
    """Events, refresh, decision and last-seen, driven by the workers alone."""
    world = live_world
    async with running([*world.part.background, *world.part.beside_api]) as workers:
        (one,) = await world.ready(manifest("yolo", 1), settle=False)
        (two,) = await world.ready(manifest("yolo", 2), settle=False)
        await world.say(events.ALIAS_MOVED, events_pb2.AliasMoved(account="acme", model_id="yolo", alias="stable", version=1))
        collection = await world.publish({"rules": [], "default": {"model": "yolo", "alias": "stable"}})
        first = await world.resolve(collection, context(install_id))
        assert first.json()["package"]["digest"] == one
        decision = await world.ok("GET", f"/v1/decisions/{first.json()['decision_id']}")  # waits for the table
        assert decision["answer"]["package"]["digest"] == one
        await world.say(events.ALIAS_MOVED, events_pb2.AliasMoved(account="acme", model_id="yolo", alias="stable", version=2))
        for _ in range(200):
            second = await world.resolve(collection, context(install_id), etag=first.headers["etag"])
            if second.status_code == 200:
                break
            await asyncio.sleep(0.02)
        assert second.json()["package"]["digest"] == two
        assert workers.problems() == []


def _second_part(world: World):
    from services.deployer.app import create_part
    from services.deployer.settings import DeployerSettings

    return create_part(DeployerSettings(), world.ports)


async def test_nothing_is_answered_before_the_rules_are_loaded(tmp_path: Path, install_id: str) -> None:
    async with open_world(tmp_path, SystemClock()) as one:
        other = World(_second_part(one), one.ports, one.clock)
        response = await other.resolve("c_anything", context(install_id))
        assert response.status_code == 503
        assert response.json()["code"] == "STARTING"
        assert other.part.beside_api[0].problem() is not None


async def test_a_restart_serves_what_was_published(tmp_path: Path, install_id: str) -> None:
    async with open_world(tmp_path, SystemClock(), ready_wait_s=0) as world:
        await world.ready(manifest("yolo", 1))
        collection = await world.publish({"rules": [], "default": serve(1)})
        first = await world.resolve(collection, context(install_id))
        await world.settle()
    async with open_world(tmp_path, SystemClock(), ready_wait_s=0) as world:
        again = await world.resolve(collection, context(install_id), etag=first.headers["etag"])
        assert again.status_code == 304  # the epoch is the same in every process
        assert (await world.ok("GET", f"/v1/devices/{install_id}"))["install_id"] == install_id


async def test_account_gets_an_assignment_key_once(world: World) -> None:
    message = events_pb2.AccountCreated(account="acme")
    await world.say(events.ACCOUNT_CREATED, message, event_id="e_1")
    await world.say(events.ACCOUNT_CREATED, message, event_id="e_1")
    await world.settle()
    async with world.ports.eventlog.consumer("test", ["signing-key.announced"]) as consumer:
        batch = await consumer.batch(max_records=10, max_bytes=1 << 20, max_wait_s=0.5)
    (record,) = batch.records
    key = events_pb2.SigningKeyAnnounced.FromString(record.value)
    assert (key.account, key.role, len(key.public_key)) == ("acme", "assignment", 32)


async def test_explain_gives_the_answer_of_resolve_and_every_step(world: World, install_id: str) -> None:
    (digest,) = await world.ready(manifest("yolo", 1, requires={"ram_mb": 512}))
    rules = {
        "rules": [
            {
                "id": "never",
                "when": {
                    "all": [
                        {"attr": "device.soc", "op": "in", "value": ["sm8650"]},
                        {"not": {"attr": "os.api_level", "op": "lt", "value": 29}},
                    ]
                },
                "serve": serve(1),
            },
            {"id": "closed", "active": {"from": None, "until": "2026-01-01T00:00:00Z"}, "serve": serve(1)},
            {"id": "few", "rollout": {"percent": 0, "salt": "r7"}, "serve": serve(1)},
            {"id": "all", "serve": {"split": [{"weight": 1, **serve(1)}], "salt": "ab"}},
        ],
        "default": serve(1),
    }
    collection = await world.publish(rules)
    resolved = (await world.resolve(collection, context(install_id))).json()
    await world.settle()
    path = f"/v1/collections/{collection}:explain"
    by_context = await world.ok("POST", path, {"context": context(install_id)})
    by_device = await world.ok("POST", path, {"install_id": install_id})
    assert by_context["answer"] == by_device["answer"]
    assert by_context["rules"] == by_device["rules"]
    answer = by_context["answer"]
    assert {name: answer[name] for name in ("reason", "rule_id")} == {"reason": "SPLIT", "rule_id": "all"}
    assert answer["package"]["digest"] == resolved["package"]["digest"] == digest
    assert [(one["id"], one["served"], one["stopped_by"]) for one in by_context["rules"]] == [
        ("never", False, "when"),
        ("closed", False, "active"),
        ("few", False, "rollout"),
        ("all", True, None),
    ]
    first = by_context["rules"][0]["when"]
    assert first["all"][0] == {"attr": "device.soc", "op": "in", "value": ["sm8650"], "actual": "tensor-g4", "result": False}
    assert first["all"][1]["not"]["actual"] == 36
    assert by_context["rules"][2]["rollout"]["included"] is False
    (package,) = by_context["rules"][3]["packages"]
    assert package["runnable"] is True
    assert [check["condition"] for check in package["checks"]] == ["engine", "min_version", "ir_version", "opset", "ram_mb"]
    without_ram = context(install_id, device={})
    told = await world.ok("POST", path, {"context": without_ram})
    assert told["rules"][3]["packages"][0]["not_checked"] == [{"condition": "ram_mb", "needed": 512}]


async def test_explain_needs_a_device_and_a_revision(world: World, install_id: str) -> None:
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    path = f"/v1/collections/{collection}:explain"
    assert (await world.call("POST", path, {})).json()["code"] == "CONTEXT_INVALID"
    assert (await world.call("POST", path, {"install_id": "nobody"})).json()["code"] == "DEVICE_NOT_FOUND"
    assert (await world.call("POST", path, {"context": context(install_id)})).json()["code"] == "NOTHING_PUBLISHED"
    draft = await world.ok("POST", path, {"context": context(install_id), "draft": True})
    assert draft["answer"]["reason"] == "NO_MATCH"
    assert (await world.call("POST", path, {"context": context(install_id), "revision": 7})).json()["code"] == "REVISION_NOT_FOUND"
    assert (await world.call("POST", path, {"context": {"install_id": install_id, "device": 1}})).json()["code"] == "CONTEXT_INVALID"
    assert (await world.call("POST", path, {"context": {}})).json()["code"] == "CONTEXT_INVALID"
    zoneless = {"context": context(install_id), "draft": True, "at": "2026-11-22T10:00:00"}
    assert (await world.call("POST", path, zoneless)).json()["code"] == "MALFORMED_BODY"


async def test_simulation_counts_moves_refusals_and_bytes(world: World) -> None:
    labels = ("labels", "auxiliary", 100, "shared labels")
    (one,) = await world.ready(manifest("yolo", 1, files=[("model.onnx", "graph", 1000, "v1"), labels]))
    (two,) = await world.ready(manifest("yolo", 2, files=[("model.onnx", "graph", 3000, "v2"), labels], engine={"min_version": "1.20"}))
    collection = await world.publish({"rules": [], "default": serve(1)})
    for number in range(10):
        version = "1.19.0" if number < 3 else "1.21.0"
        installed = [{"package": f"sha256:{one}"}] if number != 9 else []
        device = context(
            str(uuid.UUID(int=number, version=4)), runtimes=[{"engine": "onnxruntime", "version": version}], installed=installed
        )
        assert (await world.resolve(collection, device)).status_code == 200
    await world.settle()
    statements: list[str] = []
    stop = world.ports.database.on_statement(statements.append)
    answer = await world.ok("POST", f"/v1/collections/{collection}:simulate", {"rules": {"rules": [], "default": serve(2)}})
    stop()
    assert len(statements) < 30
    assert (answer["population"], answer["devices"], answer["moved"], answer["unchanged"]) == ("collection", 10, 10, 0)
    assert (answer["served"], answer["refused"]) == (7, {"NO_COMPATIBLE_PACKAGE": 3})
    assert (answer["served_before"], answer["refused_before"]) == (10, {})
    # Six have the labels already, one has nothing.
    assert answer["bytes_to_download"] == 6 * 3000 + 3100
    big, small = answer["moves"]
    assert (big["before"]["digest"], big["after"]["digest"], big["devices"], big["bytes"]) == (one, two, 7, 21_100)
    assert (small["after"]["digest"], small["after"]["reason"], small["devices"], small["bytes"]) == (None, "NO_COMPATIBLE_PACKAGE", 3, 0)
    assert len(big["examples"]) == 5
    same = await world.ok("POST", f"/v1/collections/{collection}:simulate")
    assert (same["unchanged"], same["moved"], same["bytes_to_download"]) == (10, 0, 0)
    fresh = (await world.ok("POST", "/v1/collections", {"name": "new"}))["id"]
    other = await world.ok("POST", f"/v1/collections/{fresh}:simulate", {"rules": {"rules": [], "default": serve(1)}})
    assert (other["population"], other["devices"], other["refused_before"]) == ("account", 10, {"NOTHING_PUBLISHED": 10})


async def test_lint_names_unreachable_shadowed_and_overlapping_rules(world: World) -> None:
    collection = (await world.ok("POST", "/v1/collections", {"name": "x"}))["id"]
    beta = {"attr": "groups", "op": "contains_any", "value": ["beta"]}
    rules = {
        "rules": [
            {"id": "new", "when": {"attr": "os.api_level", "op": "gte", "value": 29}, "serve": serve(1)},
            {"id": "newer", "when": {"attr": "os.api_level", "op": "between", "value": [30, 33]}, "serve": serve(2)},
            {"id": "beta", "when": beta, "serve": serve(2)},
            {"id": "gone", "active": {"until": "2026-01-01T00:00:00Z"}, "serve": serve(2)},
        ]
    }
    answer = await world.ok("POST", f"/v1/collections/{collection}:lint", {"rules": rules})
    found = [(one["code"], one["rule_id"], one["other_rule_id"]) for one in answer["findings"]]
    assert ("SHADOWED", "newer", "new") in found
    assert ("OVERLAPPING", "beta", "new") in found
    assert ("UNREACHABLE", "gone", None) in found


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/collections/{c}", None),
        ("PATCH", "/v1/collections/{c}", {"name": "n"}),
        ("GET", "/v1/collections/{c}/draft", None),
        ("PUT", "/v1/collections/{c}/draft", EMPTY),
        ("POST", "/v1/collections/{c}:lint", {}),
        ("POST", "/v1/collections/{c}:publish", {}),
        ("POST", "/v1/collections/{c}:revert", {"revision": 1}),
        ("POST", "/v1/collections/{c}:simulate", {}),
        ("POST", "/v1/collections/{c}:explain", {"context": {"install_id": "i"}}),
        ("GET", "/v1/collections/{c}/revisions", None),
        ("GET", "/v1/collections/{c}/revisions/1", None),
        ("GET", "/v1/devices/{d}", None),
    ],
)
async def test_foreign_things_look_like_unknown_ones(world: World, install_id: str, method: str, path: str, body) -> None:
    await world.ready(manifest("yolo", 1))
    collection = await world.publish({"rules": [], "default": serve(1)})
    await world.resolve(collection, context(install_id))
    await world.settle()
    foreign = await world.call(method, path.format(c=collection, d=install_id), body, caller=user("globex"))
    unknown = await world.call(method, path.format(c="c_nothere2", d="nobody"), body, caller=user("globex"))
    assert foreign.status_code == 404
    assert foreign.content == unknown.content
    readable = await world.call(method, path.format(c=collection, d=install_id), body, caller=user("acme", Scope.READ))
    changes = method in ("PATCH", "PUT") or path.endswith((":publish", ":revert"))
    assert readable.status_code == (403 if changes else 200)


async def test_the_document_lists_every_operation_with_its_policy(world: World) -> None:
    from kit.identity import Kind, Principal

    document = (await world.call("GET", "/internal/openapi.json", caller=Principal(Kind.SERVICE))).json()
    resolve = document["paths"]["/v1/device/collections/{collection}:resolve"]["post"]
    assert resolve["x-latebind-access"] == "device"
    assert {"200", "304", "default"} <= resolve["responses"].keys()
    assert document["paths"]["/v1/device/events"]["post"]["operationId"] == "report_events"
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert len(operations) == 19
    assert all(one["x-latebind-access"] and one["summary"] for one in operations)


async def test_old_history_is_forgotten(world: World, install_id: str) -> None:
    await world.ready(manifest("yolo", 1))
    collection = await world.publish({"rules": [], "default": serve(1)})
    await world.resolve(collection, context(install_id))
    await world.settle()
    world.clock.advance(31 * 86_400)
    await world.fleet.forget()
    device = await world.ok("GET", f"/v1/devices/{install_id}")
    assert device["decisions"] == []
    assert device["collections"][0]["wanted"] is not None
