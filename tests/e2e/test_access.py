"""Every operation with every kind of wrong credential: nothing leaks, and a foreign id answers like an unknown one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.world import World, eventually
from tests.models import onnx_add
from tests.server import ServerProcess

UNKNOWN_CODE = "c_aaaaaaaa"


class Scene:
    """Two accounts on one server; `ids` are those of the first one, by name of the path parameter."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self.anybody = httpx2.Client(base_url=server.url, timeout=30)
        self.one, self.two = World(server, "acme"), World(server, "globex")
        self.document = server.client().get("/openapi.json").json()
        version = self.one.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
        collection = self.one.collection({"rules": [], "default": {"model": "adder", "version": version}})
        enrolment = self.one.enrolment_key()
        with self.one.device(folder / "device", enrolment) as device:
            with device.open(collection) as handle:
                digest = handle.info.package
            install = device.install_id
            seen = eventually(lambda: self.one.rows("/v1/devices"))
        self.install, self.token = self.one.device_token(enrolment)
        _, self.foreign_token = self.two.device_token(self.two.enrolment_key())
        package = self.one.rows("/v1/models/adder/versions/1/packages")[0]
        manifest = self.one.client.get(f"/v1/models/adder/versions/{version}/packages").json()
        sha256 = str(package["files"][0]["sha256"]) if "files" in package else json.dumps(manifest)
        self.one.ok(self.one.client.put("/v1/models/adder/aliases/stable", json={"version": version, "why": "test"}))
        self.ids: dict[str, str] = {
            "account": "acme",
            "key_id": str(self.one.ok(self.one.client.post("/v1/api-keys", json={"scopes": ["read"]}))["id"]),
            "source_id": "s_none",
            "entry_id": "none",
            "collection": collection,
            "revision": "1",
            "decision_id": str(seen[0]["collections"][0]["decision_id"]),
            "sha256": sha256,
            "digest": str(digest),
            "install_id": install,
            "job_id": str(self.one.rows("/v1/jobs")[0]["job_id"]),
            "model_id": "adder",
            "name": "stable",
            "version": str(version),
            "path": "model.onnx",
            "upload_id": str(self.one.ok(self.one.client.post("/v1/uploads", json={"size": 10}))["upload_id"]),
        }
        self.keys = self._keys()

    def _keys(self) -> dict[str, str]:
        """Credentials that must not open a door, by what is wrong with them."""
        client = self.one.client
        soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        expiring = self.one.ok(client.post("/v1/api-keys", json={"scopes": ["admin"], "expires_at": soon}))["key"]
        revoked = self.one.ok(client.post("/v1/api-keys", json={"scopes": ["admin"]}))
        self.one.ok(client.post(f"/v1/api-keys/{revoked['id']}:revoke", json={}))
        time.sleep(1.5)
        good = self.one.key
        return {
            "none": "",
            "malformed": "lbk_x",
            "wrong checksum": good[:-1] + ("0" if good[-1] != "0" else "1"),
            "unknown": "lbk_aaaaaaaaaaaa_" + "a" * 43 + "_000000",
            "expired": str(expiring),
            "revoked": str(revoked["key"]),
            "token of nobody": "e30.e30.e30",
            "token without signature": ".".join(self.token.split(".")[:2]) + ".",
            "token with another algorithm": "eyJhbGciOiJub25lIn0." + self.token.split(".")[1] + ".",
        }

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                yield method.upper(), path, operation

    def filled(self, path: str, ids: dict[str, str]) -> str:
        return re.sub(r"{(\w+)}", lambda found: ids[found.group(1)], path)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    with ServerProcess(folder / "data", environment={"LATEBIND_GATEWAY_CREDENTIAL_CACHE_S": "0"}) as server:
        yield Scene(server, folder)


def send(scene: Scene, method: str, path: str, credential: str) -> httpx2.Response:
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    body: dict[str, Any] = {} if method in {"GET", "HEAD", "DELETE"} else {"json": {}}
    return scene.anybody.request(method, path, headers=headers, **body)


