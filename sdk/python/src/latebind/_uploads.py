"""Resumable uploads: a file goes up in parts, and a broken connection costs at most one part."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from latebind._files import sha256_of
from latebind._session import Json, Session, segment
from latebind.errors import Conflict, ServerError, ServerUnreachable, Unavailable

PART_BYTES = 8 << 20
# Parts that fail in a row before the upload is given up; the server keeps what it has.
MAX_FAILURES = 5

Progress = Callable[[int], None]


def _silent(_done: int) -> None:
    """Tell nobody."""


class Uploads:
    """Files on their way to the server (`/v1/uploads`)."""

    def __init__(self, session: Session, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._session = session
        self._sleep = sleep

    def send_file(self, path: Path, *, progress: Progress = _silent, part_bytes: int = PART_BYTES) -> tuple[str, int]:
        """Upload a file; its (sha256, size). `progress` takes the bytes that the server has acknowledged.

        Raises ServerError, ServerUnreachable after several parts in a row have failed, OSError.
        """
        size, digest = path.stat().st_size, sha256_of(path)
        created = self._session.post("/v1/uploads", {"filename": path.name, "size": size, "sha256": digest})
        upload = f"/v1/uploads/{segment(created['upload_id'])}"
        part_bytes = min(part_bytes, int(created["part_size_max"]))
        offset, failures = int(created["offset"]), 0
        with path.open("rb") as file:
            while offset < size:
                progress(offset)
                file.seek(offset)
                part = file.read(min(part_bytes, size - offset))
                try:
                    offset = self._send_part(upload, offset, part)
                    failures = 0
                except (ServerUnreachable, Unavailable, Conflict) as error:
                    failures += 1
                    if failures > MAX_FAILURES or (isinstance(error, Conflict) and failures > 1):
                        raise
                    self._sleep(min(0.25 * 2.0**failures, 5.0) + (getattr(error, "retry_after_s", None) or 0.0))
                    offset = self.offset(upload)
        self.complete(upload, digest)
        progress(size)
        return digest, size

    def _send_part(self, upload: str, offset: int, part: bytes) -> int:
        """Send one part; the offset that the server has reached."""
        part_digest = base64.b64encode(hashlib.sha256(part).digest()).decode()
        headers = {
            "content-type": "application/octet-stream",
            "upload-offset": str(offset),
            "content-digest": f"sha-256=:{part_digest}:",
        }
        answer = self._session.send_once("PUT", upload, headers=headers, body=part)
        return int(answer.headers.get("upload-offset", offset + len(part)))

    def offset(self, upload: str) -> int:
        """How many bytes the server has."""
        return int(self._session.request("HEAD", upload).headers["upload-offset"])

    def complete(self, upload: str, digest: str) -> Json:
        """Say that all parts are there; the server compares the digest. Raises ServerError."""
        answer: Json = self._session.post(f"{upload}:complete", {"sha256": digest})
        if answer["sha256"] != digest:
            raise ServerError("the server has other bytes than were sent", status=200, code="DIGEST_MISMATCH")
        return answer
