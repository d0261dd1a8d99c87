"""resolve and update states, over the real ASGI application."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from datetime import UTC, datetime

import pytest

from kit.clock import FakeClock
from kit.signing import DerivedSigner, verify_envelope
from services.deployer.resolver import ASSIGNMENT_TYPE
from tests.deployer.conftest import NONCE, World, context, manifest

RULES = {
    "rules": [
        {
            "id": "flagships",
            "when": {"attr": "device.soc", "op": "eq", "value": "tensor-g4"},
            "serve": {"model": "yolo", "version": 2},
        }
    ],
    "default": {"model": "yolo", "alias": "stable"},
}


async def yolo(world: World) -> tuple[str, str, str]:
    """Two versions, `stable` on the first, published rules: (collection, digest 1, digest 2)."""
    (one,) = await world.ready(manifest("yolo", 1))
    (two,) = await world.ready(manifest("yolo", 2))
    await world.alias("yolo", "stable", 1)
    return await world.publish(RULES), one, two


async def test_answer_is_the_package_with_a_signed_assignment(world: World, install_id: str) -> None:
    collection, _, digest = await yolo(world)
    response = await world.resolve(collection, context(install_id))
    assert response.status_code == 200
    answer = response.json()
    assert answer["reason"] == "TARGETING_MATCH"
    assert answer["rule_id"] == "flagships"
    assert answer["revision"] == 1
    assert answer["package"] == {
        "digest": digest,
        "model_id": "yolo",
        "version": 2,
        "variant": "onnx-fp32",
        "size": 2100,
        "manifest_url": f"/v1/device/packages/{digest}/manifest",
        "signature_url": f"/v1/device/packages/{digest}/signature",
    }
    assert answer["poll"] == {"after_s": 3600, "spread_s": 600}
    signer = DerivedSigner(world.ports.secrets.key("assignment"), "assignment")
    signed = verify_envelope(answer["assignment"], ASSIGNMENT_TYPE, {signer.key_id("acme"): signer.public_key("acme")})
    payload = json.loads(signed)
    assert payload == {
        "type": "latebind-assignment-v1",
        "account": "acme",
        "install_id": install_id,
        "collection": collection,
        "revision": 1,
        "package": digest,
        "counter": payload["counter"],
        "nonce": NONCE,
        "issued_at": "2026-11-22T10:00:00Z",
        "expires_at": "2026-11-23T10:00:00Z",
    }
    assert base64.b64decode(answer["assignment"]["payload"]) == signed


async def test_counter_rises_with_each_change_and_never_falls(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    clock = world.clock
    assert isinstance(clock, FakeClock)

    async def counter() -> int:
        answer = (await world.resolve(collection, context(install_id))).json()
        return int(json.loads(base64.b64decode(answer["assignment"]["payload"]))["counter"])

    counters = [await counter(), await counter()]
    await world.alias("yolo", "stable", 2)
    counters.append(await counter())
    clock.set_now(datetime(2020, 1, 1, tzinfo=UTC))
    counters.append(await counter())
    await world.ok("POST", f"/v1/collections/{collection}:revert", {"revision": 1})
    counters.append(await counter())
    assert counters[0] == counters[1] < counters[2] == counters[3] < counters[4]


async def test_unchanged_device_gets_304_and_keeps_its_etag(world: World, install_id: str) -> None:
    collection, _, digest = await yolo(world)
    first = await world.resolve(collection, context(install_id))
    etag = first.headers["etag"]
    assert etag.endswith(f'.{digest[:16]}"')
    second = await world.resolve(collection, context(install_id), etag=etag, nonce=None)
    assert second.status_code == 304
    assert second.content == b""
    assert second.headers["etag"] == etag
    assert second.headers["latebind-poll"] == "after=3600; spread=600"


async def test_changed_context_with_the_same_package_gets_304_with_a_new_etag(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    etag = (await world.resolve(collection, context(install_id))).headers["etag"]
    other = await world.resolve(collection, context(install_id, locale="fr-FR"), etag=etag)
    assert other.status_code == 304
    assert other.headers["etag"] != etag
    assert (await world.resolve(collection, context(install_id, locale="fr-FR"), etag=other.headers["etag"])).status_code == 304


async def test_alias_move_reaches_the_device_at_its_next_request(world: World, install_id: str) -> None:
    collection, one, two = await yolo(world)
    old = context(install_id, device={"soc": "sm8150"})
    first = await world.resolve(collection, old)
    assert first.json()["package"]["digest"] == one
    assert first.json()["reason"] == "DEFAULT"
    assert first.json()["rule_id"] is None
    await world.alias("yolo", "stable", 2)
    second = await world.resolve(collection, old, etag=first.headers["etag"])
    assert second.status_code == 200
    assert second.json()["package"]["digest"] == two


async def test_archived_version_is_not_served_any_more(world: World, install_id: str) -> None:
    collection, one, two = await yolo(world)
    first = await world.resolve(collection, context(install_id))
    assert first.json()["package"]["digest"] == two
    await world.archive("yolo", 2)
    second = await world.resolve(collection, context(install_id), etag=first.headers["etag"])
    assert second.json()["package"]["digest"] == one
    await world.archive("yolo", 1)
    third = await world.resolve(collection, context(install_id))
    assert third.status_code == 409
    assert {entry["condition"] for entry in third.json()["packages"]} == {"archived"}


async def test_time_windows_open_and_close_without_an_event(world: World, install_id: str) -> None:
    await world.ready(manifest("yolo", 1))
    await world.ready(manifest("yolo", 2))
    window = {"from": "2026-11-22T11:00:00Z", "until": "2026-11-22T12:00:00Z"}
    rules = {
        "rules": [{"id": "hour", "active": window, "serve": {"model": "yolo", "version": 2}}],
        "default": {"model": "yolo", "version": 1},
    }
    collection = await world.publish(rules)
    clock = world.clock
    assert isinstance(clock, FakeClock)
    etag, versions, statuses = None, [], []
    for _ in range(5):
        response = await world.resolve(collection, context(install_id), etag=etag)
        statuses.append(response.status_code)
        etag = response.headers["etag"]
        versions.append(response.json()["package"]["version"] if response.status_code == 200 else None)
        clock.advance(30 * 60)
    assert statuses == [200, 304, 200, 304, 200]
    assert versions == [1, None, 2, None, 1]


async def test_country_of_the_edge_wins_over_the_device(world: World, install_id: str) -> None:
    await world.ready(manifest("yolo", 1))
    rules = {"rules": [{"id": "fr", "when": {"attr": "country", "op": "eq", "value": "FR"}, "serve": {"model": "yolo", "version": 1}}]}
    collection = await world.publish(rules)
    assert (await world.resolve(collection, context(install_id))).status_code == 404
    served = await world.resolve(collection, context(install_id), country="FR")
    assert served.status_code == 200
    # The country is part of what the ETag stands for.
    gone = await world.resolve(collection, context(install_id), country="US", etag=served.headers["etag"])
    assert gone.status_code == 404
    await world.settle()
    decision = await world.ok("GET", f"/v1/decisions/{served.json()['decision_id']}")
    assert decision["context"]["country"] == "FR"


async def test_refusals_say_why_and_are_recorded_once(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    old = context(install_id, runtimes=[{"engine": "onnxruntime", "version": "1.15.0"}])
    first = await world.resolve(collection, old)
    assert first.status_code == 409
    problem = first.json()
    assert problem["code"] == problem["reason"] == "NO_COMPATIBLE_PACKAGE"
    assert problem["revision"] == 1
    assert problem["poll"] == {"after_s": 3600, "spread_s": 600}
    assert problem["packages"] == [
        {"model_id": "yolo", "version": version, "variant": "onnx-fp32", "condition": "min_version", "needed": "1.18", "reported": "1.15.0"}
        for version in (2, 1)
    ]
    again = await world.resolve(collection, old)
    assert again.json()["decision_id"] == problem["decision_id"]
    other = await world.resolve(collection, {**old, "locale": "en"})
    assert other.json()["decision_id"] != problem["decision_id"]
    await world.settle()
    assert (await world.ok("GET", f"/v1/decisions/{problem['decision_id']}"))["answer"]["packages"] == problem["packages"]
    assert len((await world.ok("GET", f"/v1/devices/{install_id}"))["decisions"]) == 2


async def test_no_rule_and_no_default_is_no_match(world: World, install_id: str) -> None:
    collection = await world.publish({"rules": []})
    response = await world.resolve(collection, context(install_id))
    assert response.status_code == 404
    assert response.json()["code"] == "NO_MATCH"
    assert response.json()["decision_id"].startswith("d_")


async def test_unknown_unpublished_and_foreign_collections_look_alike(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    draft = (await world.ok("POST", "/v1/collections", {"name": "draft only"}))["id"]
    answers = [
        await world.resolve("c_nothere2", context(install_id)),
        await world.resolve(draft, context(install_id)),
        await world.resolve(collection, context(install_id), account="globex"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["code"] == "COLLECTION_NOT_FOUND"


async def test_decision_can_be_looked_up_afterwards(world: World, install_id: str) -> None:
    collection, _, digest = await yolo(world)
    answer = (await world.resolve(collection, context(install_id, installed=[{"package": "sha256:" + "0" * 64}], npu_tops=9))).json()
    await world.settle()
    decision = await world.ok("GET", f"/v1/decisions/{answer['decision_id']}")
    assert decision["install_id"] == install_id
    assert decision["collection"] == collection
    assert decision["answer"]["package"]["digest"] == digest
    assert "assignment" not in decision["answer"]
    assert decision["context"]["device"]["soc"] == "tensor-g4"
    assert decision["context"]["attributes"] == {"npu_tops": 9}
    foreign = await world.call("GET", f"/v1/decisions/{answer['decision_id']}", caller=_foreign())
    unknown = await world.call("GET", "/v1/decisions/d_nothing", caller=_foreign())
    assert foreign.status_code == 404
    assert foreign.content == unknown.content


def _foreign():
    from tests.conftest import user

    return user("globex")


async def test_resolve_sends_no_statement(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    statements: list[str] = []
    stop = world.ports.database.on_statement(statements.append)
    first = await world.resolve(collection, context(install_id))
    await world.resolve(collection, context(install_id), etag=first.headers["etag"])
    await world.resolve(collection, context(install_id, locale="x"), etag=first.headers["etag"])
    await world.resolve(collection, context(install_id, runtimes=[]))
    await world.resolve("c_nothere2", context(install_id))
    stop()
    assert statements == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"install_id":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000,
        b'{"install_id":"someone","device":[]}',
        b'{"install_id":"someone","attributes":{"a":{"b":1}}}',
        json.dumps({"install_id": "someone", "attributes": {str(n): n for n in range(65)}}).encode(),
        json.dumps({"install_id": "someone", "attributes": {"a": "x" * 1025}}).encode(),
    ],
)
async def test_bad_contexts_are_refused(world: World, body: bytes) -> None:
    collection, _, _ = await yolo(world)
    response = await world.resolve(collection, body)
    assert response.status_code == 400, response.text
    assert response.json()["code"] == "CONTEXT_INVALID"
    assert response.headers["content-type"] == "application/problem+json"


async def test_big_bodies_are_refused(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    response = await world.resolve(collection, b" " * (64 * 1024 + 1))
    assert response.status_code == 413


async def test_install_of_the_context_must_be_the_token_s(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    response = await world.resolve(collection, context(install_id), install_id=str(uuid.uuid4()))
    assert response.status_code == 403
    assert response.json()["code"] == "INSTALL_MISMATCH"


@pytest.mark.parametrize("nonce", [None, "short", "x" * 65, "with a space in it"])
async def test_a_new_answer_needs_a_nonce(world: World, install_id: str, nonce: str | None) -> None:
    collection, _, _ = await yolo(world)
    response = await world.resolve(collection, context(install_id), nonce=nonce)
    assert response.status_code == 400
    assert response.json()["code"] == "NONCE_INVALID"


async def test_people_may_not_resolve_and_nobody_neither(world: World) -> None:
    collection, _, _ = await yolo(world)
    path = f"/v1/device/collections/{collection}:resolve"
    assert (await world.call("POST", path, {})).status_code == 403
    response = await world._client.post(path, content=b"{}")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    forged = await world._client.post(path, content=b"{}", headers={"latebind-principal": "eyJ9.00"})
    assert forged.status_code == 401


async def test_other_paths_and_methods(world: World, install_id: str) -> None:
    from kit.identity import Kind, Principal

    device = Principal(Kind.DEVICE, install_id, "acme")
    assert (await world.call("GET", "/v1/device/collections/c_x:resolve", caller=device)).status_code == 405
    assert (await world.call("POST", "/v1/device/elsewhere", {}, caller=device)).status_code == 404


async def test_update_states_become_history(world: World, install_id: str) -> None:
    collection, _, digest = await yolo(world)
    await world.resolve(collection, context(install_id))

    def event(state: str, second: int, **more):
        at = f"2026-11-22T10:00:{second:02d}Z"
        return {"event_id": str(uuid.uuid4()), "collection": collection, "package": digest, "state": state, "at": at, **more}

    batch = [event("downloading", 1), event("running", 2), event("failed", 3, code="LOAD_FAILED", detail="no memory", package="f" * 64)]
    assert (await world.report(install_id, {"events": batch})).status_code == 202
    assert (await world.report(install_id, {"events": batch})).status_code == 202  # the answer may have been lost
    await world.settle()
    device = await world.ok("GET", f"/v1/devices/{install_id}")
    (state,) = device["collections"]
    assert state["wanted"] == digest
    assert state["running"] == digest
    assert state["state"] == "failed"
    assert state["code"] == "LOAD_FAILED"
    assert [entry["state"] for entry in device["events"]] == ["failed", "running", "downloading"]
    assert len(device["decisions"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        {"events": [{"event_id": "1"}]},
        {"events": [{"event_id": "1", "collection": "c", "state": "exploded", "at": "2026-11-22T10:00:00Z"}]},
        {"events": [{"event_id": "1", "collection": "c", "state": "running", "at": "yesterday"}]},
        {"events": [{"event_id": "1", "collection": "c", "state": "running", "at": "2026-11-22T10:00:00Z", "package": "abc"}]},
        b'{"events":' + b"[" * 10_000,
    ],
)
async def test_bad_reports_are_refused(world: World, install_id: str, body) -> None:
    response = await world.report(install_id, body)
    assert response.status_code == 400
    assert response.json()["code"] == "REPORT_INVALID"


async def test_last_seen_is_written_in_bulk(world: World, install_id: str) -> None:
    collection, _, _ = await yolo(world)
    clock = world.clock
    assert isinstance(clock, FakeClock)
    etag = (await world.resolve(collection, context(install_id))).headers["etag"]
    await world.settle()
    clock.advance(60)
    assert (await world.resolve(collection, context(install_id), etag=etag)).status_code == 304
    clock.advance(60)
    changed = await world.resolve(collection, context(install_id, locale="fr-FR"), etag=etag)
    assert changed.status_code == 304
    statements: list[str] = []
    stop = world.ports.database.on_statement(statements.append)
    await world.fleet.write_sightings()
    await world.fleet.write_sightings()
    stop()
    asked = [one for one in statements if "set_config" not in one and "pg_advisory" not in one]  # how a transaction begins
    assert 0 < len(asked) <= 4
    device = await world.ok("GET", f"/v1/devices/{install_id}")
    assert device["first_seen_at"] == "2026-11-22T10:00:00Z"
    assert device["last_seen_at"] == "2026-11-22T10:02:00Z"
    assert device["context"]["locale"] == "fr-FR"


async def test_many_devices_at_once(world: World) -> None:
    collection, _, _ = await yolo(world)
    installs = [str(uuid.UUID(int=number, version=4)) for number in range(60)]
    answers = await asyncio.gather(*(world.resolve(collection, context(one)) for one in installs))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["decision_id"] for answer in answers}) == len(installs)
    await world.settle()
    page = await world.ok("GET", "/v1/devices?page_size=25")
    seen = [item["install_id"] for item in page["items"]]
    while page["next_page_token"]:
        page = await world.ok("GET", f"/v1/devices?page_size=25&page_token={page['next_page_token']}")
        seen += [item["install_id"] for item in page["items"]]
    assert seen == sorted(installs)
