"""Links to local blobs: a signed path that expires, and the raw ASGI application that serves it.

The signature is the only credential, so a refused link answers alike whether the blob exists or not. Object stores sign their own
links; this is for `kit.blobs.files`. It does not cache, compress or serve several ranges at once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from kit.blobs import BlobInfo
from kit.clock import Clock, SystemClock
from kit.errors import Internal, MethodNotAllowed, NotFound, Problem
from kit.http import ASGIApp, Message, Receive, Scope, Send, header, problem_body, problem_headers, send_problem
from kit.logs import get_logger

PREFIX = "/blobs/"
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")

log = get_logger(__name__)


class LinkInvalid(Problem):
    """The link was not signed by this server, or it has expired: ask for a new one where it came from."""

    status = 403
    code = "LINK_INVALID"


class RangeNotSatisfiable(Problem):
    """The range begins behind the end of the blob, or more than one range is asked for."""

    status = 416
    code = "RANGE_NOT_SATISFIABLE"


class _Readable(Protocol):
    def open(self, namespace: str, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]: ...
    async def stat(self, namespace: str, sha256: str) -> BlobInfo: ...


def sign_link(secret: bytes, namespace: str, sha256: str, expires_at: int) -> str:
    """Return `/blobs/{namespace}/{sha256}?expires=…&signature=…`, good until `expires_at` (Unix seconds)."""
    signature = base64.urlsafe_b64encode(_mac(secret, namespace, sha256, str(expires_at))).decode().rstrip("=")
    return f"{PREFIX}{namespace}/{sha256}?expires={expires_at}&signature={signature}"


def check_link(secret: bytes, path: str, query: str, now_s: float) -> tuple[str, str]:
    """Return (namespace, sha256) of a link that was signed with `secret` and has not expired. Raises `LinkInvalid`."""
    namespace, _, sha256 = path.removeprefix(PREFIX).partition("/")
    expires = signature = ""
    mac = b""
    with suppress(ValueError):
        given = dict(parse_qsl(query, max_num_fields=8)) if len(query) < 1000 else {}
        expires, signature = given.get("expires", ""), given.get("signature", "")
        mac = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    # The signature covers `expires` as text, so it is checked before the number is read.
    if not hmac.compare_digest(mac, _mac(secret, namespace, sha256, expires)) or not path.startswith(PREFIX):
        raise LinkInvalid("this link is not valid; ask for a new one")
    if int(expires) <= now_s:
        raise LinkInvalid("this link has expired; ask for a new one")
    return namespace, sha256


def _mac(secret: bytes, namespace: str, sha256: str, expires: str) -> bytes:
    return hmac.new(secret, f"latebind-link-v1\n{namespace}\n{sha256}\n{expires}".encode("utf-8", "replace"), hashlib.sha256).digest()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    start: int
    length: int
    headers: list[tuple[bytes, bytes]]


def create_links_app(blobs: _Readable, *, link_secret: bytes, clock: Clock | None = None) -> ASGIApp:
    """Return the ASGI application for `/blobs/…`: GET and HEAD, one `Range` with `If-Range`, `ETag`, constant memory."""
    return _Links(blobs, link_secret, clock or SystemClock())


class _Links:
    def __init__(self, blobs: _Readable, link_secret: bytes, clock: Clock) -> None:
        self._blobs, self._secret, self._clock = blobs, link_secret, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"links are served over HTTP, not {scope['type']}")
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._serve(scope, receive, watched)
        except Problem as problem:
            if started:
                raise
            await send_problem(send, problem)
        except Exception:
            log.exception("serving a link failed", method=scope["method"])
            if started:
                raise
            await send_problem(send, Internal("a fault of ours; the server's log has it under this request id"))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in {"GET", "HEAD"}:
            raise MethodNotAllowed("a link takes GET and HEAD")
        if not scope["path"].startswith(PREFIX):
            raise NotFound("there is nothing at this path")
        query = scope.get("query_string", b"").decode("latin-1")
        namespace, sha256 = check_link(self._secret, scope["path"], query, self._clock.now().timestamp())
        info = await self._blobs.stat(namespace, sha256)
        try:
            answer = _answer(scope, info)
        except RangeNotSatisfiable as problem:
            body = problem_body(problem)
            headers = [*problem_headers(problem), (b"content-range", b"bytes */%d" % info.size), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": problem.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        if scope["method"] == "HEAD" or answer.length == 0:
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._stream(self._blobs.open(namespace, sha256, start=answer.start, length=answer.length), answer, receive, send)

    async def _stream(self, chunks: AsyncIterator[bytes], answer: _Answer, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        sent = 0
        try:
            async with aclosing(chunks) as pieces:  # type: ignore[type-var]
                async for chunk in pieces:
                    if gone.done():
                        return
                    if sent == 0:
                        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
                    sent += len(chunk)
                    await send({"type": "http.response.body", "body": chunk, "more_body": sent < answer.length})
        finally:
            gone.cancel()
        if sent < answer.length:
            raise Internal("the blob on disk is shorter than it was")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _answer(scope: Scope, info: BlobInfo) -> _Answer:
    """Status, part and headers of an answer (RFC 9110, sections 13 and 14). Raises `RangeNotSatisfiable`."""
    etag = b'"%s"' % info.sha256.encode()
    headers = [
        (b"etag", etag),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"private, max-age=31536000, immutable"),
        (b"content-type", b"application/octet-stream"),
        (b"x-content-type-options", b"nosniff"),
    ]
    matches = header(scope, b"if-none-match")
    if matches is not None and (matches.strip() == b"*" or etag in [tag.strip().removeprefix(b"W/") for tag in matches.split(b",")]):
        return _Answer(304, 0, 0, headers)
    headers.append((b"repr-digest", b"sha-256=:%s:" % base64.b64encode(bytes.fromhex(info.sha256))))
    part = None
    wanted = header(scope, b"range")
    condition = header(scope, b"if-range")
    if wanted is not None and scope["method"] == "GET" and (condition is None or condition.strip() == etag):
        part = _part(wanted.decode("latin-1"), info.size)
    if part is None:
        return _Answer(200, 0, info.size, [*headers, (b"content-length", b"%d" % info.size)])
    first, last = part
    headers += [(b"content-range", b"bytes %d-%d/%d" % (first, last, info.size)), (b"content-length", b"%d" % (last - first + 1))]
    return _Answer(206, first, last - first + 1, headers)


def _part(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a `Range` value; None when it is to be ignored, as RFC 9110 wants for what is not valid."""
    if text.startswith("bytes=") and "," in text:
        raise RangeNotSatisfiable("at most one range is served")
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        if int(last) == 0 or size == 0:
            raise RangeNotSatisfiable("the range is empty")
        return max(size - int(last), 0), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable(f"the blob has {size} bytes")
    return int(first), min(int(last), size - 1) if last else size - 1
