"""The management client: trying again, pages, event streams, uploads that resume."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import latebind
from latebind._session import Event, Session, parse_events
from latebind._transport import HttpTransport, Response, Stream
from latebind._uploads import Uploads
from latebind.errors import Conflict, NotFound, ServerUnreachable, Unauthorized, Unavailable
from tests.models import onnx_add
from tests.server import ServerProcess


class Script:
    """A transport that gives the answers of a script, and remembers what was asked."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Mapping[str, str], Any]] = []

    def send(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: Any = None, **_: Any) -> Response:
        self.asked.append((method, url, dict(headers or {}), body))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        pass


def answer(status: int = 200, body: Any = None, **headers: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body or {}).encode())


def session(script: Script) -> tuple[Session, list[float]]:
    pauses: list[float] = []
    return Session("http://server/", "lbk_key", script, sleep=pauses.append, seed=1), pauses  # type: ignore[arg-type]


def test_what_passes_by_itself_is_tried_again_with_the_same_key() -> None:
    script = Script(ServerUnreachable("gone"), answer(503, {"code": "UNAVAILABLE"}), answer(201, {"id": 1}))
    asking, pauses = session(script)
    assert asking.post("/v1/things", {"a": 1}) == {"id": 1}
    keys = {headers["idempotency-key"] for _, _, headers, _ in script.asked}
    assert (len(script.asked), len(keys), len(pauses)) == (3, 1, 2)
    assert all(headers["authorization"] == "Bearer lbk_key" for _, _, headers, _ in script.asked)


def test_the_server_says_when_to_come_back() -> None:
    asking, pauses = session(Script(answer(429, {"code": "RATE_LIMITED"}, retry_after="3"), answer(200, [])))
    asking.get("/v1/things")
    assert 3 <= pauses[0] <= 3.25


def test_mistakes_are_not_repeated() -> None:
    for status, kind in ((401, Unauthorized), (404, NotFound), (409, Conflict)):
        script = Script(answer(status, {"code": "X"}, request_id="r1"))
        with pytest.raises(kind) as caught:
            session(script)[0].get("/v1/things")
        assert caught.value.request_id == "r1"


def test_a_conflict_that_passes_is_awaited_for_a_short_time_only() -> None:
    asking, pauses = session(Script(*[answer(409, {"code": "VERSION_NOT_READY"}, retry_after="2")] * 9))
    with pytest.raises(Conflict):
        asking.post("/v1/things")
    assert 1 <= len(pauses) <= 3


def test_an_outage_ends_in_the_last_error() -> None:
    asking, pauses = session(Script(*[answer(502)] * 9))
    with pytest.raises(Unavailable):
        asking.get("/v1/things")
    assert len(pauses) == 3


def test_pages_and_parameters() -> None:
    script = Script(answer(200, {"items": [1, 2], "next_page_token": "t 1"}), answer(200, {"items": [3], "next_page_token": None}))
    assert list(session(script)[0].pages("/v1/things", of=["a", "b"], flag=True, none=None)) == [1, 2, 3]
    assert [url for _, url, _, _ in script.asked] == [
        "http://server/v1/things?of=a&of=b&flag=true",
        "http://server/v1/things?of=a&of=b&flag=true&page_token=t+1",
    ]


STREAM = (
    b': hello\r\nid: 1\nevent: progress\ndata: {"a": 1}\n\n'
    b"id: 2\nevent: progress\ndata: line one\ndata: line two\n\ndata: 3\n\ndata: cut off"
)


@given(st.lists(st.integers(1, len(STREAM)), max_size=6))
def test_events_do_not_depend_on_how_the_bytes_arrive(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(places)]
    assert list(parse_events(pieces)) == [
        Event("progress", {"a": 1}, "1"),
        Event("progress", "line one\nline two", "2"),
        Event("message", 3, "2"),
    ]


class Broken(HttpTransport):
    """A network that breaks: uploads of parts fail as `fate` says, event streams end after their first piece."""

    def __init__(self, fate: Iterable[str]) -> None:
        super().__init__()
        self.fate = iter(fate)
        self.parts = 0
        self.streams = 0

    def send(self, method: str, url: str, **options: Any) -> Response:
        if method != "PUT" or "/v1/uploads/" not in url:
            return super().send(method, url, **options)
        self.parts += 1
        what = next(self.fate, "good")
        if what == "lost":
            raise ServerUnreachable("the part is lost")
        done = super().send(method, url, **options)
        if what == "answer lost":
            raise ServerUnreachable("the answer is lost")
        return done

    @contextmanager
    def stream(self, method: str, url: str, **options: Any) -> Iterator[Stream]:
        self.streams += 1
        with super().stream(method, url, **options) as stream:
            if self.streams == 1:
                whole = stream.pieces

                def first_only() -> Iterator[bytes]:
                    yield next(iter(whole()))
                    raise ServerUnreachable("the stream broke")

                stream.pieces = first_only  # type: ignore[method-assign]
            yield stream


def test_an_upload_goes_on_where_it_stood(server: ServerProcess, tmp_path: Path) -> None:
    key = server.new_account("uploads")
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    transport = Broken(["good", "lost", "answer lost", "good", "lost"])
    with latebind.Client(server.url, key, transport=transport) as client:
        uploads = Uploads(client.session, sleep=lambda pause: None)
        told: list[int] = []
        _, size = uploads.send_file(path, progress=told.append, part_bytes=100_000)
        assert size == 1 << 20
        assert told == sorted(told)
        assert told[-1] == size
        assert transport.parts == 11 + 2
        empty = tmp_path / "empty.bin"
        empty.write_bytes(b"")
        assert uploads.send_file(empty)[1] == 0
        transport.fate = iter(["lost"] * 99)
        with pytest.raises(ServerUnreachable):
            uploads.send_file(path)
    transport.close()


def test_a_job_is_watched_over_a_stream_that_breaks(server: ServerProcess, tmp_path: Path) -> None:
    key = server.new_account("watched")
    (tmp_path / "model.onnx").write_bytes(onnx_add())
    transport = Broken([])
    with latebind.Client(server.url, key, transport=transport) as client:
        client.models.ensure("adder")
        client.models.ensure("adder")
        sha256, size = client.uploads.send_file(tmp_path / "model.onnx")
        draft = client.models.create_version("adder", {"variants": [{"files": [{"path": "model.onnx", "sha256": sha256, "size": size}]}]})
        job_id = client.models.commit("adder", draft["version"])["job_id"]
        lines: list[dict[str, Any]] = []
        job = client.jobs.watch(job_id, lines.append)
        assert job["state"] == "succeeded"
        assert transport.streams == 2
        assert [line["position"] for line in lines] == sorted({line["position"] for line in lines})
        assert client.models.wait_until_packaged("adder", 1)["state"] == "ready"
    transport.close()
