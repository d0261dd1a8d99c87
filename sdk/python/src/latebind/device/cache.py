"""Packages on this device's disk: files by content, each there whole or not at all, and a seal per package once everything is there.

    packages/<digest>/manifest.json, signature.json   as signed; stored after all checks
    packages/<digest>/seal.json                       written last: the package is installed
    blobs/<first two>/<sha256>                        the files
    partials/<sha256>.<random>.part                   downloads that are not complete

It decides nothing about which package to have; it knows nothing of collections. A folder may be shared by several processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latebind._files import disk_errors, read_json, remove, sha256_of, write_json, write_whole, xxh3_of, xxh3_of_file
from latebind._transport import Stream
from latebind.device.clock import Clock
from latebind.device.download import DownloadLimits, download, sweep_partials
from latebind.device.manifest import Manifest, PackageFile
from latebind.device.verify import Trust, verify_package
from latebind.errors import CacheDamaged, DiskFull

# A package without a seal is one that another process may be installing; its files are spared for this long.
UNSEALED_GRACE_S = 86_400.0


class PackageSource(Protocol):
    """Where packages come from: `DeviceApi`."""

    def blob(self, sha256: str, *, offset: int, timeout_s: float) -> AbstractContextManager[Stream]:
        """Open a stream of a blob."""
        ...

    def manifest(self, digest: str) -> bytes:
        """The manifest as signed."""
        ...

    def signature(self, digest: str) -> bytes:
        """The package's DSSE envelope."""
        ...


@dataclass(frozen=True, slots=True)
class _Sealed:
    size: int
    inode: int
    xxh3: str


class InstalledPackage:
    """A package whose files are all there. Files are checked against the seal (size, inode, XXH3) each time they are read."""

    def __init__(self, cache: PackageCache, digest: str, manifest: Manifest, seal: Mapping[str, _Sealed]) -> None:
        self.digest = digest
        self.manifest = manifest
        self.paths: Mapping[str, Path] = {file.path: cache.blob_path(file.sha256) for file in manifest.files}
        self._cache = cache
        self._seal = seal

    def read_verified(self, file: PackageFile) -> bytes:
        """The bytes of a file, read once through one descriptor, so that what was checked is what is used. Raises CacheDamaged."""
        sealed = self._seal[file.sha256]
        try:
            with self.paths[file.path].open("rb") as opened:
                status = os.fstat(opened.fileno())
                data = opened.read(sealed.size + 1)
        except OSError as error:
            raise self._damaged(file, error.strerror or "cannot be read") from error
        if (len(data), status.st_ino, xxh3_of(data)) != (sealed.size, sealed.inode, sealed.xxh3):
            raise self._damaged(file, "has changed since it was installed")
        return data

    def check(self, file: PackageFile) -> None:
        """Like `read_verified`, without keeping the bytes. Raises CacheDamaged."""
        sealed = self._seal[file.sha256]
        path = self.paths[file.path]
        try:
            found = _Sealed(path.stat().st_size, path.stat().st_ino, xxh3_of_file(path))
        except OSError as error:
            raise self._damaged(file, error.strerror or "cannot be read") from error
        if found != sealed:
            raise self._damaged(file, "has changed since it was installed")

    def keep_while(self, user: object) -> None:
        """Eviction spares this package for as long as `user` lives."""
        self._cache.lease(self.digest, user)

    def _damaged(self, file: PackageFile, what: str) -> CacheDamaged:
        return CacheDamaged(f"{file.path!r} of {self.manifest.model_id} version {self.manifest.version} {what}")


