"""The gateway in front of the real services: what it takes, what it refuses, and how it says so."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.e2e.world import World
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    environment = {"LATEBIND_GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8", "LATEBIND_GATEWAY_ALLOWED_HOSTS": "127.0.0.1,models.example"}
    with ServerProcess(tmp_path_factory.mktemp("server") / "data", environment=environment) as server:
        made = World(server)
        yield made
        made.close()


def raw(world: World, request: bytes) -> bytes:
    """Send bytes as they are and return the answer's head."""
    host, port = world.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def problem(answer: httpx2.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["code"] == code
    assert answer.json()["instance"] == f"urn:latebind:request:{answer.headers['request-id']}"


@pytest.mark.parametrize(
    "path",
    [
        "/v1//models",
        "/v1/models/../accounts",
        "/v1/models/%2e%2e/accounts",
        "/v1/models/a%2Fb",
        "/v1/models/a%5cb",
        "/v1/models/./a",
        "/v1/models/a%00",
    ],
)
def test_confusing_paths_are_refused(world: World, path: str) -> None:
    head = raw(world, f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {world.key}\r\nconnection: close\r\n\r\n".encode())
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), head
    assert b"application/problem+json" in head


def test_unknown_paths_hosts_and_methods(world: World) -> None:
    problem(world.client.get("/v1/nothing"), 404, "NOT_FOUND")
    problem(world.client.get("/internal/openapi.json"), 404, "NOT_FOUND")
    problem(world.client.post("/internal/credentials:verify", json={"key": world.key}), 404, "NOT_FOUND")
    problem(world.client.get("/v1/models", headers={"host": "evil.example"}), 421, "HOST_REFUSED")
    assert world.client.get("/v1/models", headers={"host": "models.example:443"}).status_code == 200
    problem(world.client.delete("/docs"), 405, "METHOD_NOT_ALLOWED")
    problem(world.client.request("TRACE", "/v1/models"), 405, "METHOD_NOT_ALLOWED")


def test_identity_headers_from_outside_are_worth_nothing(world: World) -> None:
    with httpx2.Client(base_url=world.server.url) as nobody:
        for value in ("x", "e30=.00"):
            problem(nobody.get("/v1/models", headers={"latebind-principal": value}), 401, "UNAUTHENTICATED")


def test_a_body_over_the_limit_is_refused_before_it_is_read(world: World) -> None:
    problem(world.client.post("/v1/models", content=b" " * (2 << 20), headers={"content-type": "application/json"}), 413, "BODY_TOO_LARGE")
    head = raw(
        world,
        f"POST /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {world.key}\r\n"
        "content-type: application/json\r\ncontent-length: 99999999999\r\n\r\n".encode(),
    )
    assert head.startswith(b"HTTP/1.1 413 ")

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 16)

    problem(world.client.post("/v1/models", content=endless(), headers={"content-type": "application/json"}), 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("deep", [b"[" * 10_000, b'{"rules":' * 10_000, b'{"a":[' * 10_000])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/collections", "/v1/api-keys", "/v1/uploads", "/v1/device/enroll"])
def test_json_nested_ten_thousand_deep_is_a_4xx(world: World, path: str, deep: bytes) -> None:
    answer = world.client.post(path, content=deep, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"


def test_headers_over_the_limit_are_refused(world: World) -> None:
    problem(world.client.get("/v1/models", headers={"x-large": "a" * 20_000}), 431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -5\r\n\r\n",
        b"NONSENSE\r\n\r\n",
    ],
)
def test_ambiguous_requests_are_a_4xx(world: World, request_bytes: bytes) -> None:
    assert raw(world, request_bytes).split(b" ")[1][:1] == b"4"


def test_the_document_is_whole_and_every_operation_has_a_policy(world: World) -> None:
    document = world.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    ids = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids)) > 50
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["x-latebind-access"]
            assert operation["summary"]
            assert "default" in operation["responses"]
    page = world.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "/v1/device/collections/{collection}:resolve" in page.text
    assert "<script" not in page.text


def test_a_trusted_proxy_gives_the_request_id_and_nobody_gives_a_wrong_one(world: World) -> None:
    assert world.client.get("/livez", headers={"request-id": "abc-12345678"}).headers["request-id"] == "abc-12345678"
    assert world.client.get("/livez", headers={"request-id": "a b\tc"}).headers["request-id"] != "a b\tc"


def test_a_caller_over_its_rate_waits_and_others_do_not(world: World) -> None:
    """The limit is per credential: one key at its limit does not slow another one down."""
    with ServerProcess(world.server.data_dir.parent / "slow", environment={"LATEBIND_GATEWAY_USER_REQUESTS_PER_MINUTE": "60"}) as server:
        one, two = World(server, "acme"), World(server, "globex")
        answers = [one.client.get("/v1/models") for _ in range(60)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        problem(refused[0], 429, "RATE_LIMITED")
        assert int(refused[0].headers["retry-after"]) >= 1
        assert two.client.get("/v1/models").status_code == 200


def test_guessing_keys_is_slowed_down_by_address(world: World) -> None:
    with ServerProcess(
        world.server.data_dir.parent / "guessed", environment={"LATEBIND_GATEWAY_ANONYMOUS_REQUESTS_PER_MINUTE": "60"}
    ) as server:
        one = World(server, "acme")
        assert one.client.get("/v1/models").status_code == 200
        with httpx2.Client(base_url=server.url) as guesser:
            answers = {guesser.get("/v1/models", headers={"authorization": f"Bearer lbk_{number}"}).status_code for number in range(80)}
        assert answers == {401, 429}
        assert one.client.get("/v1/models").status_code == 200
