"""The files of a version between the blob store and a job's folder. Parses nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kit.blobs import BlobMismatch, BlobNotFound, BlobStore
from services.packager.declaration import File
from services.packager.errors import ModelRejected, Reason

_CHUNK = 2**20


class Files:
    """Fetches and keeps the files of one account."""

    def __init__(self, blobs: BlobStore, account: str) -> None:
        self._blobs = blobs
        self.account = account

    async def check(self, file: File) -> None:
        """Raise `ModelRejected` when a declared file was not uploaded, or has another size."""
        try:
            info = await self._blobs.stat(self.account, file.sha256)
        except BlobNotFound as error:
            raise ModelRejected(
                Reason.FILE_MISSING, f"{file.path} was not uploaded (sha256 {file.sha256}). Upload it and commit again."
            ) from error
        if info.size != file.size:
            raise ModelRejected(Reason.FILE_MISMATCH, f"{file.path} was declared with {file.size} bytes, but {info.size} were uploaded.")

    async def fetch(self, file: File, target: Path) -> None:
        """Copy a file to a place that does not exist yet, and check its digest. Raises as `check`, and `BlobMismatch`."""
        await self.check(file)
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as copy:
            async for chunk in self._blobs.open(self.account, file.sha256):
                await asyncio.to_thread(_write, copy, digest, chunk)
        if digest.hexdigest() != file.sha256:
            raise BlobMismatch(f"the stored bytes of {file.path} are not the ones that were uploaded")

    async def keep(self, source: Path, path: str, role: str) -> File:
        """Store a file that was made here as a blob, and return its entry in a package."""
        info = await self._blobs.put(self.account, _chunks(source))
        return File(path, info.sha256, info.size, role)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(copy: Any, digest: Any, chunk: bytes) -> None:
    digest.update(chunk)
    copy.write(chunk)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
