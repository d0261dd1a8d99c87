"""Uploads as values, and the digest header of a part. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import datetime

from services.registry.uploads.errors import UploadHeaderInvalid

#: Unfinished uploads that an account may have at once.
MAX_OPEN_UPLOADS = 1000

# RFC 9530, section 2: a dictionary of algorithm=:base64:.
_SHA256_MEMBER = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):")
_OFFSET = re.compile(r"\d{1,16}")


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload. `received` bytes are durable; `completed_sha256` is set when the file is there."""

    upload_id: str
    account: str
    filename: str
    size: int
    sha256: str | None
    received: int
    completed_sha256: str | None
    created_at: datetime
    created_by: str
    expires_at: datetime

    @property
    def parts_namespace(self) -> str:
        """Where the parts are in the blob store: in a namespace of this upload, which no account's name can be (it has `_`).

        Parts are content-addressed too. In the account's namespace, two uploads with an equal part, or a file that is one part, would
        share a blob, and clearing one away would take the other's bytes.
        """
        return self.upload_id


@dataclass(frozen=True, slots=True)
class Part:
    """One part: `size` bytes from `start` on."""

    start: int
    size: int
    sha256: str


def read_offset(value: str | None) -> int:
    """Return the offset of `Upload-Offset`. Raises `UploadHeaderInvalid`."""
    if value is None or not _OFFSET.fullmatch(value):
        raise UploadHeaderInvalid("Upload-Offset must be the number of bytes that were sent before this part")
    return int(value)


def read_digest(value: str | None) -> str:
    """Return the hex SHA-256 of a `Content-Digest` header (RFC 9530). Raises `UploadHeaderInvalid`."""
    match = _SHA256_MEMBER.search(value or "")
    try:
        raw = base64.b64decode(match[1], validate=True) if match else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise UploadHeaderInvalid("Content-Digest must be sha-256=:<base64 of the part's SHA-256>: (RFC 9530)")
    return raw.hex()
