"""A bundle file (docs/interop.md): packages for devices without network, and who of the account's collections gets which.

Everything but the files themselves is verified when it is opened, in the order in which it must stand; the files are hashed when they are
installed. What is read is what was opened: one descriptor, for as long as the bundle is used. No name in the file is ever followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from latebind import _tar
from latebind._bundles import STATEMENT, blob_name, member_names
from latebind._files import READ_SIZE
from latebind._transport import Stream
from latebind.device.clock import parse_time
from latebind.device.engines import Engine, choose_engine
from latebind.device.manifest import MAX_MANIFEST_BYTES, Manifest, is_digest, loads_strictly
from latebind.device.verify import MAX_ENVELOPE_BYTES, Assignment, Trust, open_envelope, verify_package
from latebind.errors import DeviceError, EngineMissing, VerificationFailed

BUNDLE_PAYLOAD_TYPE = "application/vnd.latebind.bundle+json"
BUNDLE_TYPE = "latebind-bundle-v1"
MAX_NAMES = 256
MAX_PACKAGES = 1024
MAX_STATEMENT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Blob:
    offset: int
    size: int


class Bundle:
    """An open bundle whose signatures, account and layout hold. A `PackageSource` for the cache; close it after use."""

    def __init__(self, path: Path, *, account: str, trust: Trust) -> None:
        """Open and verify. Raises VerificationFailed (`BUNDLE_INVALID`, `FOREIGN_ACCOUNT`, and the codes of `verify_package`), OSError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._size = os.fstat(self._descriptor).st_size
            self._position = 0
            self._signed: dict[str, tuple[bytes, bytes]] = {}
            self._blobs: dict[str, _Blob] = {}
            self.manifests: dict[str, Manifest] = {}
            self._statement = self._read_statement(account, trust)
            for digest in dict.fromkeys(digest for listed, _ in self._statement.names.values() for digest in listed):
                self._read_package(digest, account, trust)
            if self._take(len(_tar.END)) != _tar.END or self._position != self._size:
                _refuse("something stands behind its end")
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def names(self) -> list[str]:
        """The collections (or models) that it serves."""
        return list(self._statement.names)

    def assignment(self, name: str, engines: Mapping[str, Engine]) -> Assignment:
        """What a collection gets: the first of its packages for which an engine is here, in the words of an assignment.

        Raises DeviceError (`NOT_IN_BUNDLE`), EngineMissing.
        """
        found = self._statement.names.get(name)
        if found is None:
            raise DeviceError(f"the bundle has nothing for {name!r}; it serves {', '.join(self.names)}", code="NOT_IN_BUNDLE")
        packages, revision = found
        missing: EngineMissing | None = None
        for digest in packages:
            try:
                choose_engine(engines, self.manifests[digest])
            except EngineMissing as error:
                missing = missing or error
                continue
            return Assignment(digest, self._statement.counter, revision, self._statement.issued_at, 0.0)
        assert missing is not None
        raise missing

    def manifest(self, digest: str) -> bytes:
        """See `PackageSource`."""
        return self._signed[digest][0]

    def signature(self, digest: str) -> bytes:
        """See `PackageSource`."""
        return self._signed[digest][1]

    @contextmanager
    def blob(self, sha256: str, *, offset: int, timeout_s: float) -> Iterator[Stream]:
        """See `PackageSource`."""
        yield _Section(self._descriptor, self._blobs[sha256], offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_statement(self, account: str, trust: Trust) -> _Statement:
        envelope = self._member(STATEMENT, MAX_STATEMENT_BYTES)
        payload = loads_strictly(open_envelope(loads_strictly(envelope), BUNDLE_PAYLOAD_TYPE, trust.assignment_keys))
        if not isinstance(payload, dict) or payload.get("type") != BUNDLE_TYPE:
            _refuse("the signed payload is no bundle")
        if payload.get("account") != account:
            raise VerificationFailed("the bundle belongs to another account", code="FOREIGN_ACCOUNT")
        return _parse(payload)

    def _read_package(self, digest: str, account: str, trust: Trust) -> None:
        named = member_names(digest)
        manifest, signature = self._member(named[0], MAX_MANIFEST_BYTES), self._member(named[1], MAX_ENVELOPE_BYTES)
        parsed = verify_package(manifest, signature, digest=digest, account=account, trust=trust)
        self._signed[digest], self.manifests[digest] = (manifest, signature), parsed
        for file in parsed.files:
            known = self._blobs.get(file.sha256)
            if known is None:
                self._blobs[file.sha256] = self._enter(blob_name(file.sha256), file.size)
                self._position += file.size
                self._gap(file.size)
            elif known.size != file.size:
                _refuse("two packages give one file two sizes")

    def _member(self, name: str, most: int) -> bytes:
        """The bytes of the member that must stand here."""
        size = self._enter(name, None, most).size
        data = self._take(size)
        self._gap(size)
        return data

    def _enter(self, name: str, size: int | None, most: int = _tar.MAX_SIZE) -> _Blob:
        found = _tar.size_in(self._take(_tar.BLOCK), name)
        if found is None or found > most or (size is not None and found != size):
            _refuse(f"{name!r} does not stand where it must, as it must")
        return _Blob(self._position, found)

    def _gap(self, size: int) -> None:
        """Step over the zeros behind a member of this size."""
        zeros = _tar.padding(size)
        if self._take(len(zeros)) != zeros:
            _refuse("a gap is not empty")

    def _take(self, count: int) -> bytes:
        if self._position + count > self._size:
            _refuse("it ends too early")
        data = os.pread(self._descriptor, count, self._position)
        if len(data) != count:
            _refuse("it ends too early")
        self._position += count
        return data


@dataclass(frozen=True, slots=True)
class _Statement:
    """What was signed: per name its packages in order of preference and its revision; the counter as in assignments."""

    names: Mapping[str, tuple[tuple[str, ...], int]]
    counter: int
    issued_at: float


class _Section:
    """A blob from an offset on, in the form of a partial answer."""

    status = 206

    def __init__(self, descriptor: int, blob: _Blob, offset: int) -> None:
        self._descriptor, self._blob, self._offset = descriptor, blob, offset
        self.headers: Mapping[str, str] = {"content-range": f"bytes {offset}-{max(blob.size - 1, 0)}/{blob.size}"}

    def pieces(self) -> Iterator[bytes]:
        """The bytes."""
        while self._offset < self._blob.size:
            count = min(READ_SIZE, self._blob.size - self._offset)
            piece = os.pread(self._descriptor, count, self._blob.offset + self._offset)
            if not piece:
                return
            self._offset += len(piece)
            yield piece


def _parse(payload: Mapping[str, Any]) -> _Statement:
    counter, listed = payload.get("counter"), payload.get("names")
    if not _is_count(counter) or not isinstance(listed, list) or not 0 < len(listed) <= MAX_NAMES:
        _refuse("its statement has no counter or no names")
    names: dict[str, tuple[tuple[str, ...], int]] = {}
    for entry in listed:
        packages: Any = entry.get("packages") if isinstance(entry, dict) else None
        good = isinstance(packages, list) and bool(packages) and all(is_digest(one) for one in packages)
        if not good or not isinstance(entry.get("name"), str) or entry["name"] in names or not _is_count(entry.get("revision")):
            _refuse("its statement names a collection without packages")
        names[entry["name"]] = (tuple(packages), entry["revision"])
    if sum(len(packages) for packages, _ in names.values()) > MAX_PACKAGES:
        _refuse(f"it has more than {MAX_PACKAGES} packages")
    try:
        issued_at = parse_time(payload["issued_at"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise VerificationFailed("the bundle says not when it was made", code="BUNDLE_INVALID") from error
    return _Statement(names, int(counter or 0), issued_at)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refuse(what: str) -> NoReturn:
    raise VerificationFailed(f"this is no bundle that can be used: {what}", code="BUNDLE_INVALID")