class PackageCache:
    """The cache of one account. Safe to use from several threads; installing is serialised by the callers."""

    def __init__(self, root: Path, *, clock: Clock, limits: DownloadLimits, reserve_bytes: int) -> None:
        """`reserve_bytes` of disk are left free for the app."""
        self._root = root
        self._clock = clock
        self._limits = limits
        self._reserve_bytes = reserve_bytes
        self._leases: Counter[str] = Counter()
        # Re-entrant: the garbage collector may end a lease on the very thread that holds the lock.
        self._lease_lock = threading.RLock()
        for name in ("packages", "blobs", "partials"):
            with disk_errors(root / name):
                (root / name).mkdir(parents=True, exist_ok=True)

    def blob_path(self, sha256: str) -> Path:
        """Where a blob is, or would be."""
        return self._root / "blobs" / sha256[:2] / sha256

    def fetch_manifest(self, digest: str, *, source: PackageSource, account: str, trust: Trust) -> Manifest:
        """The verified manifest of a package, from the disk or the server; stored once all checks have passed.

        Raises VerificationFailed, DiskFull and what the source raises.
        """
        folder = self._folder(digest)
        with contextlib.suppress(OSError):
            stored = ((folder / "manifest.json").read_bytes(), (folder / "signature.json").read_bytes())
            with contextlib.suppress(CacheDamaged):
                return self._verified(digest, *stored, account=account, trust=trust)
        manifest, signature = source.manifest(digest), source.signature(digest)
        parsed = verify_package(manifest, signature, digest=digest, account=account, trust=trust)
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
        write_whole(folder / "signature.json", signature)
        write_whole(folder / "manifest.json", manifest)
        return parsed

    def install(self, digest: str, manifest: Manifest, *, source: PackageSource, keep: Iterable[str]) -> int:
        """Bring in all files of a verified package and seal it; the number of bytes downloaded.

        `keep` names the packages that must not be given up to make room. Raises what `download` raises.
        """
        missing = {file.sha256: file.size for file in manifest.files if not self._has(file)}
        self._make_room(sum(missing.values()) - self._partial_bytes(missing), keep={*keep, digest}, wanted=frozenset(missing))
        received = 0
        for sha256, size in missing.items():
            received += download(
                sha256,
                size,
                source=source.blob,
                partials=self._root / "partials",
                target=self.blob_path(sha256),
                clock=self._clock,
                limits=self._limits,
            )
        self._seal(digest, manifest)
        return received

    def is_installed(self, digest: str) -> bool:
        """Whether a package has its seal."""
        return (self._folder(digest) / "seal.json").exists()

    def open(self, digest: str, *, account: str, trust: Trust) -> InstalledPackage:
        """An installed package. Raises CacheDamaged when it is not there whole.

        A file whose size or inode differs from the seal (a restored backup) is hashed again: if it is the signed one, the seal is renewed.
        """
        folder = self._folder(digest)
        try:
            stored = ((folder / "manifest.json").read_bytes(), (folder / "signature.json").read_bytes())
        except OSError as error:
            raise CacheDamaged(f"package {digest[:12]} is not in the cache") from error
        manifest = self._verified(digest, *stored, account=account, trust=trust)
        seal = _parse_seal(read_json(folder / "seal.json"))
        if seal is None or not all(self._fits(file, seal) for file in manifest.files):
            self.verify_fully(digest, manifest)
            seal = self._seal(digest, manifest)
        return InstalledPackage(self, digest, manifest, seal)

    def verify_fully(self, digest: str, manifest: Manifest) -> None:
        """SHA-256 of every file of a package. What is wrong is removed, seal first, so that it is fetched again. Raises CacheDamaged."""
        for file in manifest.files:
            path = self.blob_path(file.sha256)
            try:
                good = path.stat().st_size == file.size and sha256_of(path) == file.sha256
            except OSError:
                good = False
            if not good:
                remove(self._folder(digest) / "seal.json")
                remove(path)
                raise CacheDamaged(f"{file.path!r} of {manifest.model_id} version {manifest.version} is not the file that was installed")

    def distrust(self, digest: str) -> None:
        """Take a package's seal away: it counts as installed again only after every file has been hashed."""
        remove(self._folder(digest) / "seal.json")

    def lease(self, digest: str, user: object) -> None:
        """Spare a package from eviction for as long as `user` lives."""
        with self._lease_lock:
            self._leases[digest] += 1
        weakref.finalize(user, self._release, digest).atexit = False

    def collect(self, keep: Iterable[str], *, wanted: frozenset[str] = frozenset()) -> int:
        """Remove packages that are neither in `keep` nor in use, then blobs and partial files that nothing needs; the bytes freed.

        `wanted` are blobs that a running installation needs.
        """
        with self._lease_lock:
            kept = {*keep, *(digest for digest, count in list(self._leases.items()) if count > 0)}
        needed = set(wanted)
        for folder in (self._root / "packages").iterdir():
            if folder.name in kept or self._is_being_installed(folder):
                needed |= _blobs_of(read_json(folder / "manifest.json"))
            else:
                remove(folder / "seal.json")
                shutil.rmtree(folder, ignore_errors=True)
        freed = 0
        for blob in (self._root / "blobs").glob("*/*"):
            if blob.name not in needed:
                with contextlib.suppress(OSError):
                    size = blob.stat().st_size
                    blob.unlink()
                    freed += size
        return freed + sweep_partials(self._root / "partials", keep=frozenset(needed))

    # --- inside -----------------------------------------------------------------------------------------------------------------

    def _folder(self, digest: str) -> Path:
        return self._root / "packages" / digest

    def _verified(self, digest: str, manifest: bytes, signature: bytes, *, account: str, trust: Trust) -> Manifest:
        """What lies on the disk is trusted no more than what comes over the network."""
        try:
            return verify_package(manifest, signature, digest=digest, account=account, trust=trust)
        except CacheDamaged:
            raise
        except Exception as error:
            raise CacheDamaged(f"package {digest[:12]} in the cache fails its check: {error}") from error

    def _has(self, file: PackageFile) -> bool:
        """Whether the blob is there and right; a wrong one is removed."""
        path = self.blob_path(file.sha256)
        try:
            if path.stat().st_size == file.size and sha256_of(path) == file.sha256:
                return True
        except OSError:
            return False
        remove(path)
        return False

    def _fits(self, file: PackageFile, seal: Mapping[str, _Sealed]) -> bool:
        sealed = seal.get(file.sha256)
        try:
            status = self.blob_path(file.sha256).stat()
        except OSError:
            return False
        return sealed is not None and (status.st_size, status.st_ino) == (sealed.size, sealed.inode) and sealed.size == file.size

    def _seal(self, digest: str, manifest: Manifest) -> dict[str, _Sealed]:
        seal = {}
        for file in manifest.files:
            path = self.blob_path(file.sha256)
            status = path.stat()
            seal[file.sha256] = _Sealed(status.st_size, status.st_ino, xxh3_of_file(path))
        raw = {sha256: [entry.size, entry.inode, entry.xxh3] for sha256, entry in seal.items()}
        write_json(self._folder(digest) / "seal.json", {"files": raw})
        return seal

    def _make_room(self, needed: int, *, keep: set[str], wanted: frozenset[str]) -> None:
        if needed <= 0 or self._free() >= needed + self._reserve_bytes:
            return
        self.collect(keep, wanted=wanted)
        free = self._free()
        if free < needed + self._reserve_bytes:
            raise DiskFull(
                f"the package needs {needed} bytes, but only {max(free - self._reserve_bytes, 0)} are free for it in {self._root}"
            )

    def _free(self) -> int:
        return shutil.disk_usage(self._root).free

    def _partial_bytes(self, missing: Mapping[str, int]) -> int:
        """Bytes of these blobs that are on the disk already."""
        have = 0
        for path in (self._root / "partials").glob("*.part"):
            with contextlib.suppress(OSError):
                have += min(path.stat().st_size, missing.get(path.name.split(".", 1)[0], 0))
        return have

    def _is_being_installed(self, folder: Path) -> bool:
        try:
            return not (folder / "seal.json").exists() and time.time() - folder.stat().st_mtime < UNSEALED_GRACE_S
        except OSError:
            return False

    def _release(self, digest: str) -> None:
        with self._lease_lock:
            self._leases[digest] -= 1


def _blobs_of(raw: Any) -> set[str]:
    files = raw.get("files") if isinstance(raw, dict) else None
    return {str(file.get("sha256")) for file in files if isinstance(file, dict)} if isinstance(files, list) else set()


def _parse_seal(raw: Any) -> dict[str, _Sealed] | None:
    try:
        return {str(sha256): _Sealed(int(entry[0]), int(entry[1]), str(entry[2])) for sha256, entry in raw["files"].items()}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
