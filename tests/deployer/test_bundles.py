"""What bundles are signed for, with which key, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kit.identity import Kind, Principal, Scope, granted
from kit.signing import DerivedSigner, verify_envelope
from services.deployer.bundles import PAYLOAD_TYPE
from tests.deployer.conftest import World, context, manifest

INSTALL = "0f7c4a52-56b1-4b2f-9d3e-6a1f0c9b8e7d"
OLD = {"runtimes": [{"engine": "onnxruntime", "version": "1.10.0", "max_ir": 7, "max_opset": 13}]}


def payload_of(world: World, answer: dict[str, Any]) -> dict[str, Any]:
    """The signed payload, once the account's assignment key holds."""
    signer = DerivedSigner(world.ports.secrets.key("assignment"), "assignment")
    body = verify_envelope(answer["envelope"], PAYLOAD_TYPE, {signer.key_id("acme"): signer.public_key("acme")})
    assert base64.b64decode(answer["envelope"]["payload"]) == body
    parsed: dict[str, Any] = json.loads(body)
    return parsed


@pytest.fixture
async def digests(world: World) -> dict[str, str]:
    """Two variants of one version and another version, by name."""
    small, large = manifest("yolo", 7, "onnx-int8", engine={"ir_version": 7, "opset": {"": 13}, "min_version": "1.5"}), manifest("yolo", 7)
    seven = await world.ready(large, small)
    eight = await world.ready(manifest("yolo", 8))
    await world.alias("yolo", "stable", 7)
    return dict(zip(("large", "small", "eight"), (*seven, *eight), strict=True))


async def test_a_collection_gives_each_kind_of_device_its_package(world: World, digests: dict[str, str]) -> None:
    collection = await world.publish({"rules": [], "default": {"model": "yolo", "alias": "stable"}})
    contexts = [context(INSTALL), context(INSTALL, **OLD), context(INSTALL)]
    answer = await world.ok("POST", "/v1/bundles", {"collections": [{"collection": collection, "contexts": contexts}]})
    payload = payload_of(world, answer)
    assert payload["names"] == [{"name": collection, "revision": 1, "packages": [digests["large"], digests["small"]]}]
    assert (payload["type"], payload["account"]) == ("latebind-bundle-v1", "acme")
    assert [one["digest"] for one in answer["packages"]] == [digests["large"], digests["small"]]
    # The same answer that resolve would give each of them.
    for place, asked in enumerate(contexts[:2]):
        resolved = (await world.resolve(collection, asked)).json()
        assert resolved["package"]["digest"] == payload["names"][0]["packages"][place]


async def test_a_model_is_opened_under_its_own_name(world: World, digests: dict[str, str]) -> None:
    for wish, expected in (
        ({"model_id": "yolo", "alias": "stable"}, [digests["large"], digests["small"]]),
        ({"model_id": "yolo", "version": 8}, [digests["eight"]]),
    ):
        payload = payload_of(world, await world.ok("POST", "/v1/bundles", {"models": [wish]}))
        assert payload["names"] == [{"name": "yolo", "revision": 0, "packages": expected}]


async def test_the_counter_rises_with_time(world: World, digests: dict[str, str]) -> None:
    first = payload_of(world, await world.ok("POST", "/v1/bundles", {"models": [{"model_id": "yolo", "version": 8}]}))
    world.clock.advance(1)
    second = payload_of(world, await world.ok("POST", "/v1/bundles", {"models": [{"model_id": "yolo", "version": 7}]}))
    assert second["counter"] > first["counter"]
    assert second["issued_at"] > first["issued_at"]


async def test_what_cannot_be_bundled(world: World, digests: dict[str, str]) -> None:
    empty = (await world.ok("POST", "/v1/collections", {"name": "empty"}))["id"]
    none = await world.publish({"rules": [], "default": None})
    served = await world.publish({"rules": [], "default": {"model": "yolo", "version": 8}})
    await world.archive("yolo", 7)
    asked = [context(INSTALL)]
    refused = [
        ({}, "CONTEXT_INVALID"),
        ({"models": [{"model_id": "yolo", "version": 8}, {"model_id": "yolo", "alias": "stable"}]}, "CONTEXT_INVALID"),
        ({"models": [{"model_id": "yolo"}]}, "CONTEXT_INVALID"),
        ({"models": [{"model_id": "yolo", "version": 8, "alias": "stable"}]}, "CONTEXT_INVALID"),
        ({"models": [{"model_id": "yolo", "version": 9}]}, "VERSION_NOT_READY"),
        ({"models": [{"model_id": "yolo", "version": 7}]}, "VERSION_NOT_READY"),
        ({"models": [{"model_id": "yolo", "alias": "canary"}]}, "VERSION_NOT_READY"),
        ({"models": [{"model_id": "unknown", "version": 1}]}, "VERSION_NOT_READY"),
        ({"collections": [{"collection": "c_nothing0", "contexts": asked}]}, "COLLECTION_NOT_FOUND"),
        ({"collections": [{"collection": empty, "contexts": asked}]}, "NOTHING_PUBLISHED"),
        ({"collections": [{"collection": none, "contexts": asked}]}, "NO_MATCH"),
        ({"collections": [{"collection": served, "contexts": [context(INSTALL, **OLD)]}]}, "NO_COMPATIBLE_PACKAGE"),
        ({"collections": [{"collection": served, "contexts": []}]}, "MALFORMED_BODY"),
        ({"collections": [{"collection": served, "contexts": [{"device": {}}]}]}, "CONTEXT_INVALID"),
    ]
    for body, code in refused:
        answer = await world.call("POST", "/v1/bundles", body)
        assert answer.json()["code"] == code, (body, answer.text)


async def test_only_who_may_publish_signs_and_only_for_the_own_account(world: World, digests: dict[str, str]) -> None:
    body = {"models": [{"model_id": "yolo", "version": 8}]}
    reader = Principal(Kind.USER, "k", "acme", granted(frozenset({Scope.READ})))
    assert (await world.call("POST", "/v1/bundles", body, caller=reader)).status_code == 403
    device = Principal(Kind.DEVICE, INSTALL, "acme")
    assert (await world.call("POST", "/v1/bundles", body, caller=device)).status_code in {401, 403}
    other = Principal(Kind.USER, "k", "other", granted(frozenset({Scope.ADMIN})))
    assert (await world.call("POST", "/v1/bundles", body, caller=other)).json()["code"] == "VERSION_NOT_READY"
