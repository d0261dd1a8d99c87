"""The server side of docs/wire.md over real sockets, for tests of the device: it holds packages, signs, and injects faults.

After `tests/repository_simulator.py` of python-tuf. It shares no code with the SDK or the services; end-to-end tests run against the real
server.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from latebind_proto.telemetry_pb2 import TelemetryBatch
from tests.models import onnx_add

ACCOUNT = "acme"
COLLECTION = "c_test"
ENROLMENT_KEY = "lbe_aaaaaaaaaaaa_" + "x" * 43 + "_000000"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def at(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Key:
    """A signing key of the account."""

    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.raw = self.private.public_key().public_bytes_raw()
        self.id = sha256(self.raw)

    def public(self) -> dict[str, str]:
        return {"key_id": self.id, "public_key": b64(self.raw)}

    def envelope(self, payload_type: str, payload: bytes) -> dict[str, Any]:
        pae = f"DSSEv1 {len(payload_type)} {payload_type} {len(payload)} ".encode() + payload
        return {
            "payloadType": payload_type,
            "payload": b64(payload),
            "signatures": [{"keyid": self.id, "sig": b64(self.private.sign(pae))}],
        }


@dataclass
class Package:
    """What the server stores of a package. Tests may change the bytes after signing."""

    digest: str
    manifest: bytes
    signature: bytes

    @property
    def parsed(self) -> dict[str, Any]:
        return dict(json.loads(self.manifest))


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@dataclass
class Faults:
    """What goes wrong. Counters go down with each use; functions change what is sent."""

    refuse_connections: bool = False
    statuses: dict[str, list[int]] = field(default_factory=dict)  # path prefix -> statuses of the next requests
    retry_after: str | None = None
    cut_blobs_at: list[int] = field(default_factory=list)  # bytes after which the next blob answers break off
    blob_delay_s: float = 0.0  # per piece of 16 KiB
    ignore_ranges: bool = False
    packages: dict[str, Package] = field(default_factory=dict)  # what is sent in place of a package
    change_blob: Callable[[bytes], bytes] | None = None
    change_assignment: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # before signing
    change_envelope: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # after signing
    change_answer: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    clock_skew: timedelta = timedelta()


class Simulator:
    """One account with its packages, devices and collections. `url` is where it listens."""

    def __init__(self) -> None:
        self.package_key = Key()
        self.assignment_key = Key()
        self.packages: dict[str, Package] = {}
        self.blobs: dict[str, bytes] = {}
        self.assigned: dict[str, str] = {}
        self.refusals: dict[str, tuple[int, dict[str, Any]]] = {}
        self.revisions: Counter[str] = Counter()
        self.installs: dict[str, bytes] = {}
        self.tokens: dict[str, str] = {}
        self.token_life = timedelta(hours=1)
        self.assignment_life = timedelta(hours=24)
        self.poll = {"after_s": 3600, "spread_s": 600}
        self.nonces: set[str] = set()
        self.counter = 1_790_000_000_000_000
        self.batches: dict[str, TelemetryBatch] = {}
        self.batch_posts: Counter[str] = Counter()
        self.events: list[dict[str, Any]] = []
        self.contexts: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self.blob_bytes_sent = 0
        self.leaked_credentials = 0
        self.faults = Faults()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Simulator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_all()

    # --- what an operator does ----------------------------------------------------------------------------------------------------

    def add_package(
        self,
        graph: bytes,
        *,
        version: int = 1,
        params: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        golden: tuple[bytes, bytes] | None = None,
        inputs: list[dict[str, Any]] | None = None,
        outputs: list[dict[str, Any]] | None = None,
        engine: str = "onnxruntime",
        account: str = ACCOUNT,
        model_id: str = "adder",
        variant: str = "onnx-fp32",
        change: Callable[[dict[str, Any]], None] | None = None,
        key: Key | None = None,
        graph_data: Mapping[str, bytes] | None = None,
    ) -> Package:
        """Sign a package and put its files into the store. `golden` is (input, output) as .npz."""
        entries = [("model.onnx" if engine == "onnxruntime" else "model.tflite", "graph", graph)]
        entries += [(path, "graph-data", data) for path, data in (graph_data or {}).items()]
        entries += [(path, "auxiliary", data) for path, data in (files or {}).items()]
        if golden is not None:
            entries += [("golden/input.npz", "golden", golden[0]), ("golden/output.npz", "golden", golden[1])]
        manifest: dict[str, Any] = {
            "manifest_version": 1,
            "account": account,
            "model_id": model_id,
            "version": version,
            "variant": variant,
            "created_at": "2026-11-22T10:00:00Z",
            "engine": {"name": engine, "min_version": "1.0", "ir_version": 8, "opset": {"": 15}, "operators": ["Add"]},
            "inputs": inputs or [{"name": "x", "dtype": "float32", "shape": [1, 4]}],
            "outputs": outputs or [{"name": "y", "dtype": "float32", "shape": [1, 4]}],
            "params": dict(params or {}),
            "files": [{"path": path, "role": role, "size": len(data), "sha256": sha256(data)} for path, role, data in entries],
            "requires": {},
            "golden": None,
            "lineage": {"source_sha256": [], "steps": []},
        }
        if golden is not None:
            manifest["golden"] = {"input": "golden/input.npz", "output": "golden/output.npz", "rtol": 0.01, "atol": 0.001}
        if change is not None:
            change(manifest)
        self.blobs |= {sha256(data): data for _, _, data in entries}
        return self.sign(manifest, key=key)

    def sign(self, manifest: dict[str, Any], *, key: Key | None = None) -> Package:
        raw = json.dumps(manifest, indent=1).encode()
        digest = sha256(raw)
        subjects = [("manifest.json", digest), *((file["path"], file["sha256"]) for file in manifest["files"])]
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": value}} for name, value in subjects],
            "predicateType": "https://latebind.dev/package/v1",
            "predicate": {name: manifest[name] for name in ("account", "model_id", "version", "variant")},
        }
        envelope = (key or self.package_key).envelope("application/vnd.in-toto+json", json.dumps(statement).encode())
        package = Package(digest, raw, json.dumps(envelope).encode())
        self.packages[digest] = package
        return package

    def add_adder(self, version: int, *, constant: float | None = None, golden_constant: float | None = None, ballast: int = 0) -> Package:
        """y = x + version: the answer tells the version. `golden_constant` makes the golden test expect something else."""
        added = float(version if constant is None else constant)
        x = np.arange(4, dtype=np.float32).reshape(1, 4)
        expected = x + np.float32(added if golden_constant is None else golden_constant)
        files = {"labels.txt": f"labels of version {version}\n".encode()}
        if ballast:
            files["ballast.bin"] = np.random.default_rng(version).bytes(ballast)
        return self.add_package(
            onnx_add((1, 4), constant=added),
            version=version,
            params={"C": {"type": "int", "value": version}, "labels": {"type": "file", "value": "labels.txt"}},
            files=files,
            golden=(npz(x=x), npz(y=expected)),
        )

    def assign(self, package: Package, collection: str = COLLECTION) -> None:
        with self.lock:
            self.assigned[collection] = package.digest
            self.refusals.pop(collection, None)
            self.revisions[collection] += 1

    def refuse(self, status: int, code: str, collection: str = COLLECTION, **extra: Any) -> None:
        self.refusals[collection] = (status, {"code": code, "title": code, "detail": f"refused: {code}", "poll": self.poll, **extra})

    # --- what came in -------------------------------------------------------------------------------------------------------------

    def states(self, package: Package | None = None) -> list[str]:
        return [event["state"] for event in self.events if package is None or event["package"] == package.digest]

    def samples(self) -> Counter[tuple[int, int]]:
        """Measurements by (version, phase)."""
        found: Counter[tuple[int, int]] = Counter()
        for batch in self.batches.values():
            for series in batch.series:
                count = len(series.samples.latency_delta_us) + sum(series.sketch.count)
                found[series.package.version, series.phase] += count
        return found

    def failures(self) -> list[tuple[int, str]]:
        return [(failure.phase, failure.code) for batch in self.batches.values() for failure in batch.failures]

    # --- routes -------------------------------------------------------------------------------------------------------------------

    def answer(self, request: _Request) -> None:
        path = request.path
        self.requests[re.sub(r"[0-9a-f]{64}", "*", path)] += 1
        for prefix, statuses in self.faults.statuses.items():
            if path.startswith(prefix) and statuses:
                headers = {"retry-after": self.faults.retry_after} if self.faults.retry_after else {}
                return request.problem(statuses.pop(0), "INJECTED", headers=headers)
        if path == "/v1/device/challenge":
            nonce = uuid.uuid4().hex
            self.nonces.add(nonce)
            return request.json(200, {"nonce": nonce, "expires_at": at(datetime.now(UTC) + timedelta(seconds=60))})
        if path == "/v1/device/enroll":
            return self.enrol(request)
        if path == "/v1/device/token":
            return self.renew(request)
        if path.startswith("/links/"):
            return self.blob(request, path.removeprefix("/links/"))
        install = self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if install is None:
            return request.problem(401, "UNAUTHORIZED")
        if found := re.fullmatch(r"/v1/device/collections/([^/]+):resolve", path):
            return self.resolve(request, install, found[1])
        if found := re.fullmatch(r"/v1/device/packages/([0-9a-f]{64})/(manifest|signature)", path):
            package = self.faults.packages.get(found[1], self.packages.get(found[1]))
            return request.problem(404, "NOT_FOUND") if package is None else request.send(200, getattr(package, found[2]))
        if found := re.fullmatch(r"/v1/device/blobs/([0-9a-f]{64})", path):
            return request.send(307, b"", {"location": f"/links/{found[1]}"})
        if path == "/v1/device/telemetry":
            return self.telemetry(request)
        if path == "/v1/device/events":
            with self.lock:
                self.events += json.loads(request.body)["events"]
            return request.send(202, b"")
        return request.problem(404, "NOT_FOUND")

    def enrol(self, request: _Request) -> None:
        body = json.loads(request.body)
        if body["enrolment_key"] != ENROLMENT_KEY:
            return request.problem(403, "ENROLMENT_KEY_INVALID")
        text = f"latebind-enrol-v1\n{body['account']}\n{body['install_id']}\n{body['public_key']}\n{body['nonce']}"
        public_key = base64.b64decode(body["public_key"])
        self.check(public_key, text, body)
        if self.installs.get(body["install_id"], public_key) != public_key:
            return request.problem(409, "INSTALL_ALREADY_ENROLLED")
        self.installs[body["install_id"]] = public_key
        return request.json(201, self.token_answer(body["install_id"]))

    def renew(self, request: _Request) -> None:
        body = json.loads(request.body)
        public_key = self.installs.get(body["install_id"])
        if public_key is None:
            return request.problem(401, "UNAUTHORIZED")
        self.check(public_key, f"latebind-token-v1\n{body['account']}\n{body['install_id']}\n{body['nonce']}", body)
        return request.json(200, self.token_answer(body["install_id"]))

    def check(self, public_key: bytes, text: str, body: dict[str, Any]) -> None:
        self.nonces.remove(body["nonce"])
        Ed25519PublicKey.from_public_bytes(public_key).verify(base64.b64decode(body["signature"]), text.encode())

    def token_answer(self, install: str) -> dict[str, Any]:
        token = f"token-{uuid.uuid4().hex}"
        self.tokens[token] = install
        trust = {"package_keys": [self.package_key.public()], "assignment_keys": [self.assignment_key.public()]}
        return {"token": token, "expires_at": at(datetime.now(UTC) + self.token_life), "trust": trust}

    def resolve(self, request: _Request, install: str, collection: str) -> None:
        context = json.loads(request.body)
        self.contexts.append(context)
        assert context["install_id"] == install
        if collection in self.refusals:
            status, problem = self.refusals[collection]
            return request.json(status, {"status": status, **problem}, content_type="application/problem+json")
        with self.lock:
            digest = self.assigned.get(collection)
            revision = self.revisions[collection]
            self.counter += 1
            counter = self.counter
        if digest is None:
            return request.problem(404, "COLLECTION_NOT_FOUND")
        etag = f'"{revision}.{digest[:16]}"'
        advice = f"after={self.poll['after_s']}; spread={self.poll['spread_s']}"
        if request.headers.get("if-none-match") == etag:
            return request.send(304, b"", {"etag": etag, "latebind-poll": advice})
        now = datetime.now(UTC) + self.faults.clock_skew
        payload = {
            "type": "latebind-assignment-v1",
            "account": ACCOUNT,
            "install_id": install,
            "collection": collection,
            "revision": revision,
            "package": digest,
            "counter": counter,
            "nonce": request.headers.get("latebind-nonce", ""),
            "issued_at": at(now),
            "expires_at": at(now + self.assignment_life),
        }
        if self.faults.change_assignment is not None:
            payload = self.faults.change_assignment(payload)
        envelope = self.assignment_key.envelope("application/vnd.latebind.assignment+json", json.dumps(payload).encode())
        if self.faults.change_envelope is not None:
            envelope = self.faults.change_envelope(envelope)
        manifest = self.packages[digest].parsed
        answer = {
            "decision_id": f"d_{counter}",
            "revision": revision,
            "reason": "TARGETING_MATCH",
            "rule_id": "r1",
            "package": {
                "digest": digest,
                **{name: manifest[name] for name in ("model_id", "version", "variant")},
                "size": sum(file["size"] for file in manifest["files"]),
                "manifest_url": f"/v1/device/packages/{digest}/manifest",
                "signature_url": f"/v1/device/packages/{digest}/signature",
            },
            "assignment": envelope,
            "poll": self.poll,
        }
        if self.faults.change_answer is not None:
            answer = self.faults.change_answer(answer)
        return request.json(200, answer, headers={"etag": etag})

    def telemetry(self, request: _Request) -> None:
        raw = zstandard.ZstdDecompressor().decompress(request.body, max_output_size=8 << 20)
        batch = TelemetryBatch.FromString(raw)
        with self.lock:
            self.batch_posts[batch.batch_id.hex()] += 1
            self.batches[batch.batch_id.hex()] = batch
        return request.json(202, {"batch_id": batch.batch_id.hex()})

    def blob(self, request: _Request, digest: str) -> None:
        self.leaked_credentials += "authorization" in request.headers
        data = self.blobs.get(digest)
        if data is None:
            return request.problem(404, "NOT_FOUND")
        if self.faults.change_blob is not None:
            data = self.faults.change_blob(data)
        headers = {"etag": f'"{digest}"', "accept-ranges": "bytes"}
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if asked and request.headers.get("if-range", f'"{digest}"') == f'"{digest}"' and not self.faults.ignore_ranges:
            start, status = int(asked[1]), 206
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.faults.cut_blobs_at.pop(0) if self.faults.cut_blobs_at else None
        request.start(status, len(data) - start, headers)
        end = len(data) if cut is None else min(start + cut, len(data))
        for position in range(start, end, 16 << 10):
            piece = data[position : min(position + (16 << 10), end)]
            request.handler.wfile.write(piece)
            with self.lock:
                self.blob_bytes_sent += len(piece)
            if self.faults.blob_delay_s:
                time.sleep(self.faults.blob_delay_s)
        return request.cut() if end < len(data) else None


class _Request:
    def __init__(self, handler: _Handler, body: bytes) -> None:
        self.handler = handler
        self.path = handler.path
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body = body

    def start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.handler.send_response(status)
        for name, value in {"content-length": str(length), **headers}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.start(status, len(body), headers or {})
        self.handler.wfile.write(body)

    def json(self, status: int, body: Any, *, headers: Mapping[str, str] | None = None, content_type: str = "application/json") -> None:
        self.send(status, json.dumps(body).encode(), {"content-type": content_type, **(headers or {})})

    def problem(self, status: int, code: str, *, headers: Mapping[str, str] | None = None) -> None:
        problem = {"type": "about:blank", "title": code, "status": status, "detail": f"simulated {code}", "code": code}
        self.json(status, problem, headers=headers, content_type="application/problem+json")

    def cut(self) -> None:
        self.handler.close_connection = True
        with contextlib.suppress(OSError):
            self.handler.wfile.flush()
            self.handler.connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().finish()

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            super().handle_one_request()
            return
        self.close_connection = True

    def do_GET(self) -> None:
        simulator = self.server.simulator
        length = int(self.headers.get("content-length") or 0)
        request = _Request(self, self.rfile.read(length))
        if simulator.faults.refuse_connections:
            request.cut()
            return
        with contextlib.suppress(ConnectionError):
            simulator.answer(request)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], simulator: Simulator) -> None:
        super().__init__(address, _Handler)
        self.simulator = simulator
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        """Kept-alive connections end with the server, as they do when a real one stops."""
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def running() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator
