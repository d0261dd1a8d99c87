"""What raw ASGI applications share: reading a capped body, checking JSON depth, answering JSON and problems.

FastAPI applications get the same through `kit.web`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
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


def last_answer(send: Send) -> Send:
    """Return a channel that asks the client to use another connection for its next request: this process is about to end."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return sent


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


@dataclass(frozen=True, slots=True)
class Health:
    """How a process is: name of what it needs -> what is wrong with it, or None.

    `needed` are those without which it can do nothing; `facts` say what to know of some that are fine.
    """

    troubles: Mapping[str, str | None]
    needed: Container[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Return `ready`, `degraded` (something is missing; it can still do its job for devices) or `down`."""
        if any(trouble and name in self.needed for name, trouble in self.troubles.items()):
            return "down"
        return "degraded" if any(self.troubles.values()) else "ready"

    @property
    def checks(self) -> dict[str, dict[str, str]]:
        """Return each with its state, and a detail where there is one."""
        found: dict[str, dict[str, str]] = {}
        for name, trouble in self.troubles.items():
            detail = trouble or self.facts.get(name)
            found[name] = {"status": "down" if trouble else "ready"} | ({"detail": detail} if detail else {})
        return found


Readiness = Callable[[], Awaitable[Health]]

#: On a 503 of a service that has not handled the request: another process of it may.
NOT_READY = b"latebind-not-ready"

PROBES = frozenset({"/livez", "/readyz", "/startupz"})


async def send_health(path: str, send: Send, readiness: Readiness, *, started: bool, draining: bool) -> None:
    """Answer a probe.

    `/livez` says that the loop turns and asks nobody. `/readyz` names each dependency with its state; a process that is degraded answers
    200, because taking it away would help nobody.
    """
    if path == "/livez":
        await send_json(send, 200, {"status": "ok"})
        return
    if path == "/startupz":
        await send_json(send, 200 if started else 503, {"status": "ok" if started else "starting"})
        return
    health = await readiness()
    status = "draining" if draining else "starting" if not started else health.status
    await send_json(send, 200 if status in {"ready", "degraded"} else 503, {"status": status, "checks": health.checks})
