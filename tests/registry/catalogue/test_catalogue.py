"""The catalogue: sources of the operator, and taking a signed model over, from a folder and over HTTP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kit.signing import DerivedSigner
from latebind_proto import events_pb2
from services.registry.catalogue.service import CatalogueService
from tests.registry.conftest import OPERATOR, Registry, code, user

PARAMS = {"S": {"type": "int", "value": 13}, "labels": {"type": "file", "value": "coco.labels"}}


def catalogue_of(registry: Registry) -> CatalogueService:
    service: CatalogueService = registry.part.app._api.state.catalogue  # type: ignore[attr-defined]
    return service


def keys(registry: Registry) -> list[dict[str, str]]:
    public = registry.packager.public_key("acme")
    return [{"key_id": hashlib.sha256(public).hexdigest(), "public_key": base64.b64encode(public).decode()}]


@pytest.fixture
async def folder(registry: Registry, tmp_path: Path) -> AsyncIterator[Path]:
    """A catalogue with one entry: a model that `acme` packaged in two variants."""
    root = tmp_path / "catalogue"
    root.mkdir()
    await registry.create_model()
    labels = [{"path": "coco.labels", **await registry.upload(b"cat\ndog\n")}]
    declaration = await registry.declaration(params=PARAMS, files=labels, requires={"ram_mb": 64})
    tflite = {"name": "tflite-fp32", "files": [{"path": "model.tflite", "role": "graph", **await registry.upload(b"tflite graph")}]}
    declaration["variants"].append(tflite)
    assert (await registry.acme.post("/v1/models/digits/versions", json=declaration)).status_code == 201
    await registry.make_ready(1)
    packages = (await registry.acme.get("/v1/models/digits/versions/1/packages")).json()["items"]
    for package in packages:
        place = root / "digits" / package["variant"]
        place.mkdir(parents=True)
        (place / "manifest.json").write_bytes(base64.b64decode(package["manifest_base64"]))
        (place / "signature.json").write_text(json.dumps(package["signature"]))
        for file in package["files"]:
            data = b"".join([chunk async for chunk in registry.ports.blobs.open("acme", file["sha256"])])
            (place / file["path"]).write_bytes(data)
    entry = {
        "name": "digits",
        "title": "Digits",
        "description": "reads digits",
        "license": "Apache-2.0",
        "labels": {"task": "ocr"},
        "packages": [{"path": f"digits/{package['variant']}", "digest": package["digest"]} for package in packages],
    }
    (root / "catalogue.json").write_text(json.dumps({"catalogue_version": 1, "title": "Acme's models", "entries": [entry]}))
    await registry.told("version.committed")
    yield root


async def add(registry: Registry, location: str, **changes: Any) -> httpx2.Response:
    return await registry.client(OPERATOR).post(
        "/v1/catalogue/sources", json={"location": location, "public_keys": keys(registry), **changes}
    )


async def take(registry: Registry, entry: str, body: Any = None) -> httpx2.Response:
    return await registry.client(user("other")).post(f"/v1/catalogue/{entry}:take", json=body or {})


async def the_entry(registry: Registry, location: str) -> str:
    added = await add(registry, location)
    assert added.status_code == 201, added.text
    (entry,) = (await registry.client(user("other")).get("/v1/catalogue")).json()["items"]
    return str(entry["id"])


async def test_a_model_is_taken_over_with_one_call(registry: Registry, folder: Path) -> None:
    other = registry.client(user("other"))
    entry = await the_entry(registry, f"file:{folder}")
    listed = (await other.get(f"/v1/catalogue/{entry}")).json()
    assert (listed["name"], listed["title"], listed["license"], listed["labels"]) == ("digits", "Digits", "Apache-2.0", {"task": "ocr"})
    taken = await take(registry, entry)
    assert taken.status_code == 202, taken.text
    assert (taken.json()["model_id"], taken.json()["version"], taken.json()["state"]) == ("digits", 1, "packaging")
    (record,) = await registry.told("version.committed")
    message = events_pb2.VersionCommitted.FromString(record.value)
    assert (message.account, message.model_id, message.job_id) == ("other", "digits", taken.json()["job_id"])
    model = (await other.get("/v1/models/digits")).json()
    assert (model["description"], model["labels"], model["contract"]) == ("reads digits", {"task": "ocr"}, {"S": "int", "labels": "file"})
    declaration = (await other.get("/v1/models/digits/versions/1")).json()["declaration"]
    assert [variant["name"] for variant in declaration["variants"]] == ["onnx-fp32", "tflite-fp32"]
    assert (declaration["params"], declaration["requires"]) == (PARAMS, {"ram_mb": 64})
    step = declaration["lineage"]["steps"][-1]
    assert step["tool"] == "latebind-catalogue"
    assert (step["options"]["account"], step["options"]["model_id"], step["options"]["packages"]) == ("acme", "digits", listed["packages"])
    for variant in declaration["variants"]:
        for file in variant["files"]:
            assert (await registry.ports.blobs.stat("other", file["sha256"])).size == file["size"]
    again = await take(registry, entry)
    assert (again.status_code, again.json()["version"]) == (202, 2)
    elsewhere = await take(registry, entry, {"model_id": "my-digits"})
    assert (elsewhere.json()["model_id"], elsewhere.json()["version"]) == ("my-digits", 1)


async def test_one_idempotency_key_takes_once(registry: Registry, folder: Path) -> None:
    entry = await the_entry(registry, f"file:{folder}")
    other = registry.client(user("other"))
    calls = (other.post(f"/v1/catalogue/{entry}:take", json={}, headers={"idempotency-key": "t"}) for _ in range(8))
    answers = await asyncio.gather(*calls)
    assert sorted({answer.status_code for answer in answers}) in ([202], [202, 409])
    assert len((await other.get("/v1/models/digits/versions")).json()["items"]) == 1
    bare = [await other.post(f"/v1/catalogue/{entry}:take", headers={"idempotency-key": "bare"}) for _ in range(2)]
    assert [answer.json()["version"] for answer in bare] == [2, 2]
    assert bare[1].headers["idempotency-replayed"] == "true"


def spoil_manifest(folder: Path) -> None:
    path = folder / "digits/onnx-fp32/manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"acme"', b'"evil"'))


def spoil_digest(folder: Path) -> None:
    spoil_manifest(folder)
    index = json.loads((folder / "catalogue.json").read_text())
    changed = hashlib.sha256((folder / "digits/onnx-fp32/manifest.json").read_bytes()).hexdigest()
    index["entries"][0]["packages"][0]["digest"] = changed
    (folder / "catalogue.json").write_text(json.dumps(index))


def spoil_signature(folder: Path) -> None:
    path = folder / "digits/onnx-fp32/signature.json"
    envelope = json.loads(path.read_text())
    statement = base64.b64decode(envelope["payload"])
    path.write_text(json.dumps(DerivedSigner(b"x" * 32, "package").sign("acme", envelope["payloadType"], statement)))


def spoil_envelope(folder: Path) -> None:
    (folder / "digits/tflite-fp32/signature.json").write_text("[" * 5000)


def swap_signatures(folder: Path) -> None:
    first, second = folder / "digits/onnx-fp32/signature.json", folder / "digits/tflite-fp32/signature.json"
    first.write_bytes(second.read_bytes())


def spoil_file(folder: Path) -> None:
    (folder / "digits/onnx-fp32/model.onnx").write_bytes(b"grapf")


def lengthen_file(folder: Path) -> None:
    (folder / "digits/onnx-fp32/model.onnx").write_bytes(b"graph and more")


def link_out(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(b"graph")
    path = folder / "digits/onnx-fp32/model.onnx"
    path.unlink()
    path.symlink_to(secret)


def remove_file(folder: Path) -> None:
    (folder / "digits/tflite-fp32/model.tflite").unlink()


def make_folder(folder: Path) -> None:
    remove_file(folder)
    (folder / "digits/tflite-fp32/model.tflite").mkdir()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_manifest, (409, "CATALOGUE_PACKAGE_INVALID")),
        (spoil_digest, (409, "CATALOGUE_PACKAGE_INVALID")),
        (spoil_signature, (409, "CATALOGUE_PACKAGE_INVALID")),
        (spoil_envelope, (409, "CATALOGUE_PACKAGE_INVALID")),
        (swap_signatures, (409, "CATALOGUE_PACKAGE_INVALID")),
        (spoil_file, (409, "CATALOGUE_PACKAGE_INVALID")),
        (lengthen_file, (409, "CATALOGUE_PACKAGE_INVALID")),
        (link_out, (503, "CATALOGUE_UNREACHABLE")),
        (remove_file, (503, "CATALOGUE_UNREACHABLE")),
        (make_folder, (503, "CATALOGUE_UNREACHABLE")),
    ],
)
async def test_what_is_not_as_signed_is_not_taken(
    registry: Registry, folder: Path, spoil: Callable[[Path], None], expected: tuple[int, str]
) -> None:
    spoil(folder)
    entry = await the_entry(registry, f"file:{folder}")
    answer = await take(registry, entry)
    assert code(answer) == expected
    assert str(folder.parent) not in answer.text
    assert (await registry.client(user("other")).get("/v1/models")).json()["items"] == []
    assert await registry.told("version.committed") == []


async def test_taking_into_a_model_keeps_its_contract(registry: Registry, folder: Path) -> None:
    other = registry.client(user("other"))
    await registry.create_model("digits", other)
    await registry.create_version("digits", other, params={"S": {"type": "float", "value": 1.5}})
    await registry.commit(1, "digits", other)
    entry = await the_entry(registry, f"file:{folder}")
    answer = await take(registry, entry)
    assert code(answer) == (409, "PARAMETER_CONTRACT_BROKEN")
    assert [one["name"] for one in answer.json()["parameters"]] == ["S", "labels"]
    assert len((await other.get("/v1/models/digits/versions")).json()["items"]) == 1


async def test_the_operator_names_sources(registry: Registry, folder: Path) -> None:
    operator = registry.client(OPERATOR)
    added = await add(registry, f"file:{folder}/")
    assert (added.status_code, added.json()["location"], added.json()["title"]) == (201, f"file:{folder}", "Acme's models")
    assert code(await add(registry, f"file:{folder}")) == (409, "CATALOGUE_SOURCE_EXISTS")
    for location in (
        "",
        "catalogue",
        "file:relative",
        "file://host/x",
        "ftp://x/y",
        "http://",
        "http://u:p@h/",
        "http://h/?q=1",
        "http://h/#f",
    ):
        assert code(await add(registry, location)) == (400, "CATALOGUE_LOCATION_INVALID"), location
    assert code(await add(registry, "file:/nowhere/at/all")) == (503, "CATALOGUE_UNREACHABLE")
    wrong_key = [{**keys(registry)[0], "key_id": "0" * 64}]
    assert code(await add(registry, f"file:{folder}/digits", public_keys=wrong_key)) == (400, "CATALOGUE_LOCATION_INVALID")
    assert code(await add(registry, f"file:{folder}", public_keys=[]))[0] == 422
    (listed,) = (await operator.get("/v1/catalogue/sources")).json()["items"]
    assert listed == added.json()
    assert (await operator.delete(f"/v1/catalogue/sources/{listed['id']}")).status_code == 204
    assert code(await operator.delete(f"/v1/catalogue/sources/{listed['id']}")) == (404, "CATALOGUE_SOURCE_NOT_FOUND")
    assert (await registry.acme.get("/v1/catalogue")).json()["items"] == []
    assert code(await take(registry, f"{listed['id']}.digits")) == (404, "CATALOGUE_ENTRY_NOT_FOUND")


def entry_like(folder: Path, **changes: Any) -> str:
    index = json.loads((folder / "catalogue.json").read_text())
    return json.dumps({**index, "entries": [{**index["entries"][0], **changes}]})


async def test_indexes_that_are_none(registry: Registry, folder: Path) -> None:
    package = json.loads((folder / "catalogue.json").read_text())["entries"][0]["packages"][0]
    two = json.loads((folder / "catalogue.json").read_text())
    two["entries"] *= 2
    wrong = [
        "", "[]", "{}", '{"catalogue_version": 2, "entries": []}', "[" * 100_000, '{"catalogue_version": 1, "entries": {}}',
        json.dumps(two),
        entry_like(folder, name="../x"), entry_like(folder, name=7), entry_like(folder, packages=[]), entry_like(folder, title="x" * 201),
        entry_like(folder, packages=[{**package, "path": "../digits"}]), entry_like(folder, packages=[{**package, "path": "/etc"}]),
        entry_like(folder, packages=[{**package, "digest": "x"}]), entry_like(folder, labels={"a": 1}),
        entry_like(folder, description="\ud800"),
    ]  # fmt: skip
    for text in wrong:
        (folder / "catalogue.json").write_text(text)
        assert code(await add(registry, f"file:{folder}")) == (400, "CATALOGUE_INVALID"), text[:200]
    (folder / "catalogue.json").write_bytes(b" " * (9 << 20))
    assert code(await add(registry, f"file:{folder}")) == (503, "CATALOGUE_UNREACHABLE")


async def test_a_refresh_learns_and_a_failed_one_keeps(registry: Registry, folder: Path) -> None:
    await the_entry(registry, f"file:{folder}")
    index = folder / "catalogue.json"
    good = json.loads(index.read_text())
    good["entries"].append({**good["entries"][0], "name": "another", "title": "Letters"})
    index.write_text(json.dumps(good))
    registry.clock.advance(60)
    await catalogue_of(registry).refresh()

    async def names(**query: str) -> list[str]:
        return [one["name"] for one in (await registry.acme.get("/v1/catalogue", params=query)).json()["items"]]

    assert await names() == ["another", "digits"]
    assert await names(search="LETTERS") == ["another"]
    first = (await registry.acme.get("/v1/catalogue", params={"page_size": "1"})).json()
    assert await names(page_size="1", page_token=first["next_page_token"]) == ["digits"]
    index.write_text("broken")
    await catalogue_of(registry).refresh()
    assert await names() == ["another", "digits"]
    (source,) = (await registry.client(OPERATOR).get("/v1/catalogue/sources")).json()["items"]
    assert "malformed" in source["problem"]
    index.write_text(json.dumps(good))
    await catalogue_of(registry).refresh()
    (source,) = (await registry.client(OPERATOR).get("/v1/catalogue/sources")).json()["items"]
    assert source["problem"] is None


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A real HTTP server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("content-length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


async def test_a_catalogue_over_http(registry: Registry, folder: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/models/digits/tflite-fp32/model.tflite"):
            respond(handler, 302, location="/storage/model.tflite")
        elif handler.path == "/storage/model.tflite":
            respond(handler, 200, b"tflite graph")
        elif handler.path.startswith("/models/"):
            respond(handler, 200, (folder / handler.path.removeprefix("/models/")).read_bytes())
        else:
            respond(handler, 404)

    with serving(answer) as url:
        entry = await the_entry(registry, f"{url}/models/")
        assert (await take(registry, entry)).status_code == 202
    gone = await take(registry, entry)
    assert code(gone) == (503, "CATALOGUE_UNREACHABLE")


async def test_a_source_cannot_send_the_server_elsewhere(registry: Registry, folder: Path) -> None:
    reached: list[str] = []

    def inner(handler: BaseHTTPRequestHandler) -> None:
        reached.append(handler.path)
        respond(handler, 200, (folder / "catalogue.json").read_bytes())

    with serving(inner) as private:
        targets = [private, "http://169.254.169.254", "file:///etc", "//127.0.0.1:1", private.replace("http", "https")]

        def answer(handler: BaseHTTPRequestHandler) -> None:
            number = int(handler.path.split("/")[1])
            if number < len(targets):
                respond(handler, 302, location=f"{targets[number]}/catalogue.json")
            elif number == len(targets):
                respond(handler, 307, location=handler.path)
            elif number == len(targets) + 1:
                respond(handler, 200, gzip.compress((folder / "catalogue.json").read_bytes()), content_encoding="gzip")
            else:
                respond(handler, 500)

        with serving(answer) as url:
            for number in range(len(targets) + 3):
                assert code(await add(registry, f"{url}/{number}")) == (503, "CATALOGUE_UNREACHABLE"), number
    assert reached == []