def test_no_operation_opens_to_a_credential_that_is_none(scene: Scene) -> None:
    wrong = []
    count = 0
    for method, path, operation in scene.operations():
        access = operation["x-latebind-access"]
        for what, credential in scene.keys.items():
            if access == "public" and what == "none":
                continue
            answer = send(scene, method, scene.filled(path, scene.ids), credential)
            count += 1
            if answer.status_code != 401 or "set-cookie" in answer.headers:
                wrong.append(f"{method} {path} with {what}: {answer.status_code}")
            elif method != "HEAD" and answer.json()["code"] != "UNAUTHENTICATED":
                wrong.append(f"{method} {path} with {what}: {answer.text}")
    print(f"{count} requests")
    assert wrong == []


def test_no_operation_opens_to_the_wrong_kind_or_scope(scene: Scene) -> None:
    reader = str(scene.one.ok(scene.one.client.post("/v1/api-keys", json={"scopes": ["read"]}))["key"])
    publisher = str(scene.one.ok(scene.one.client.post("/v1/api-keys", json={"scopes": ["publish"]}))["key"])
    admin, operator, device = scene.one.key, scene.server.operator_key, scene.token
    refused = {
        "device": {"read key": reader, "admin key": admin, "operator key": operator},
        "read": {"device token": device, "operator key": operator},
        "publish": {"device token": device, "operator key": operator, "read key": reader},
        "admin": {"device token": device, "operator key": operator, "read key": reader, "publish key": publisher},
        "operator": {"device token": device, "read key": reader, "publish key": publisher, "admin key": admin},
        "operator_or_admin": {"device token": device, "read key": reader, "publish key": publisher},
    }
    wrong = []
    for method, path, operation in scene.operations():
        for what, credential in refused.get(operation["x-latebind-access"], {}).items():
            answer = send(scene, method, scene.filled(path, scene.ids), credential)
            if answer.status_code != 403:
                wrong.append(f"{method} {path} with {what}: {answer.status_code} {answer.text[:200]}")
    assert wrong == []


def unknown(ids: dict[str, str]) -> dict[str, str]:
    """The same ids with the last characters changed: well-formed, and nobody's."""

    def changed(text: str) -> str:
        return text[:-3] + ("aaa" if not text.endswith("aaa") else "bbb") if len(text) > 5 else text

    return {name: text if name in {"revision", "version", "path"} else changed(text) for name, text in ids.items()} | {
        "model_id": "noone",
        "name": "nothing",
    }


def shape(answer: httpx2.Response, ids: dict[str, str]) -> tuple[int, str, list[str]]:
    """Status, body and header names of an answer, with the ids of the request and what differs per request taken out."""
    text = answer.text
    for value in sorted(ids.values(), key=len, reverse=True):
        if len(value) > 3:
            text = text.replace(value, "ID")
    text = re.sub(r"urn:latebind:request:[\w.-]+", "REQUEST", text)
    return answer.status_code, text, sorted(name for name in answer.headers if name not in {"date", "request-id"})


def test_a_foreign_id_answers_like_an_unknown_one(scene: Scene) -> None:
    wrong = []
    other = unknown(scene.ids)
    for method, path, operation in scene.operations():
        access = operation["x-latebind-access"]
        if "{" not in path or access in {"public", "operator"} or path.startswith("/v1/catalogue"):
            continue
        credential = scene.foreign_token if access == "device" else scene.two.key
        foreign = send(scene, method, scene.filled(path, scene.ids), credential)
        nobodys = send(scene, method, scene.filled(path, other), credential)
        if shape(foreign, scene.ids) != shape(nobodys, other) or foreign.status_code < 400:
            wrong.append(f"{method} {path}: {foreign.status_code} {foreign.text[:300]} | {nobodys.status_code} {nobodys.text[:300]}")
    assert wrong == []


def test_nothing_of_the_first_account_shows_in_lists_of_the_second(scene: Scene) -> None:
    words = [scene.ids["collection"], scene.ids["job_id"], scene.ids["install_id"], scene.ids["digest"], "adder", "acme"]
    for method, path, operation in scene.operations():
        if method != "GET" or "{" in path or operation["x-latebind-access"] not in {"read", "operator_or_admin"}:
            continue
        answer = send(scene, "GET", path, scene.two.key)
        assert not [word for word in words if word in answer.text], f"{path}: {answer.text[:300]}"
