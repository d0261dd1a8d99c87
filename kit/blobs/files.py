"""Blobs as local files: `root/<namespace>/<first two digits>/<sha256>`.

A blob is written to a temporary file on the same disk while it is hashed, synced, linked to its place without replacing anything,
and the folder is synced: it is there whole or not at all, and stays. Several processes may share one root. It does not check bytes
when it reads them: devices verify what they download.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from kit.blobs import BlobInfo, BlobNotFound, arrival, naming
from kit.blobs.arrival import CHUNK_BYTES
from kit.blobs.examination import examine_use
from kit.blobs.links import sign_link
from kit.checks import Findings, room
from kit.clock import Clock, SystemClock
from kit.errors import Unavailable
from kit.logs import get_logger

_THREADS = 8
_TEMPORARY = ".tmp"

log = get_logger(__name__)
T = TypeVar("T")


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Unavailable("the disk of the blob store is full") from error
        raise Unavailable(f"the blob store cannot be used: {error.strerror}") from error


class _Incoming:
    """A temporary file that is hashed while it grows. The lock lets a cancelled request give it up while a thread still writes."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._path = folder / secrets.token_hex(16)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        # Held until the descriptor is closed, so that another process does not take it for a leftover.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.size = 0

    def write(self, chunks: list[bytes]) -> None:
        with self._lock:
            for chunk in chunks:
                self._hash.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(self._file, view) :]
                self.size += len(chunk)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def place(self, target: Path) -> None:
        """Sync, then appear at `target` unless the blob is there already."""
        with self._lock:
            os.fsync(self._file)
            made = _make_folder(target.parent)
            try:
                os.link(self._path, target)
            except FileExistsError:
                if target.stat().st_size != self.size:
                    log.error("a blob on disk had the wrong size and was replaced", sha256=target.name)
                    self._path.replace(target)
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
                    raise
                self._path.replace(target)
            # Also when it was there: who put it there may not have synced yet.
            for folder in (target.parent, *made):
                _sync_folder(folder)

    def discard(self) -> None:
        with self._lock:
            if self._file >= 0:
                self._path.unlink(missing_ok=True)
                os.close(self._file)
                self._file = -1


class _Outgoing:
    """A file that is read in pieces, and may be closed while a thread reads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, start: int, length: int) -> bytes:
        with self._lock:
            return os.pread(self._file, length, start) if self._file >= 0 else b""

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


class FileBlobs:
    """See `kit.blobs.BlobStore`. Made by `open_file_blobs`."""

    def __init__(self, root: Path, *, link_secret: bytes, clock: Clock) -> None:
        self._root = root
        self._temporary = root / _TEMPORARY
        self._link_secret = link_secret
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")

    async def put(self, namespace: str, chunks: AsyncIterable[bytes], *, sha256: str | None = None, size: int | None = None) -> BlobInfo:
        """Store a stream; see `kit.blobs.BlobStore`. Raises `Invalid` for a `sha256` that is not one, `Unavailable` for a full disk."""
        self._folder(namespace)
        arrival.check_announced_digest(sha256)
        incoming = await self._run(lambda: _Incoming(self._temporary))
        try:
            await arrival.receive(chunks, size=size, write=lambda some: self._write(incoming, some))
            info = BlobInfo(incoming.digest(), incoming.size)
            arrival.check_arrived(info, sha256, size)
            await self._run(lambda: incoming.place(self._path(namespace, info.sha256)))
            return info
        finally:
            await self._run(incoming.discard)

    async def _write(self, incoming: _Incoming, chunks: list[bytes]) -> None:
        await self._run(lambda: incoming.write(chunks))

    async def open(self, namespace: str, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Iterate over the bytes in pieces of `CHUNK_BYTES`; see `kit.blobs.BlobStore`."""
        path = self._path(namespace, sha256)
        try:
            outgoing = await asyncio.get_running_loop().run_in_executor(self._threads, _Outgoing, path)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobNotFound("there is no such blob") from None
        try:
            left = length
            while left is None or left > 0:
                wanted = CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
                chunk = await self._run(lambda place=start, wanted=wanted: outgoing.read(place, wanted))  # type: ignore[misc]
                if not chunk:
                    return
                start += len(chunk)
                left = None if left is None else left - len(chunk)
                yield chunk
        finally:
            # Not awaited: whoever stopped reading need not wait for a read that is under way.
            with suppress(RuntimeError):
                self._threads.submit(outgoing.close)

    async def stat(self, namespace: str, sha256: str) -> BlobInfo:
        """Return size and digest; see `kit.blobs.BlobStore`."""
        path = self._path(namespace, sha256)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, path.stat)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobNotFound("there is no such blob") from None
        return BlobInfo(sha256, found.st_size)

    async def delete(self, namespace: str, sha256: str) -> None:
        """Remove a blob; see `kit.blobs.BlobStore`."""
        path = self._path(namespace, sha256)
        with suppress(NotADirectoryError):
            await self._run(lambda: path.unlink(missing_ok=True))

    async def link(self, namespace: str, sha256: str, *, expires_in_s: int) -> str:
        """Return a signed path that `kit.blobs.links` serves; see `kit.blobs.BlobStore`."""
        await self.stat(namespace, sha256)
        expires_at = int(self._clock.now().timestamp()) + expires_in_s
        return sign_link(self._link_secret, namespace, sha256, expires_at)

    async def ping(self) -> None:
        """Raise `Unavailable` when files cannot be made."""
        if not await self._run(lambda: os.access(self._temporary, os.W_OK | os.X_OK)):
            raise Unavailable("the folder of the blob store cannot be written")

    async def examine(self) -> Findings:
        """Use the store, and look for room; see `kit.blobs.BlobStore`."""
        async for finding in examine_use(self):
            yield finding
        yield await self._run(lambda: room(self._root))

    def prepare(self) -> None:
        """Make the folders and delete what a killed process left behind."""
        with _as_unavailable():
            self._temporary.mkdir(parents=True, exist_ok=True)
            for leftover in self._temporary.iterdir():
                _delete_unless_locked(leftover)

    def close(self) -> None:
        """End the threads after what they do now."""
        self._threads.shutdown(wait=True)

    def _folder(self, namespace: str) -> Path:
        return self._root / naming.check_namespace(namespace)

    def _path(self, namespace: str, sha256: str) -> Path:
        folder = self._folder(namespace)
        return folder / naming.check_digest(sha256)[:2] / sha256

    async def _run(self, work: Callable[[], T]) -> T:
        with _as_unavailable():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _make_folder(folder: Path) -> list[Path]:
    """Make the folder of a blob; return the folders whose entries are new."""
    if folder.is_dir():
        return []
    parents = [folder.parent] if folder.parent.is_dir() else [folder.parent, folder.parent.parent]
    folder.mkdir(parents=True, exist_ok=True)
    return parents


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete_unless_locked(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(handle)


@asynccontextmanager
async def open_file_blobs(url: str, *, link_secret: bytes, clock: Clock | None = None) -> AsyncIterator[FileBlobs]:
    """Open `file:/path/to/folder`; the folder is made. Raises `ValueError` for another kind of URL."""
    parts = urlsplit(url)
    if not parts.path or parts.netloc or parts.query:
        raise ValueError("a local blob store is named file:/path/to/folder")
    blobs = FileBlobs(Path(unquote(parts.path)), link_secret=link_secret, clock=clock or SystemClock())
    try:
        await asyncio.to_thread(blobs.prepare)
        yield blobs
    finally:
        await asyncio.to_thread(blobs.close)
