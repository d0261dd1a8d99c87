"""One file from the server to the disk: resumed where it broke off, hashed on the way, stopped at the signed length, placed whole.

What has arrived stays in a partial file that carries the digest in its name, so that a later process can go on. A partial file that another
download holds is left alone; if that cannot be told on this file system, the digest still decides what is placed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from latebind._files import READ_SIZE, disk_errors, place
from latebind._transport import Stream
from latebind.device.clock import Clock
from latebind.errors import DiskFull, DownloadFailed, ServerUnreachable, VerificationFailed


class BlobSource(Protocol):
    """Where the bytes come from: `DeviceApi.blob`."""

    def __call__(self, sha256: str, *, offset: int, timeout_s: float) -> AbstractContextManager[Stream]:
        """Open a stream of the blob from `offset` on; the stream may also begin at 0."""
        ...


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """When a download is given up: after `silence_s` seconds of silence, or below `minimum_rate` bytes per second in a `window_s`."""

    silence_s: float = 20.0
    minimum_rate: float = 1024.0
    window_s: float = 30.0


def download(sha256: str, size: int, *, source: BlobSource, partials: Path, target: Path, clock: Clock, limits: DownloadLimits) -> int:
    """Fetch one blob to `target`, which appears whole or not at all; the number of bytes that came over the network.

    Raises DownloadFailed, ServerUnreachable and ServerError (what has arrived is kept for the next try), VerificationFailed
    (`DIGEST_MISMATCH`, `LENGTH_MISMATCH`), DiskFull.
    """
    with _claimed_partial(partials, sha256) as (path, file):
        hasher = hashlib.sha256()
        have = _rehash(file, hasher, size)
        received = 0
        if have < size:
            received = _receive(sha256, have, size, source=source, file=file, hasher=hasher, path=path, clock=clock, limits=limits)
        if hasher.hexdigest() != sha256:
            path.unlink()
            if have:
                # The part from before may be to blame (a power cut can leave a hole in it): start over before accusing the server.
                raise DownloadFailed("a resumed file did not become the one that was signed; the next try starts over")
            raise VerificationFailed("a downloaded file is not the one that was signed", code="DIGEST_MISMATCH")
        with disk_errors(path):
            file.flush()
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        place(path, target)
        return received


def sweep_partials(partials: Path, *, keep: frozenset[str] = frozenset()) -> int:
    """Remove partial files that nobody holds, except of the digests in `keep`; the bytes that became free."""
    freed = 0
    for path in partials.glob("*.part") if partials.is_dir() else ():
        if path.name.split(".", 1)[0] in keep:
            continue
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed += path.stat().st_size
            path.unlink()
    return freed


@contextlib.contextmanager
def _claimed_partial(partials: Path, sha256: str) -> Iterator[tuple[Path, BinaryIO]]:
    """A partial file of this digest that nobody else writes to: an abandoned one, or a new one."""
    partials.mkdir(parents=True, exist_ok=True)
    path, file = _adopt(partials, sha256) or _create(partials, sha256)
    try:
        yield path, file
    except (DiskFull, VerificationFailed):
        # The app needs the room more than a resumed download does; and wrong bytes are worth nothing.
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise
    finally:
        # Closing may flush what did not fit; the error that matters has been raised by then.
        with contextlib.suppress(OSError):
            file.close()


def _adopt(partials: Path, sha256: str) -> tuple[Path, BinaryIO] | None:
    """The longest abandoned partial file of a digest. Its writer died, or it would hold the lock."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(partials.glob(f"{sha256}.*.part"), key=lambda item: item.stat().st_size, reverse=True):
            file = path.open("r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between opening and locking its owner may have placed or removed it.
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return path, file
            except OSError:
                pass
            file.close()
    return None


def _create(partials: Path, sha256: str) -> tuple[Path, BinaryIO]:
    while True:
        path = partials / f"{sha256}.{secrets.token_hex(8)}.part"
        with disk_errors(path):
            file = path.open("x+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody adopted it in the moment before it was locked.
            file.close()
            continue
        except OSError:
            pass
        return path, file


def _rehash(file: BinaryIO, hasher: hashlib._Hash, size: int) -> int:
    """Hash what is already there; the number of bytes. Longer than signed means that it is worthless."""
    have = os.fstat(file.fileno()).st_size
    if have > size:
        file.truncate(0)
        return 0
    while piece := file.read(READ_SIZE):
        hasher.update(piece)
    return have


def _receive(
    sha256: str,
    have: int,
    size: int,
    *,
    source: BlobSource,
    file: BinaryIO,
    hasher: hashlib._Hash,
    path: Path,
    clock: Clock,
    limits: DownloadLimits,
) -> int:
    """Append what is missing. When the server did not take the range, the stream begins at 0 and the known part is skipped."""
    received = 0
    watch = _RateWatch(clock, limits)
    with source(sha256, offset=have, timeout_s=limits.silence_s) as stream:
        position = _start_of(stream, have)
        try:
            for piece in stream.pieces():
                received += len(piece)
                watch.count(len(piece))
                fresh = piece[max(have - position, 0) :]
                position += len(piece)
                if position > size:
                    raise VerificationFailed("a file is longer than what was signed", code="LENGTH_MISMATCH")
                with disk_errors(path):
                    file.write(fresh)
                hasher.update(fresh)
        except ServerUnreachable as error:
            raise DownloadFailed(f"the download broke off after {position} of {size} bytes: {error}") from error
        finally:
            with disk_errors(path):
                file.flush()
    if position < size:
        raise DownloadFailed(f"the connection ended after {position} of {size} bytes; the next try goes on from there")
    return received


def _start_of(stream: Stream, have: int) -> int:
    if stream.status == 200:
        return 0
    unit, _, rest = stream.headers.get("content-range", "").partition(" ")
    start = rest.partition("-")[0]
    if unit != "bytes" or not (start.isascii() and start.isdigit()) or int(start) > have:
        raise DownloadFailed("the server answered another range than was asked for")
    return int(start)


class _RateWatch:
    """Gives a download up that is alive but too slow to ever end."""

    def __init__(self, clock: Clock, limits: DownloadLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._since = clock.monotonic()
        self._bytes = 0

    def count(self, size: int) -> None:
        self._bytes += size
        passed = self._clock.monotonic() - self._since
        if passed < self._limits.window_s:
            return
        if self._bytes < self._limits.minimum_rate * passed:
            raise DownloadFailed(f"the download crawls at {self._bytes / passed:.0f} bytes per second", code="DOWNLOAD_TOO_SLOW")
        self._since, self._bytes = self._clock.monotonic(), 0
