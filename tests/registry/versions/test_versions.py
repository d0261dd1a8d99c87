"""Versions from draft to archive, the contract at commit, packages, and the news from the packager."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

from kit.clock import rfc3339
from latebind_proto import events_pb2
from tests.registry.conftest import Registry, code, device, user

VERSIONS = "/v1/models/digits/versions"
PARAMS = {"S": {"type": "int", "value": 13}, "labels": {"type": "file", "value": "coco.labels"}}


async def labels(registry: Registry, text: bytes = b"cat\ndog\n") -> list[dict[str, Any]]:
    return [{"path": "coco.labels", **await registry.upload(text)}]


async def test_a_draft_is_what_was_declared(registry: Registry) -> None:
    await registry.create_model()
    declaration = await registry.declaration(params=PARAMS, files=await labels(registry), requires={"ram_mb": 64}, notes="first")
    answer = await registry.acme.post(VERSIONS, json=declaration)
    assert answer.status_code == 201
    body = answer.json()
    assert (body["model_id"], body["version"], body["state"], body["notes"]) == ("digits", 1, "draft", "first")
    assert body["declaration"] == {**declaration, "golden": {}, "lineage": {"source_sha256": [], "steps": []}}
    assert (body["job_id"], body["problem"], body["packages"], body["committed_at"]) == (None, None, [], None)
    assert answer.headers["etag"] == '"1"'
    read = await registry.acme.get(f"{VERSIONS}/1")
    assert (read.json(), read.headers["etag"]) == (body, '"1"')


async def test_files_must_be_uploaded_by_this_account_with_the_stated_size(registry: Registry) -> None:
    await registry.create_model()
    foreign = await registry.upload(b"theirs", registry.client(user("other")))
    own = await registry.upload(b"ours")
    for file in (foreign, {"sha256": "0" * 64, "size": 1}, {**own, "size": 5}):
        body = {"variants": [{"files": [{"path": "model.onnx", **file}]}]}
        answer = await registry.acme.post(VERSIONS, json=body)
        assert code(answer) == (400, "FILE_NOT_UPLOADED")
        assert answer.json()["errors"][0]["code"] == ("WRONG_SIZE" if file["sha256"] == own["sha256"] else "NOT_UPLOADED")
        golden = {"golden": {"input": {"path": "sample.npz", **file}}, "variants": [{"files": [{"path": "model.onnx", **own}]}]}
        errors = (await registry.acme.post(VERSIONS, json=golden)).json()["errors"]
        assert [one["field"].startswith("golden.input") for one in errors] == [True], errors
    assert (await registry.acme.get(VERSIONS)).json()["items"] == []


async def test_a_wrong_declaration_is_refused_whole(registry: Registry) -> None:
    await registry.create_model()
    good = await registry.declaration()
    for wrong in (
        {"extra": 1},
        {"params": {"S": {"type": "int", "value": 1, "unit": "m"}}},
        {"variants": "x"},
        {"params": {"S": {"type": "size", "value": 1}}},
    ):
        assert code(await registry.acme.post(VERSIONS, json={**good, **wrong})) == (422, "MALFORMED_BODY")
    answer = await registry.acme.post(VERSIONS, json={**good, "params": {"S": {"type": "int", "value": "13"}}})
    assert code(answer) == (400, "DECLARATION_INVALID")
    assert answer.json()["errors"] == [
        {"field": "params.S.value", "code": "WRONG_TYPE", "detail": "the value is not of type int; nothing is converted"}
    ]
    deep = b'{"params": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    assert code(await registry.acme.post(VERSIONS, content=deep, headers={"content-type": "application/json"})) == (422, "MALFORMED_BODY")
    for value in (float("nan"), {"a": float("inf")}, ["\ud800"], {"\ud800": 1}):  # refused as it is, never mended
        text = json.dumps({**good, "params": {"S": {"type": "json", "value": value}}})
        answer = await registry.acme.post(VERSIONS, content=text, headers={"content-type": "application/json"})
        assert (code(answer), answer.json()["errors"][0]["code"]) == ((400, "DECLARATION_INVALID"), "NOT_JSON")


async def test_a_draft_changes_and_a_committed_version_never_does(registry: Registry) -> None:
    await registry.create_model()
    tensors = [{"name": "x", "dtype": "float32", "shape": [1, 2]}]
    await registry.create_version(inputs=tensors, params={"S": {"type": "json", "value": None}})
    one = f"{VERSIONS}/1"
    changed = await registry.acme.patch(one, json={"notes": "better", "inputs": None}, headers={"if-match": '"1"'})
    assert changed.status_code == 200
    assert changed.json()["declaration"]["notes"] == "better"
    assert "inputs" not in changed.json()["declaration"]
    assert changed.json()["declaration"]["params"] == {"S": {"type": "json", "value": None}}
    assert changed.headers["etag"] == '"2"'
    assert code(await registry.acme.patch(one, json={"notes": "x"}, headers={"if-match": '"1"'})) == (412, "PRECONDITION_FAILED")
    assert code(await registry.acme.patch(one, json={"params": {"S": {"type": "int", "value": "x"}}})) == (400, "DECLARATION_INVALID")
    assert code(await registry.acme.post(f"{one}:commit", headers={"if-match": '"1"'})) == (412, "PRECONDITION_FAILED")
    await registry.commit(1)
    answer = await registry.acme.patch(one, json={"notes": "late"})
    assert (code(answer), answer.json()["state"]) == ((409, "VERSION_NOT_DRAFT"), "packaging")


async def test_commit_orders_the_packages_in_the_same_transaction(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version(params=PARAMS, files=await labels(registry))
    answers = await asyncio.gather(*(registry.acme.post(f"{VERSIONS}/1:commit") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["job_id"] for answer in answers}
    assert answers[0].json() == {"model_id": "digits", "version": 1, "state": "packaging", "job_id": job_id}
    (record,) = await registry.told("version.committed")
    assert record.key == "acme/digits"
    assert record.headers["account"] == "acme"
    message = events_pb2.VersionCommitted.FromString(record.value)
    version = (await registry.acme.get(f"{VERSIONS}/1")).json()
    assert (message.account, message.model_id, message.version, message.job_id) == ("acme", "digits", 1, job_id)
    assert message.created_at == version["committed_at"] == rfc3339(registry.clock.now())
    assert json.loads(message.declaration_json) == version["declaration"]


async def test_packages_make_a_version_ready_and_tell_the_deployer(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version(params=PARAMS, files=await labels(registry))
    (digest,) = await registry.make_ready(1)
    version = (await registry.acme.get(f"{VERSIONS}/1")).json()
    assert (version["state"], version["packages"]) == ("ready", [{"digest": digest, "variant": "onnx-fp32", "size": 13}])
    (record,) = await registry.told("version.readied")
    message = events_pb2.VersionReadied.FromString(record.value)
    assert (message.account, message.model_id, message.version, message.packages[0].digest) == ("acme", "digits", 1, digest)
    (package,) = (await registry.acme.get(f"{VERSIONS}/1/packages")).json()["items"]
    manifest = base64.b64decode(package["manifest_base64"])
    assert hashlib.sha256(manifest).hexdigest() == package["digest"] == digest
    assert json.loads(manifest) == package["manifest"]
    assert manifest == message.packages[0].manifest_json
    assert package["signature"] == json.loads(message.packages[0].envelope_json)
    assert [file["path"] for file in package["files"]] == ["model.onnx", "coco.labels"]
    link = await registry.acme.get(package["files"][1]["url"])
    assert (link.status_code, link.headers["location"].startswith("/blobs/acme/")) == (307, True)
    assert code(await registry.acme.get(f"/v1/packages/{digest}/files/other")) == (404, "PACKAGE_NOT_FOUND")
    assert code(await registry.client(user("other")).get(package["files"][1]["url"])) == (404, "PACKAGE_NOT_FOUND")
    assert (await registry.acme.post(f"{VERSIONS}/1:commit")).json()["state"] == "ready"  # a repeat orders nothing
    assert await registry.told("version.committed") != []
    assert await registry.told("version.committed") == []


async def test_news_that_come_twice_or_too_late_have_no_effect(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version()
    job_id = await registry.commit(1)
    declaration = (await registry.acme.get(f"{VERSIONS}/1")).json()["declaration"]
    package = registry.package("acme", "digits", 1, declaration["variants"][0], declaration, {})
    built = events_pb2.PackageBuilt(account="acme", model_id="digits", version=1, job_id=job_id, packages=[package]).SerializeToString()
    failed = events_pb2.PackageFailed(account="acme", model_id="digits", version=1, job_id=job_id, code="X", detail="x").SerializeToString()
    other_job = events_pb2.PackageFailed(account="acme", model_id="digits", version=1, job_id="j_other", code="X").SerializeToString()
    unknown = events_pb2.PackageFailed(account="acme", model_id="nothing", version=1, job_id=job_id, code="X").SerializeToString()
    await registry.tell("package.failed", other_job)
    await registry.tell("package.failed", unknown)
    await registry.take_news()
    await registry.tell("package.built", built, event_id="same")
    await registry.tell("package.built", built, event_id="same")
    await registry.take_news()
    await registry.tell("package.built", built)
    await registry.tell("package.failed", failed)
    await registry.take_news()
    version = (await registry.acme.get(f"{VERSIONS}/1")).json()
    assert (version["state"], len(version["packages"])) == ("ready", 1)
    assert len(await registry.told("version.readied")) == 1


async def test_a_failed_version_says_why(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version()
    job_id = await registry.commit(1)
    message = events_pb2.PackageFailed(
        account="acme", model_id="digits", version=1, job_id=job_id, code="MODEL_TRUNCATED", detail="the file ends early"
    )
    await registry.tell("package.failed", message.SerializeToString())
    await registry.take_news()
    version = (await registry.acme.get(f"{VERSIONS}/1")).json()
    assert (version["state"], version["problem"]) == ("failed", {"code": "MODEL_TRUNCATED", "detail": "the file ends early"})
    assert code(await registry.acme.post(f"{VERSIONS}/1:commit")) == (409, "VERSION_NOT_DRAFT")
    assert await registry.told("version.readied") == []


async def test_packages_that_do_not_fit_fail_the_version(registry: Registry) -> None:
    await registry.create_model()
    for number, spoil in enumerate(("digest", "other", "none"), start=1):
        await registry.create_version()
        job_id = await registry.commit(number)
        declaration = (await registry.acme.get(f"{VERSIONS}/{number}")).json()["declaration"]
        package = registry.package("acme", "digits", number if spoil != "other" else 99, declaration["variants"][0], declaration, {})
        if spoil == "digest":
            package.digest = "0" * 64
        packages = [] if spoil == "none" else [package]
        built = events_pb2.PackageBuilt(account="acme", model_id="digits", version=number, job_id=job_id, packages=packages)
        await registry.tell("package.built", built.SerializeToString())
        await registry.take_news()
        version = (await registry.acme.get(f"{VERSIONS}/{number}")).json()
        assert (version["state"], version["problem"]["code"]) == ("failed", "PACKAGE_INVALID")
    assert await registry.told("version.readied") == []


async def test_the_contract_is_held_at_commit(registry: Registry) -> None:
    await registry.create_model()
    files = await labels(registry)
    await registry.create_version(params=PARAMS, files=files)
    assert (await registry.acme.get("/v1/models/digits")).json()["contract"] is None  # a draft binds nothing
    await registry.commit(1)
    assert (await registry.acme.get("/v1/models/digits")).json()["contract"] == {"S": "int", "labels": "file"}
    broken = {"S": {"type": "float", "value": 13}, "B": {"type": "int", "value": 5}}
    await registry.create_version(params=broken)
    await registry.told("version.committed")
    answer = await registry.acme.post(f"{VERSIONS}/2:commit")
    assert code(answer) == (409, "PARAMETER_CONTRACT_BROKEN")
    assert answer.json()["parameters"] == [
        {"name": "B", "change": "added", "old_type": None, "new_type": "int"},
        {"name": "S", "change": "type", "old_type": "int", "new_type": "float"},
        {"name": "labels", "change": "missing", "old_type": "file", "new_type": None},
    ]
    assert await registry.told("version.committed") == []
    assert (await registry.acme.get(f"{VERSIONS}/2")).json()["state"] == "draft"
    other_values = {"S": {"type": "int", "value": 19}, "labels": {"type": "file", "value": "coco.labels"}}
    mended = await registry.acme.patch(f"{VERSIONS}/2", json={"params": other_values, "files": await labels(registry, b"bird\n")})
    assert mended.status_code == 200
    await registry.commit(2)


async def test_a_version_that_failed_or_was_a_draft_binds_nothing_and_an_archived_one_does(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version(params={"a": {"type": "int", "value": 1}})
    job_id = await registry.commit(1)
    failed = events_pb2.PackageFailed(account="acme", model_id="digits", version=1, job_id=job_id, code="X", detail="x")
    await registry.tell("package.failed", failed.SerializeToString())
    await registry.take_news()
    await registry.create_version(params={"b": {"type": "int", "value": 1}})
    await registry.acme.post(f"{VERSIONS}/2:archive")  # a draft that was given up
    await registry.create_version(params={"c": {"type": "int", "value": 1}})
    await registry.make_ready(3)
    await registry.acme.post(f"{VERSIONS}/3:archive")
    await registry.create_version(params={"d": {"type": "int", "value": 1}})
    assert code(await registry.acme.post(f"{VERSIONS}/4:commit")) == (409, "PARAMETER_CONTRACT_BROKEN")
    await registry.create_version(params={"c": {"type": "int", "value": 2}})
    await registry.commit(5)


async def test_two_commits_at_once_cannot_bind_two_contracts(registry: Registry) -> None:
    await registry.create_model()
    for kind, value in (("int", 1), ("string", "1")):
        await registry.create_version(params={"p": {"type": kind, "value": value}})
    answers = await asyncio.gather(*(registry.acme.post(f"{VERSIONS}/{number}:commit") for number in (1, 2)))
    assert sorted(answer.status_code for answer in answers) == [202, 409]


async def test_archive(registry: Registry) -> None:
    await registry.create_model()
    for _ in range(3):
        await registry.create_version()
    job_id = await registry.commit(1)
    assert code(await registry.acme.post(f"{VERSIONS}/1:archive")) == (409, "VERSION_NOT_ARCHIVABLE")
    await registry.make_ready(1, job_id=job_id)
    for name in ("stable", "canary"):
        await registry.acme.put(f"/v1/models/digits/aliases/{name}", json={"version": 1})
    await registry.told("alias.moved")
    refused = await registry.acme.post(f"{VERSIONS}/1:archive", json={})
    assert (code(refused), refused.json()["aliases"]) == ((409, "VERSION_IN_USE"), ["canary", "stable"])
    done = await registry.acme.post(f"{VERSIONS}/1:archive", json={"force": True, "why": "wrong labels"})
    assert (done.status_code, done.json()["state"]) == (200, "archived")
    assert (await registry.acme.get("/v1/models/digits")).json()["aliases"] == {}
    assert len(await registry.told("version.archived")) == 1
    assert [events_pb2.AliasMoved.FromString(one.value).version for one in await registry.told("alias.moved")] == [0, 0]
    history = (await registry.acme.get("/v1/models/digits/aliases/stable/history")).json()["items"]
    assert (history[0]["from_version"], history[0]["to_version"], history[0]["why"]) == (1, None, "wrong labels")
    assert (await registry.acme.post(f"{VERSIONS}/1:archive")).json() == done.json()
    assert (await registry.acme.post(f"{VERSIONS}/2:archive")).json()["state"] == "archived"
    assert code(await registry.acme.post(f"{VERSIONS}/2:commit")) == (409, "VERSION_NOT_DRAFT")
    assert await registry.told("version.archived") == []  # nobody has heard of a draft


async def test_versions_are_listed_newest_first(registry: Registry) -> None:
    await registry.create_model()
    for _ in range(5):
        await registry.create_version()
    await registry.make_ready(2)
    first = (await registry.acme.get(VERSIONS, params={"page_size": 3})).json()
    rest = (await registry.acme.get(VERSIONS, params={"page_size": 3, "page_token": first["next_page_token"]})).json()
    assert [one["version"] for one in first["items"] + rest["items"]] == [5, 4, 3, 2, 1]
    assert [len(one["packages"]) for one in rest["items"]] == [1, 0]
    ready = (await registry.acme.get(VERSIONS, params={"state": "ready"})).json()["items"]
    assert [one["version"] for one in ready] == [2]
    assert code(await registry.acme.get(VERSIONS, params={"state": "done"}))[0] == 422
    assert code(await registry.acme.get(f"{VERSIONS}/9")) == (404, "VERSION_NOT_FOUND")
    assert code(await registry.acme.get(f"{VERSIONS}/99999999999999999999"))[0] == 422


async def test_numbers_are_given_once_under_concurrency(registry: Registry) -> None:
    await registry.create_model()
    declaration = await registry.declaration()
    answers = await asyncio.gather(*(registry.acme.post(VERSIONS, json=declaration) for _ in range(20)))
    assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 21))


async def test_one_idempotency_key_makes_one_version(registry: Registry) -> None:
    await registry.create_model()
    declaration = await registry.declaration()
    headers = {"idempotency-key": "push-1"}
    answers = await asyncio.gather(*(registry.acme.post(VERSIONS, json=declaration, headers=headers) for _ in range(20)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    again = await registry.acme.post(VERSIONS, json=declaration, headers=headers)
    assert (again.json()["version"], again.headers["idempotency-replayed"]) == (1, "true")
    assert len((await registry.acme.get(VERSIONS)).json()["items"]) == 1
    changed = await registry.acme.post(VERSIONS, json={**declaration, "notes": "x"}, headers=headers)
    assert code(changed) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_compare_names_differences_first(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version(params=PARAMS, files=await labels(registry))
    await registry.make_ready(1)
    params = {"S": {"type": "int", "value": 19}, "labels": {"type": "file", "value": "coco.labels"}}
    graph = await registry.declaration(b"a larger graph", params=params, files=await labels(registry, b"cat\n"))
    await registry.acme.post(VERSIONS, json={**graph, "requires": {"ram_mb": 512}})
    await registry.make_ready(2, operators=["Add", "Conv"], opset={"": 20})
    answer = await registry.acme.get(f"{VERSIONS}/1:compare", params={"to": 2})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["from_version"], body["to_version"], body["equal"]) == (1, 2, False)
    found = {(one["area"], one["name"]): (one["change"], one["before"], one["after"]) for one in body["differences"]}
    assert found["parameters", "S"] == ("changed", {"type": "int", "value": 13}, {"type": "int", "value": 19})
    assert found["parameters", "labels"][0] == "changed"  # the same path, other bytes
    assert found["operators", "onnx-fp32: Conv"] == ("added", None, True)
    assert found["engine", "onnx-fp32: opset"] == ("changed", {"": 17}, {"": 20})
    assert found["sizes", "onnx-fp32"] == ("changed", 13, 18)
    assert found["files", "coco.labels"][0] == "changed"
    assert found["requires", "ram_mb"] == ("added", None, 512)
    same = {(one["area"], one["name"]) for one in body["same"]}
    assert {("operators", "onnx-fp32: Add"), ("inputs", "x"), ("outputs", "y"), ("variants", "onnx-fp32")} <= same
    itself = (await registry.acme.get(f"{VERSIONS}/1:compare", params={"to": 1})).json()
    assert (itself["equal"], itself["differences"]) == (True, [])
    await registry.create_version()
    assert (await registry.acme.get(f"{VERSIONS}/1:compare", params={"to": 3})).status_code == 200  # a draft has no operators yet
    assert code(await registry.acme.get(f"{VERSIONS}/1:compare", params={"to": 9})) == (404, "VERSION_NOT_FOUND")


async def test_devices_fetch_signed_bytes_and_links(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version(params=PARAMS, files=await labels(registry))
    (digest,) = await registry.make_ready(1)
    phone, stranger = registry.client(device("acme")), registry.client(device("other"))
    path = f"/v1/device/packages/{digest}"
    manifest = await phone.get(f"{path}/manifest")
    assert (manifest.status_code, manifest.headers["content-type"], manifest.headers["etag"]) == (200, "application/json", f'"{digest}"')
    assert hashlib.sha256(manifest.content).hexdigest() == digest
    statements: list[str] = []
    stop = registry.ports.database.on_statement(statements.append)
    assert (await phone.get(f"{path}/manifest")).content == manifest.content
    envelope = (await phone.get(f"{path}/signature")).json()
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert (await phone.get(f"{path}/manifest", headers={"if-none-match": f'"{digest}"'})).status_code == 304
    head = await phone.head(f"{path}/manifest")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(manifest.content)))
    file = json.loads(manifest.content)["files"][0]
    link = await phone.get(f"/v1/device/blobs/{file['sha256']}")
    assert (link.status_code, link.headers["location"].startswith(f"/blobs/acme/{file['sha256']}?")) == (307, True)
    assert statements == []  # known packages and blobs need no SQL
    stop()
    foreign, unknown = await stranger.get(f"{path}/manifest"), await stranger.get(f"/v1/device/packages/{'0' * 64}/manifest")
    assert code(foreign) == (404, "PACKAGE_NOT_FOUND")
    assert foreign.content == unknown.content
    blob = await stranger.get(f"/v1/device/blobs/{file['sha256']}")
    assert code(blob) == (404, "BLOB_NOT_FOUND")
    assert blob.content == (await stranger.get(f"/v1/device/blobs/{'0' * 64}")).content
    assert code(await phone.post(f"{path}/manifest")) == (405, "METHOD_NOT_ALLOWED")
    for odd in (f"{path}/other", f"/v1/device/packages/{digest.upper()}/manifest", "/v1/device/packages/"):
        assert code(await phone.get(odd)) == (404, "PACKAGE_NOT_FOUND")
    assert code(await phone.get("/v1/device/blobs/..%2f..%2fetc")) == (404, "NOT_FOUND")
    assert code(await registry.acme.get(f"{path}/manifest")) == (403, "FORBIDDEN")
    assert code(await registry.client().get(f"{path}/manifest")) == (401, "UNAUTHENTICATED")
