"""The network port over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from latebind._transport import HttpTransport
from latebind.errors import ResponseInvalid, ServerUnreachable
from tests.sdk.simulator import Simulator, sha256


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    transport = HttpTransport(timeout_s=5)
    yield transport
    transport.close()


def test_an_answer_comes_whole_with_lower_case_headers(simulator: Simulator, transport: HttpTransport) -> None:
    answer = transport.send("POST", f"{simulator.url}/v1/device/challenge", body=b"")
    assert answer.status == 200 and answer.json()["nonce"] and "content-type" in answer.headers


def test_a_body_over_the_limit_is_not_read(simulator: Simulator, transport: HttpTransport) -> None:
    simulator.blobs[sha256(b"x")] = bytes(1 << 20)
    with pytest.raises(ResponseInvalid, match="longer than 1000 bytes"):
        transport.send("GET", f"{simulator.url}/links/{sha256(b'x')}", max_bytes=1000)


def test_no_answer_is_one_kind_of_error(simulator: Simulator, transport: HttpTransport) -> None:
    for url in ("http://127.0.0.1:1/", "http://no-such-host.invalid/", "not a url"):
        with pytest.raises(ServerUnreachable):
            transport.send("GET", url)
    simulator.faults.refuse_connections = True
    with pytest.raises(ServerUnreachable):
        transport.send("GET", simulator.url)


def test_a_stream_that_breaks_off_says_so(simulator: Simulator, transport: HttpTransport) -> None:
    simulator.blobs[sha256(b"x")] = bytes(1 << 20)
    simulator.faults.cut_blobs_at = [100_000]
    received = 0
    with transport.stream("GET", f"{simulator.url}/links/{sha256(b'x')}") as stream, pytest.raises(ServerUnreachable):
        for piece in stream.pieces():
            received += len(piece)
    assert 0 < received <= 100_000


def test_redirects_are_not_followed(simulator: Simulator, transport: HttpTransport) -> None:
    token = simulator.token_answer("install")["token"]
    answer = transport.send("GET", f"{simulator.url}/v1/device/blobs/{sha256(b'x')}", headers={"authorization": f"Bearer {token}"})
    assert answer.status == 307


def test_a_body_that_is_not_json_is_an_invalid_response(simulator: Simulator, transport: HttpTransport) -> None:
    simulator.blobs[sha256(b"x")] = b"<html>"
    with pytest.raises(ResponseInvalid):
        transport.send("GET", f"{simulator.url}/links/{sha256(b'x')}").json()
