"""Who may call: every operation against every kind of caller, and foreign ids against unknown ones, byte for byte (SEC-E1)."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pytest

from kit.errors import Problem
from kit.identity import NOBODY, Access, Kind, Principal, Scope, authorize
from kit.web import encode_page_token
from tests.registry.conftest import OPERATOR, SERVICE, Registry, device, put_part, user

CALLERS: dict[str, Principal] = {
    "nobody": NOBODY,
    "device": device(),
    "reader": user("acme", Scope.READ),
    "publisher": user("acme", Scope.PUBLISH),
    "admin": user("acme", Scope.ADMIN),
    "scopeless": Principal(Kind.USER, "key", "acme", frozenset()),
    "operator": OPERATOR,
    "service": SERVICE,
}
FILLED = {"model_id": "digits", "version": "1", "upload_id": "u_x", "key_id": "aaaaaaaaaaaa", "path": "a", "name": "stable"}
UNKNOWN = "0" * 64
#: Lists that are short by nature: at most 32 packages of a version, a key per role.
BOUNDED = {"list_version_packages", "list_signing_keys"}


def document(registry: Registry) -> dict[str, Any]:
    found: dict[str, Any] = registry.part.app._api.state.openapi_document  # type: ignore[attr-defined]
    return found


def operations(registry: Registry) -> list[tuple[str, str, Access]]:
    listed = [
        (method.upper(), path, Access(operation["x-latebind-access"]))
        for path, methods in document(registry)["paths"].items()
        for method, operation in methods.items()
    ]
    internal = [("POST", "/internal/credentials:verify"), ("GET", "/internal/device-token-keys"), ("GET", "/internal/openapi.json")]
    return [*listed, *((method, path, Access.SERVICE) for method, path in internal)]


async def call(client: httpx2.AsyncClient, method: str, path: str, body: Any = None) -> httpx2.Response:
    content = None if body is None and method in {"GET", "HEAD", "DELETE"} else json.dumps(body or {})
    return await client.request(method, path, content=content, headers={"content-type": "application/json"} if content else {})


async def test_every_operation_lets_in_whom_its_policy_names_and_nobody_else(registry: Registry) -> None:
    probed = 0
    for method, path, access in operations(registry):
        filled = re.sub(r"\{(\w+)\}", lambda match: FILLED.get(match[1], UNKNOWN), path)
        for name, caller in CALLERS.items():
            answer = await call(registry.client(caller), method, filled)
            try:
                authorize(caller, access)
                assert answer.status_code not in {401, 403} or access is Access.PUBLIC, (name, method, path, answer.text)
            except Problem as refusal:
                assert answer.status_code == refusal.status, (name, method, path, answer.text)
            assert answer.status_code < 500, (name, method, path, answer.text)
            probed += 1
    assert probed > 300


async def test_a_forged_or_foreign_identity_header_is_refused(registry: Registry) -> None:
    sealed = registry.ports.seal.seal(user("acme")).decode()
    for value in (sealed[:-1] + ("0" if sealed[-1] != "0" else "1"), "x", sealed.split(".")[0], "." + sealed.split(".")[1]):
        answer = await registry.client().get("/v1/models", headers={"latebind-principal": value})
        assert answer.status_code == 401


async def test_a_foreign_id_answers_like_an_unknown_one_on_every_route(registry: Registry) -> None:
    """`acme` owns one of everything; `other` asks for it, then for the same after nobody owns it: a registry where it never was."""
    await registry.create_model()
    await registry.create_version()
    (digest,) = await registry.make_ready(1)
    await registry.acme.put("/v1/models/digits/aliases/stable", json={"version": 1})
    file = await registry.upload(b"graph")
    upload = (await registry.acme.post("/v1/uploads", json={"size": 1})).json()["upload_id"]
    api_key = (await registry.acme.post("/v1/api-keys", json={"scopes": ["read"]})).json()["id"]
    enrolment_key = (await registry.acme.post("/v1/enrolment-keys", json={})).json()["id"]
    owned = {
        "model_id": ("digits", "nobody-has-this"),
        "upload_id": (upload, "u_00000000000000000000000000"),
        "digest": (digest, UNKNOWN),
        "sha256": (file["sha256"], UNKNOWN),
        "account": ("acme", "zz"),
        "version": ("1", "1"),
        "name": ("stable", "stable"),
        "path": ("model.onnx", "model.onnx"),
    }
    bodies = {
        "create_version": await registry.declaration(b"their graph", client=registry.client(user("other"))),
        "put_alias": {"version": 1},
        "complete_upload": {"sha256": UNKNOWN},
    }
    probed = set()
    for path, methods in document(registry)["paths"].items():
        names = re.findall(r"\{(\w+)\}", path)
        if not names or path.startswith("/v1/catalogue"):
            continue
        for method, operation in methods.items():
            caller = registry.client(device("other") if operation["x-latebind-access"] == "device" else user("other"))
            keys = (enrolment_key if "enrolment" in path else api_key, "zzzzzzzzzzzz")
            answers = []
            for side in (0, 1):
                filled = path
                for name in names:
                    filled = filled.replace(f"{{{name}}}", {**owned, "key_id": keys}[name][side])
                filled += "?to=1" if filled.endswith(":compare") else ""
                if operation["operationId"] == "put_upload_part":
                    answers.append(await put_part(caller, filled.rpartition("/")[2], 0, b"x"))
                else:
                    answers.append(await call(caller, method.upper(), filled, bodies.get(operation["operationId"])))
            foreign, unknown = answers
            assert foreign.status_code == unknown.status_code == 404, (method, path, foreign.text, unknown.text)
            assert (foreign.content, sorted(foreign.headers.raw)) == (unknown.content, sorted(unknown.headers.raw)), (method, path)
            probed.add(operation["operationId"])
    assert len(probed) >= 24
    assert (await registry.acme.get("/v1/models/digits/aliases/stable")).json()["version"] == 1
    assert (await registry.acme.get("/v1/api-keys")).json()["items"][1]["revoked_at"] is None


async def test_lists_show_the_own_account_only(registry: Registry) -> None:
    await registry.create_model()
    await registry.acme.post("/v1/enrolment-keys", json={})
    other = registry.client(user("other"))
    assert (await other.get("/v1/models")).json()["items"] == []
    assert (await other.get("/v1/enrolment-keys")).json()["items"] == []
    assert [one["account"] for one in (await other.get("/v1/api-keys")).json()["items"]] == ["other"]


@pytest.mark.parametrize("size", ["0", "-1"])
async def test_every_list_pages(registry: Registry, size: str) -> None:
    await registry.create_model()
    for path, methods in document(registry)["paths"].items():
        operation = methods.get("get")
        if operation is None or not operation["operationId"].startswith("list_") or operation["operationId"] in BOUNDED:
            continue
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert {"page_size", "page_token"} <= names, path
        caller = OPERATOR if operation["x-latebind-access"] == "operator" else user("acme")
        filled = re.sub(r"\{(\w+)\}", lambda match: FILLED.get(match[1], UNKNOWN), path)
        assert (await registry.client(caller).get(filled, params={"page_size": size})).status_code == 400
        for token in (
            "bm9uc2Vuc2U",
            *(encode_page_token(*key) for key in ((10**30,), (-(10**30),), ("\ud800",), ("\ud800", "x"), (True,), (None,))),
        ):
            assert (await registry.client(caller).get(filled, params={"page_token": token})).status_code == 400, (filled, token)


def test_operations_have_names_of_their_own(registry: Registry) -> None:
    names = [operation["operationId"] for methods in document(registry)["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


async def test_text_that_no_store_can_hold_is_malformed(registry: Registry) -> None:
    await registry.create_model()
    good = await registry.declaration()
    bodies: list[tuple[str, str, Any]] = [
        ("POST", "/v1/models", {"model_id": "x", "description": "\ud800"}),
        ("POST", "/v1/models", {"model_id": "x", "labels": {"\ud800": "a"}}),
        ("PATCH", "/v1/models/digits", {"labels": {"a": "\udfff"}}),
        ("POST", "/v1/models/digits/versions", {**good, "notes": "\ud800"}),
        ("POST", "/v1/models/digits/versions", {**good, "params": {"\ud800": {"type": "int", "value": 1}}}),
        ("POST", "/v1/models/digits/versions", {**good, "lineage": {"steps": [{"tool": "x", "options": {"\ud800": 1}}]}}),
        ("POST", "/v1/uploads", {"size": 1, "filename": "\ud800"}),
        ("POST", "/v1/api-keys", {"scopes": ["read"], "name": "\ud800"}),
        ("PUT", "/v1/models/digits/aliases/a", {"version": 1, "why": "\ud800"}),
    ]
    for method, path, body in bodies:
        answer = await call(registry.acme, method, path, body)
        assert answer.status_code in {400, 422}, (path, answer.text)
