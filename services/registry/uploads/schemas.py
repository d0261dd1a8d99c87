"""Request and response models of uploads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from kit.web import Model
from services.registry.uploads.domain import Upload

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class NewUpload(Model):
    """A file to upload. With `sha256`, completing it with another digest is refused."""

    size: Annotated[int, Field(ge=0, lt=1 << 53, strict=True)]
    sha256: _Digest | None = None
    filename: Annotated[str, Field(max_length=255)] = ""


class UploadView(Model):
    """Where an upload stands: `offset` bytes of `size` are durable. `sha256` is set once it is complete."""

    upload_id: str
    filename: str
    size: int
    offset: int
    part_size_max: int
    expires_at: datetime
    sha256: str | None

    @classmethod
    def of(cls, upload: Upload, part_size_max: int) -> UploadView:
        """Show an upload."""
        return cls(
            upload_id=upload.upload_id,
            filename=upload.filename,
            size=upload.size,
            offset=upload.received,
            part_size_max=part_size_max,
            expires_at=upload.expires_at,
            sha256=upload.completed_sha256,
        )


class Completion(Model):
    """The SHA-256 of the whole file, as the sender knows it."""

    sha256: _Digest


class UploadedFile(Model):
    """A file that is there: what a declaration names."""

    sha256: str
    size: int
