"""Use cases of uploads. Bytes go to the blob store before the transaction, never inside it; what is acknowledged is durable."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from kit.blobs import BlobMismatch, BlobNotFound, BlobStore
from kit.clock import Clock
from kit.db import Database, Transaction
from kit.ids import new_id
from kit.logs import get_logger
from services.registry.uploads import store
from services.registry.uploads.domain import MAX_OPEN_UPLOADS, Part, Upload
from services.registry.uploads.errors import (
    TooManyUploads,
    UploadComplete,
    UploadDigestMismatch,
    UploadHeaderInvalid,
    UploadIncomplete,
    UploadNotFound,
    UploadOffsetMismatch,
    UploadPartMismatch,
    UploadPartTooLarge,
    UploadTooLarge,
)

log = get_logger(__name__)

_EXPIRED_AT_ONCE = 100
#: An upload is unknown once it has expired, and cleared away this much later: no part that is being written can still belong to it.
_GRACE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What an upload may be: bytes of a file, bytes of a part, and how long it is kept after the last part."""

    max_bytes: int
    part_bytes: int
    lifetime: timedelta


class UploadService:
    """Resumable uploads into the account's namespace of the blob store."""

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock, limits: UploadLimits) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self.limits = limits

    async def create(self, account: str, *, size: int, sha256: str | None, filename: str, by: str) -> Upload:
        """Begin an upload. Raises `UploadTooLarge`, `TooManyUploads`."""
        if size > self.limits.max_bytes:
            raise UploadTooLarge(f"the file has {size} bytes; at most {self.limits.max_bytes} are taken", max_bytes=self.limits.max_bytes)
        now = self._clock.now()
        upload = Upload(new_id("u", self._clock), account, filename, size, sha256, 0, None, now, by, now + self.limits.lifetime)
        async with self._database.begin() as tx:
            if await store.count_open(tx, account, now=now) >= MAX_OPEN_UPLOADS:
                raise TooManyUploads(f"an account has at most {MAX_OPEN_UPLOADS} unfinished uploads; complete them or let them expire")
            await store.add_upload(tx, upload)
        return upload

    async def find(self, account: str, upload_id: str) -> Upload:
        """Return where an upload stands. Raises `UploadNotFound`."""
        async with self._database.read() as reader:
            return self._known(await store.find_upload(reader, account, upload_id))

    async def add_part(
        self, account: str, upload_id: str, *, offset: int, sha256: str, announced: int | None, chunks: AsyncIterator[bytes]
    ) -> Upload:
        """Store one part and move the offset behind it, both durable before this returns.

        `announced` is the part's length if the sender said it. Raises `UploadNotFound`, `UploadComplete`, `UploadOffsetMismatch`,
        `UploadPartTooLarge`, `UploadPartMismatch`, `UploadHeaderInvalid` for an empty part.
        """
        upload = await self.find(account, upload_id)
        self._check_offset(upload, offset)
        room = min(self.limits.part_bytes, upload.size - offset)
        too_large = UploadPartTooLarge(f"at most {room} bytes fit into a part at offset {offset}", max_bytes=room)
        if announced is not None and announced > room:
            raise too_large
        if announced == 0:
            raise UploadHeaderInvalid("a part holds at least one byte")
        try:
            async with aclosing(_capped(chunks, room, too_large)) as bounded:
                info = await self._blobs.put(upload.parts_namespace, bounded, sha256=sha256, size=announced)
        except BlobMismatch as error:
            raise UploadPartMismatch(
                "the bytes that arrived are not those of Content-Digest; send the part again", **error.extra
            ) from error
        if info.size == 0:
            raise UploadHeaderInvalid("a part holds at least one byte")
        async with self._database.begin() as tx:
            upload = await self._lock(tx, account, upload_id)
            self._check_offset(upload, offset)
            part = Part(offset, info.size, info.sha256)
            await store.add_part(tx, upload, part, expires_at=self._clock.now() + self.limits.lifetime)
            return await self._lock(tx, account, upload_id)

    async def complete(self, account: str, upload_id: str, *, sha256: str) -> Upload:
        """Join the parts into one blob of the account and check its digest. Doing it again answers alike.

        Raises `UploadNotFound`, `UploadIncomplete`, `UploadDigestMismatch` (the upload stays as it was).
        """
        async with self._database.read() as reader:
            upload = self._known(await store.find_upload(reader, account, upload_id))
            parts = await store.list_parts(reader, upload)
        self._check_digest(upload, sha256)
        if upload.completed_sha256 is not None:
            return upload
        if upload.received < upload.size:
            raise UploadIncomplete(f"{upload.received} of {upload.size} bytes are here; go on from there", offset=upload.received)
        try:
            async with aclosing(self._joined(upload, parts)) as chunks:
                await self._blobs.put(account, chunks, sha256=sha256, size=upload.size)
        except BlobMismatch as error:
            raise UploadDigestMismatch(
                "the file has another SHA-256 than was claimed; complete it with the right one", **error.extra
            ) from error
        except BlobNotFound:
            # Somebody else completed it while the parts were read, and cleared them away.
            upload = await self.find(account, upload_id)
            if upload.completed_sha256 != sha256:
                raise
            return upload
        async with self._database.begin() as tx:
            upload = await self._lock(tx, account, upload_id)
            await store.complete_upload(tx, upload, sha256, expires_at=self._clock.now() + self.limits.lifetime)
            await store.delete_parts(tx, upload)
            completed = await self._lock(tx, account, upload_id)
        await self._delete_blobs(completed, parts)
        return completed

    async def clear_expired(self) -> int:
        """Delete uploads whose time is over, with their parts; returns how many. Completed files stay."""
        cleared = 0
        while True:
            async with self._database.read() as reader:
                over = await store.list_expired(reader, now=self._clock.now() - _GRACE, limit=_EXPIRED_AT_ONCE)
                expired = [(upload, await store.list_parts(reader, upload)) for upload in over]
            for upload, parts in expired:
                await self._delete_blobs(upload, parts)
                async with self._database.begin() as tx:
                    await store.delete_upload(tx, upload)
            cleared += len(expired)
            if len(expired) < _EXPIRED_AT_ONCE:
                return cleared

    async def _joined(self, upload: Upload, parts: Sequence[Part]) -> AsyncGenerator[bytes, None]:
        for part in parts:
            async for chunk in self._blobs.open(upload.parts_namespace, part.sha256):
                yield chunk

    async def _delete_blobs(self, upload: Upload, parts: Sequence[Part]) -> None:
        for sha256 in {part.sha256 for part in parts}:
            await self._blobs.delete(upload.parts_namespace, sha256)

    async def _lock(self, tx: Transaction, account: str, upload_id: str) -> Upload:
        return self._known(await store.find_upload(tx, account, upload_id, lock=True))

    def _known(self, upload: Upload | None) -> Upload:
        if upload is None or upload.expires_at <= self._clock.now():
            raise UploadNotFound("there is no such upload, or it has expired")
        return upload

    def _check_offset(self, upload: Upload, offset: int) -> None:
        if upload.completed_sha256 is not None:
            raise UploadComplete("this upload is complete already", sha256=upload.completed_sha256)
        if upload.received != offset:
            raise UploadOffsetMismatch(f"the upload stands at {upload.received}, not at {offset}; go on from there", offset=upload.received)

    def _check_digest(self, upload: Upload, sha256: str) -> None:
        known = upload.completed_sha256 or upload.sha256
        if known is not None and known != sha256:
            raise UploadDigestMismatch("another SHA-256 was announced for this upload", sha256=known)


async def _capped(chunks: AsyncIterator[bytes], room: int, too_large: UploadPartTooLarge) -> AsyncGenerator[bytes, None]:
    arrived = 0
    async for chunk in chunks:
        arrived += len(chunk)
        if arrived > room:
            raise too_large
        yield chunk
