"""Reads files of a source: a local folder, or HTTP. Bounded in size and time; it never leaves the place that the operator named.

A redirect is followed within the same scheme, host and port only, so that a source cannot send this server to an address of its choice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpx2

from services.registry.catalogue.errors import CatalogueLocationInvalid, CatalogueUnreachable
from services.registry.versions.declaration import is_safe_path

_CHUNK = 1 << 20
_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)


class Place(Protocol):
    """An opened source."""

    def stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """Iterate over a file below the source. Raises `CatalogueUnreachable`."""
        ...


async def read_whole(place: Place, path: str, *, max_bytes: int) -> bytes:
    """Return a file. Raises `CatalogueUnreachable`, also for one larger than `max_bytes`."""
    data = bytearray()
    async with aclosing(place.stream(path)) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > max_bytes:
                raise CatalogueUnreachable(f"{path} has more than {max_bytes} bytes")
    return bytes(data)


def check_location(location: str) -> str:
    """Return the location in the form in which it is stored. Raises `CatalogueLocationInvalid`."""
    parts = urlsplit(location)
    if parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        raise CatalogueLocationInvalid("a location has no credentials, query or fragment")
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        return f"file:{parts.path.rstrip('/') or '/'}"
    if parts.scheme in {"http", "https"} and parts.hostname:
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    raise CatalogueLocationInvalid("a location is file:/folder, http://… or https://…")


def open_place(location: str) -> AbstractAsyncContextManager[Place]:
    """Open a source for reading."""
    if location.startswith("file:"):
        return _open_folder(Path(unquote(location.removeprefix("file:"))))
    return _open_http(location)


@asynccontextmanager
async def _open_folder(folder: Path) -> AsyncIterator[Place]:
    yield _Folder(folder)


@asynccontextmanager
async def _open_http(base: str) -> AsyncIterator[Place]:
    headers = {"accept-encoding": "identity", "user-agent": "latebind-registry"}
    async with httpx2.AsyncClient(timeout=_TIMEOUT, follow_redirects=False, headers=headers) as client:
        yield _Http(client, base)


def _check_path(path: str) -> None:
    if not all(is_safe_path(part) for part in path.split("/")):
        raise CatalogueUnreachable(f"{path[:100]!r} is not a plain path below the source")


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def stream(self, path: str) -> AsyncGenerator[bytes, None]:
        _check_path(path)
        try:
            file = await asyncio.to_thread(self._open, path)
        except OSError as error:
            raise CatalogueUnreachable(f"{path} cannot be read: {error.strerror}") from error
        try:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield chunk
        finally:
            await asyncio.to_thread(file.close)

    def _open(self, path: str) -> BinaryIO:
        """Open a file below the folder. A link is followed only to a place below the folder."""
        folder = self._folder.resolve(strict=True)
        found = (folder / path).resolve(strict=True)
        if not found.is_relative_to(folder):
            raise CatalogueUnreachable(f"{path} leads out of the source")
        handle = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        file = os.fdopen(handle, "rb")
        if not found.is_file():
            file.close()
            raise CatalogueUnreachable(f"{path} is not a regular file")
        return file


class _Http:
    def __init__(self, client: httpx2.AsyncClient, base: str) -> None:
        self._client = client
        self._base = base

    async def stream(self, path: str) -> AsyncGenerator[bytes, None]:
        _check_path(path)
        url = f"{self._base}/{quote(path)}"
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                async with self._client.stream("GET", url) as response:
                    if response.status_code in _REDIRECTS and "location" in response.headers:
                        url = self._redirected(url, response.headers["location"], path)
                        continue
                    if response.status_code != 200:
                        raise CatalogueUnreachable(f"{path}: the source answered {response.status_code}")
                    if response.headers.get("content-encoding", "identity") != "identity":
                        raise CatalogueUnreachable(f"{path}: the source sent it compressed, which is not taken")
                    async for chunk in response.aiter_raw():
                        yield chunk
                    return
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise CatalogueUnreachable(f"{path} cannot be fetched ({type(error).__name__})") from error
        raise CatalogueUnreachable(f"{path}: more than {_MAX_REDIRECTS} redirects")

    def _redirected(self, url: str, target: str, path: str) -> str:
        following = urljoin(url, target)
        if _origin(following) != _origin(self._base):
            raise CatalogueUnreachable(f"{path}: the source redirects to another host, which is not followed; name that host instead")
        return following


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
