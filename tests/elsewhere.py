"""Where models come from: a server with the routes of MLflow and one with those of the Hugging Face Hub, over real HTTP.

They answer as the originals do for what a client reads (MLflow 3 REST API; Hub API and `resolve` with `X-Repo-Commit`, `ETag`,
`X-Linked-ETag`), and can be told to send something else.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "7f3c2a9b1d4e5f60718293a4b5c6d7e8f9012345"


@dataclass
class Elsewhere:
    """A server; `requests` are the paths that were asked, `headers` those of the last request."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def answer(self, method: str, path: str, query: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        raise NotImplementedError  # abstract: each server says what it answers


def as_json(status: int, value: Any) -> tuple[int, dict[str, str], bytes]:
    return status, {"content-type": "application/json"}, json.dumps(value).encode()


@dataclass
class Mlflow(Elsewhere):
    """Registered models: name → version → files. Aliases are (name, alias) → version. `token` is asked for when set."""

    models: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    token: str = ""
    cut: int | None = None  # files end after this many bytes, while the header says more

    def answer(self, method: str, path: str, query: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        if self.token and self.headers.get("authorization") != f"Bearer {self.token}":
            return as_json(401, {"error_code": "UNAUTHENTICATED", "message": "You are not authenticated"})
        name, version = query.get("name", ""), query.get("version", "")
        if path == "/api/2.0/mlflow/registered-models/alias":
            version = self.aliases.get((name, query["alias"]), "")
        if path in {"/api/2.0/mlflow/registered-models/alias", "/api/2.0/mlflow/model-versions/get"}:
            if version not in self.models.get(name, {}):
                return as_json(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Model Version (name={name}) not found"})
            found = {"name": name, "version": version, "run_id": "a1b2", "source": "models:/m-1", "description": "finds digits"}
            return as_json(200, {"model_version": found})
        if path == "/model-versions/get-artifact":
            data = self.models.get(name, {}).get(version, {}).get(query["path"])
            if data is None:
                return as_json(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such artifact"})
            return 200, {"content-type": "application/octet-stream", "content-length": str(len(data))}, data[: self.cut]
        return as_json(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path})


@dataclass
class Hub(Elsewhere):
    """One repository at one commit, under the branch `main`. `large` files are LFS files. `spoil` replaces what is sent of a file."""

    repo: str = "acme/tiny-yolo"
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    spoil: dict[str, bytes] = field(default_factory=dict)

    def answer(self, method: str, path: str, query: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        for revision in ("main", COMMIT):
            if path == f"/api/models/{self.repo}/revision/{revision}":
                return as_json(200, {"id": self.repo, "sha": COMMIT, "siblings": [self._sibling(name) for name in self.files]})
            prefix = f"/{self.repo}/resolve/{revision}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in self.files:
                return self._resolve(path.removeprefix(prefix))
        status, headers, body = as_json(404, {"error": "Repository not found"})
        return status, {**headers, "X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body

    def _sibling(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
        if name in self.large:
            sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return sibling

    def _resolve(self, name: str) -> tuple[int, dict[str, str], bytes]:
        data = self.files[name]
        sent = self.spoil.get(name, data)
        etag = hashlib.sha256(data).hexdigest() if name in self.large else git_blob(data)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "content-type": "application/octet-stream"}
        if name in self.large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(sent))}
        return 200, headers, sent


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def listening(elsewhere: Elsewhere) -> Iterator[None]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            parts = urlsplit(self.path)
            elsewhere.requests.append(self.path)
            elsewhere.headers = {name.lower(): value for name, value in self.headers.items()}
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, headers, body = elsewhere.answer(self.command, unquote(parts.path), query)
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if headers.get("content-length", str(len(body))) != str(len(body)):
                self.close_connection = True

        do_GET = _do
        do_HEAD = _do

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    elsewhere.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
