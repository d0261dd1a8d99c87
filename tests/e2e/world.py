"""What end-to-end tests need of a running server, through its public API only: an account, models, collections, devices."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latebind.device.agent import DeviceAgent
from latebind.device.options import DeviceOptions
from tests.server import Api

T = TypeVar("T")


def eventually(check: Callable[[], T], *, within_s: float = 30, every_s: float = 0.05) -> T:
    """Return the first answer that is true; fails with the last one."""
    deadline = time.monotonic() + within_s
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within_s} s: {answer!r}"
        time.sleep(every_s)


class World:
    """One account on a server. `client` has its admin key."""

    def __init__(self, server: Api, account: str = "acme") -> None:
        self.server = server
        self.account = account
        self.key = server.new_account(account)
        self.client = server.client(self.key)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def ok(self, response: httpx2.Response) -> dict[str, Any]:
        """Return the answer's JSON; fails with its text."""
        assert response.status_code < 300, f"{response.request.method} {response.request.url}: {response.status_code} {response.text}"
        return dict(response.json()) if response.content else {}

    def upload(self, data: bytes, *, part: int = 8 << 20) -> dict[str, Any]:
        """Upload bytes in parts; returns `{"sha256", "size"}`."""
        upload = self.ok(self.client.post("/v1/uploads", json={"size": len(data)}))["upload_id"]
        for offset in range(0, max(len(data), 1), part):
            piece = data[offset : offset + part]
            digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
            headers = {"upload-offset": str(offset), "content-digest": f"sha-256=:{digest}:", "content-type": "application/octet-stream"}
            self.ok(self.client.put(f"/v1/uploads/{upload}", content=piece, headers=headers))
        return self.ok(self.client.post(f"/v1/uploads/{upload}:complete", json={"sha256": hashlib.sha256(data).hexdigest()}))

    def commit(
        self, model_id: str, variants: Mapping[str, tuple[str, bytes]], *, files: Mapping[str, bytes] | None = None, **declared: Any
    ) -> dict[str, Any]:
        """Upload, declare and commit a version (the model is made when it is new); returns the commit's answer."""
        return self.declare(
            model_id,
            {
                "variants": [
                    {"name": name, "files": [{"path": path, "role": "graph", **self.upload(data)}]}
                    for name, (path, data) in variants.items()
                ],
                "files": [{"path": path, **self.upload(data)} for path, data in (files or {}).items()],
                **declared,
            },
        )

    def declare(self, model_id: str, declaration: Mapping[str, Any]) -> dict[str, Any]:
        """Declare and commit a version of uploaded files (the model is made when it is new); returns the commit's answer."""
        made = self.client.post("/v1/models", json={"model_id": model_id})
        assert made.status_code in {201, 409}, made.text
        version = self.ok(self.client.post(f"/v1/models/{model_id}/versions", json=declaration))["version"]
        return self.ok(self.client.post(f"/v1/models/{model_id}/versions/{version}:commit", json={}))

    def push(self, model_id: str, variants: Mapping[str, tuple[str, bytes]], **more: Any) -> int:
        """Commit a version and wait until it is ready; returns its number."""
        return self.ready(model_id, self.commit(model_id, variants, **more), within_s=60)

    def ready(self, model_id: str, committed: Mapping[str, Any], *, within_s: float) -> int:
        """Wait until a committed version is ready; returns its number."""
        version = int(committed["version"])

        def ended() -> dict[str, Any] | None:
            state = self.ok(self.client.get(f"/v1/models/{model_id}/versions/{version}"))
            return state if state["state"] in {"ready", "failed"} else None

        state = eventually(ended, within_s=within_s)
        assert state["state"] == "ready", state
        return version

    def collection(self, rules: Mapping[str, Any]) -> str:
        """Make a collection with published rules; returns its id."""
        collection = str(self.ok(self.client.post("/v1/collections", json={"name": "test"}))["id"])
        self.publish(collection, rules)
        return collection

    def publish(self, collection: str, rules: Mapping[str, Any]) -> int:
        """Replace the draft and publish it; returns the revision."""
        self.ok(self.client.put(f"/v1/collections/{collection}/draft", json=rules))
        return int(self.ok(self.client.post(f"/v1/collections/{collection}:publish", json={}))["revision"]["revision"])

    def enrolment_key(self, quota: int = 1000) -> str:
        """Make an enrolment key."""
        return str(self.ok(self.client.post("/v1/enrolment-keys", json={"name": "test", "quota": quota}))["key"])

    def device(self, folder: Path, enrolment_key: str, *, context: Mapping[str, Any] | None = None, **options: Any) -> DeviceAgent:
        """A device of this account: the real SDK, driven by calls."""
        return DeviceAgent(
            server=self.server.url,
            account=self.account,
            cache_dir=folder,
            enrolment_key=enrolment_key,
            context=context,
            options=DeviceOptions(**{"start_spread_s": 0.0, "retry_base_s": 0.05, "retry_cap_s": 0.5, **options}),
        )

    def device_token(self, enrolment_key: str) -> tuple[str, str]:
        """Enrol by hand, as docs/wire.md says; returns install id and token."""
        private = Ed25519PrivateKey.generate()
        install_id = str(uuid.uuid4())
        public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
        with httpx2.Client(base_url=self.server.url) as nobody:
            nonce = self.ok(nobody.post("/v1/device/challenge"))["nonce"]
            proof = f"latebind-enrol-v1\n{self.account}\n{install_id}\n{public}\n{nonce}"
            body = {
                "account": self.account,
                "enrolment_key": enrolment_key,
                "install_id": install_id,
                "public_key": public,
                "nonce": nonce,
                "signature": base64.b64encode(private.sign(proof.encode())).decode(),
            }
            return install_id, str(self.ok(nobody.post("/v1/device/enroll", json=body))["token"])

    def inferences(self, **params: Any) -> int:
        """All inferences that analytics know."""
        return sum(int(row["inferences"]) for row in self.rows("/v1/analytics/inferences", **params))

    def rows(self, path: str, **params: Any) -> Sequence[Mapping[str, Any]]:
        """Rows of an analytics answer."""
        answer = self.ok(self.client.get(path, params=params))
        return list(answer.get("items", answer.get("rows", ())))
