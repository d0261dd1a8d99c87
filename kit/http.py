"""What raw ASGI applications share: reading a capped body, checking JSON depth, answering JSON and problems.

FastAPI applications get the same through `kit.web`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from kit.context import request_id
from kit.errors import Problem, TooLarge, Unprocessable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]

#: JSON nested deeper than this is refused before a parser sees it.
MAX_JSON_DEPTH = 64
_JSON_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class ClientGone(Exception):
    """The client closed the connection before its body was complete; there is nobody to answer."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first value of a header (`name` in lower case) or None."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """Return the whole body. Raises `TooLarge` as soon as it is known to be over `max_bytes`, `ClientGone` on a disconnect."""
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise TooLarge(f"the body has {int(declared)} bytes; at most {max_bytes} are taken here")
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > max_bytes:
            raise TooLarge(f"the body has {len(body)} bytes; at most {max_bytes} are taken here")
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise TooLarge(f"the body has more than the {max_bytes} bytes taken here")
    return b"".join(parts)


def check_json_depth(body: bytes, *, max_depth: int = MAX_JSON_DEPTH) -> None:
    """Raise `Unprocessable` when brackets nest deeper than `max_depth`. Linear, and free for bodies with few brackets."""
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return
    depth = 0
    for token in _JSON_TOKENS.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise Unprocessable(f"the JSON is nested more than {max_depth} deep")
        elif first in b"]}":
            depth -= 1


async def send_bytes(send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answer with a whole body; `content-length` is added."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body)), *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answer with JSON."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    await send_bytes(send, status, body, [(b"content-type", b"application/json"), *headers])


def problem_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """Return the headers that go with a problem document."""
    headers = [(b"content-type", b"application/problem+json")]
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after_s))
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def problem_body(problem: Problem) -> bytes:
    """Return the problem document as JSON; the request id is its instance, so that people can quote it."""
    instance = request_id.get()
    return json.dumps(
        problem.document(f"urn:latebind:request:{instance}" if instance else None), separators=(",", ":"), ensure_ascii=False
    ).encode(errors="backslashreplace")  # a lone surrogate of the request becomes the JSON escape that it came as


async def send_problem(send: Send, problem: Problem) -> None:
    """Answer with a problem document (RFC 9457)."""
    await send_bytes(send, problem.status, problem_body(problem), problem_headers(problem))


def _check(trouble: str | None) -> dict[str, str]:
    if not trouble:
        return {"status": "ok"}
    return {"status": "ok" if isinstance(trouble, Fact) else "unavailable", "detail": trouble}


class Fact(str):
    """What to know of a dependency that is fine, in the place where readiness says what is wrong with one."""

    __slots__ = ()


async def send_health(
    path: str, send: Send, readiness: Callable[[], Awaitable[Mapping[str, str | None]]], *, started: bool, draining: bool
) -> None:
    """Answer a probe. `/livez` says that the loop turns; `/readyz` names each dependency with its state, degraded ones with a reason."""
    if path == "/livez":
        await send_json(send, 200, {"status": "ok"})
        return
    if path == "/startupz":
        await send_json(send, 200 if started else 503, {"status": "ok" if started else "starting"})
        return
    states = await readiness()
    bad = draining or not started or any(trouble and not isinstance(trouble, Fact) for trouble in states.values())
    status = "draining" if draining else "unavailable" if bad else "ok"
    checks = {name: _check(trouble) for name, trouble in states.items()}
    await send_json(send, 503 if bad else 200, {"status": status, "checks": checks})
