"""What devices fetch: manifests, signatures and links to files. Raw ASGI; a package is read from the database once, a blob never.

Enrolment is in `accounts/enrolment`; which package a device should run is the deployer's answer.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import partial

from kit import http
from kit.context import acting_for, request_id
from kit.errors import Internal, MethodNotAllowed, NotFound, Problem
from kit.identity import PRINCIPAL_HEADER, REQUEST_ID_HEADER, Access, PrincipalSeal, authorize
from kit.logs import get_logger
from kit.single_flight import SingleFlight
from kit.web import RawOperation
from services.registry.versions.domain import Package
from services.registry.versions.errors import PackageNotFound
from services.registry.versions.service import VersionService

log = get_logger(__name__)

PREFIXES = ("/v1/device/packages/", "/v1/device/blobs/")
_PACKAGE = re.compile(r"/v1/device/packages/([0-9a-f]{64})/(manifest|signature)")
_BLOB = re.compile(r"/v1/device/blobs/([0-9a-f]{64})")
_IMMUTABLE = (b"cache-control", b"private, max-age=31536000, immutable")


class PackageCache:
    """Signed bytes of packages, by account and digest, least recently used first out. They never change, so nothing is invalidated."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], tuple[bytes, bytes]] = OrderedDict()

    def get(self, account: str, digest: str) -> tuple[bytes, bytes] | None:
        """Return (manifest, envelope) or None."""
        found = self._kept.get((account, digest))
        if found is not None:
            self._kept.move_to_end((account, digest))
        return found

    def put(self, package: Package) -> tuple[bytes, bytes]:
        """Keep a package's bytes and return them; what is too large for the cache is not kept."""
        entry = (package.manifest, package.envelope)
        size = _size(entry)
        if size > self._max_bytes or (package.account, package.digest) in self._kept:
            return entry
        self._kept[package.account, package.digest] = entry
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)
        return entry


def _size(entry: tuple[bytes, bytes]) -> int:
    return len(entry[0]) + len(entry[1])


class DeviceFront:
    """Answers the paths of `PREFIXES` itself and hands every other request to the API behind it."""

    def __init__(self, api: http.ASGIApp, versions: VersionService, *, seal: PrincipalSeal, cache_bytes: int) -> None:
        self._api = api
        self._versions = versions
        self._seal = seal
        self._cache = PackageCache(cache_bytes)
        # A fleet asks for a new package at once.
        self._finding: SingleFlight[tuple[str, str], tuple[bytes, bytes]] = SingleFlight()

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIXES):
            await self._api(scope, receive, send)
            return
        request_id.set((http.header(scope, REQUEST_ID_HEADER) or b"").decode("ascii", "replace"))
        try:
            await self._answer(scope, send)
        except Problem as problem:
            await http.send_problem(send, problem)
        except Exception:
            log.exception("request failed", method=scope["method"])
            await http.send_problem(send, Internal("a fault of ours; the server's log has it under this request id"))

    async def _answer(self, scope: http.Scope, send: http.Send) -> None:
        principal = self._seal.open(http.header(scope, PRINCIPAL_HEADER))
        authorize(principal, Access.DEVICE)
        package, blob = _PACKAGE.fullmatch(scope["path"]), _BLOB.fullmatch(scope["path"])
        if scope["method"] not in {"GET", "HEAD"}:
            raise MethodNotAllowed("this path is read-only")
        if blob is not None:
            with acting_for(principal.visible_rows):
                link = await self._versions.blob_link(principal.tenant, blob[1])
            await http.send_bytes(send, 307, b"", [(b"location", link.encode()), (b"cache-control", b"no-store")])
        elif package is not None:
            manifest, envelope = await self._package(principal.tenant, package[1])
            await self._send(scope, send, package[1], manifest if package[2] == "manifest" else envelope, package[2])
        elif scope["path"].startswith(PREFIXES[0]):
            raise PackageNotFound("there is no such package")
        else:
            raise NotFound("there is nothing at this path")

    async def _package(self, account: str, digest: str) -> tuple[bytes, bytes]:
        known = self._cache.get(account, digest)
        if known is not None:
            return known
        return await self._finding.get((account, digest), partial(self._find, account, digest))

    async def _find(self, account: str, digest: str) -> tuple[bytes, bytes]:
        with acting_for(account):
            return self._cache.put(await self._versions.find_package(account, digest))

    async def _send(self, scope: http.Scope, send: http.Send, digest: str, body: bytes, what: str) -> None:
        # The signature is another representation: its tag must not be the manifest's.
        etag = b'"%s"' % digest.encode() if what == "manifest" else b'"%s-signature"' % digest.encode()
        headers = [(b"content-type", b"application/json"), (b"etag", etag), _IMMUTABLE]
        if (http.header(scope, b"if-none-match") or b"").strip() == etag:
            await send({"type": "http.response.start", "status": 304, "headers": headers[1:]})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": b""})
            return
        await http.send_bytes(send, 200, body, headers)


def _operation(path: str, name: str, summary: str, parameter: str, responses: dict[str, object]) -> RawOperation:
    schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    parameters = [{"name": parameter, "in": "path", "required": True, "schema": schema}]
    return RawOperation("GET", path, Access.DEVICE, name, summary, "For devices", {"parameters": parameters, "responses": responses})


_JSON_ANSWER: dict[str, object] = {"200": {"description": "As stored", "content": {"application/json": {"schema": {"type": "object"}}}}}

#: For the OpenAPI document and the check of access policies.
OPERATIONS = (
    _operation(
        "/v1/device/packages/{digest}/manifest",
        "get_device_manifest",
        "Fetch a manifest, byte for byte as it was signed.",
        "digest",
        _JSON_ANSWER,
    ),
    _operation(
        "/v1/device/packages/{digest}/signature",
        "get_device_signature",
        "Fetch a package's DSSE envelope.",
        "digest",
        _JSON_ANSWER,
    ),
    _operation(
        "/v1/device/blobs/{sha256}",
        "get_device_blob",
        "Get a link to a file. The link needs no credential and expires.",
        "sha256",
        {"307": {"description": "The link, in `Location`"}},
    ),
)
