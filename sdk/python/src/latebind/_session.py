"""One conversation of a person or a CI job with a server: requests with the API key, tries again, pages, and event streams.

It knows how the API speaks (JSON, problem+json, cursor pages, `Idempotency-Key`, SSE) and not what it speaks about; that is `client.py`.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urljoin

from latebind._files import disk_errors, place, remove
from latebind._retry import Backoff, is_retryable, parse_retry_after
from latebind._transport import Response, Transport
from latebind.errors import Conflict, ResponseInvalid, ServerError, ServerUnreachable, from_problem

Json = dict[str, Any]

MAX_ATTEMPTS = 4
# The longest that all waits of one call take together, when the server asks to come back.
MAX_WAIT_S = 30.0
# The same for a conflict that may pass (a version that is about to be ready): a typing mistake must not take half a minute.
MAX_CONFLICT_WAIT_S = 5.0
# The longest silence of an event stream before it counts as broken; the server sends keep-alives far more often.
SSE_SILENCE_S = 60.0
_MAX_SSE_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: its `event` name ("message" without one), parsed `data`, and `id`."""

    name: str
    data: Any
    id: str | None


class Session:
    """Sends requests to one server with one key. Safe to use from several threads.

    A call is sent again only when that cannot do harm: reads, replacements, and POSTs, which all carry an `Idempotency-Key`.
    `sleep` and `seed` exist for tests.
    """

    def __init__(
        self,
        server: str,
        api_key: str | None,
        transport: Transport,
        *,
        attempts: int = MAX_ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        seed: int | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        self._api_key = api_key
        self._transport = transport
        self._attempts = attempts
        self._sleep = sleep
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret

    def get(self, path: str, **params: Any) -> Any:
        """GET; the parsed body. Parameters that are None are left out, lists are repeated."""
        return self.request("GET", path, params=params).json()

    def post(self, path: str, body: Mapping[str, Any] | None = None, **params: Any) -> Any:
        """POST with an `Idempotency-Key`; the parsed body, or None for an empty answer."""
        headers = {"idempotency-key": uuid.uuid4().hex}
        return _parsed(self.request("POST", path, body=body if body is not None else {}, params=params, headers=headers))

    def put(self, path: str, body: Mapping[str, Any], *, if_match: str | None = None) -> Any:
        """PUT; the parsed body. `if_match` is the ETag of the state that is replaced."""
        return _parsed(self.request("PUT", path, body=body, headers={"if-match": if_match} if if_match else None))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """PATCH with members to replace, so that repeating it changes nothing; the parsed body."""
        return _parsed(self.request("PATCH", path, body=body))

    def delete(self, path: str, **params: Any) -> Any:
        """DELETE; the parsed body, or None for an empty answer."""
        return _parsed(self.request("DELETE", path, params=params))

    def pages(self, path: str, **params: Any) -> Iterator[Json]:
        """All items of a list, page after page."""
        token: str | None = None
        while True:
            page = self.get(path, **{**params, "page_token": token})
            yield from page["items"]
            token = page.get("next_page_token")
            if not token:
                return

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send and, where it can help, send again. Raises ServerError, ServerUnreachable, ResponseInvalid."""
        sent = {**self.credentials(), **(headers or {})}
        data = None
        if body is not None:
            sent["content-type"] = "application/json"
            data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        url = self.url(path, params)
        backoff = Backoff(self._random, base_s=0.25, cap_s=4.0)
        waited = 0.0
        while True:
            error: ServerError | ServerUnreachable
            try:
                answer = self._transport.send(method, url, headers=sent, body=data)
            except ServerUnreachable as unreachable:
                error = unreachable
            else:
                if answer.status < 400:
                    return answer
                error = self.error(answer)
                if not _worth_again(error):
                    raise error
            retry_after = error.retry_after_s if isinstance(error, ServerError) else None
            longest = MAX_CONFLICT_WAIT_S if isinstance(error, Conflict) else MAX_WAIT_S
            pause = backoff.failed(retry_after)
            waited += pause
            # What the server asks to wait for is tried until the time is up; anything else a few times.
            if waited > longest or (retry_after is None and backoff.failures >= self._attempts):
                raise error
            self._sleep(pause)

    def send_once(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None) -> Response:
        """Send one request with a body of bytes and never again. Raises ServerError, ServerUnreachable."""
        answer = self._transport.send(method, self.url(path), headers={**self.credentials(), **headers}, body=body)
        if answer.status >= 400:
            raise self.error(answer)
        return answer

    def events(self, path: str) -> Iterator[Event]:
        """Server-sent events (WHATWG HTML, section 9.2), taken up again after the last one when the connection breaks.

        Ends when the server ends the stream. Raises ServerError, and ServerUnreachable when it cannot be taken up again.
        """
        last_id: str | None = None
        backoff = Backoff(self._random, base_s=0.25, cap_s=4.0)
        while True:
            headers = {**self.credentials(), "accept": "text/event-stream"}
            if last_id is not None:
                headers["last-event-id"] = last_id
            try:
                with self._transport.stream("GET", self.url(path), headers=headers, timeout_s=SSE_SILENCE_S) as stream:
                    if stream.status >= 400:
                        raise self.error(Response(stream.status, stream.headers, b"".join(stream.pieces())))
                    for event in parse_events(stream.pieces()):
                        backoff.succeeded()
                        last_id = event.id or last_id
                        yield event
                return
            except ServerUnreachable:
                pause = backoff.failed()
                if backoff.failures >= self._attempts:
                    raise
                self._sleep(pause)

    def download(self, link: str, path: Path, *, sha256: str, size: int) -> None:
        """Fetch what a link without credential leads to. The file appears whole and checked, or not at all.

        Raises ResponseInvalid, ServerError, ServerUnreachable, DiskFull.
        """
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        digest, received = hashlib.sha256(), 0
        try:
            with disk_errors(path), temporary.open("xb") as file, self._transport.stream("GET", urljoin(self.server + "/", link)) as stream:
                if stream.status != 200:
                    raise self.error(Response(stream.status, stream.headers, b""))
                for piece in stream.pieces():
                    digest.update(piece)
                    received += len(piece)
                    if received > size:
                        break
                    file.write(piece)
            if (received, digest.hexdigest()) != (size, sha256):
                raise ResponseInvalid(f"{path.name} arrived with other bytes than its digest names")
            place(temporary, path, durable=False)
        finally:
            remove(temporary)

    def credentials(self) -> dict[str, str]:
        """The headers that say who asks."""
        return {"authorization": f"Bearer {self._api_key}"} if self._api_key else {}

    def url(self, path: str, params: Mapping[str, Any] | None = None) -> str:
        """The address of a path with query parameters."""
        pairs: list[tuple[str, str]] = []
        for name, value in (params or {}).items():
            for one in value if isinstance(value, list | tuple) else [value]:
                if one is not None:
                    pairs.append((name, str(one).lower() if isinstance(one, bool) else str(one)))
        return f"{self.server}{path}" + (f"?{urlencode(pairs)}" if pairs else "")

    def error(self, answer: Response) -> ServerError:
        """The error that an answer stands for."""
        try:
            problem = json.loads(answer.body)
        except (ValueError, RecursionError):
            problem = None
        return from_problem(
            answer.status,
            problem,
            retry_after_s=parse_retry_after(answer.headers.get("retry-after"), time.time()),
            request_id=answer.headers.get("request-id"),
        )


def segment(name: str | int) -> str:
    """A name as one segment of a path."""
    return quote(str(name), safe="")


def parse_events(pieces: Iterable[bytes]) -> Iterator[Event]:
    """The events in a stream of bytes. Data that is not JSON comes as text; an event that was cut off is left out."""
    name, data, event_id = "", [], None
    for line in _lines(pieces):
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                event_id = value
            continue
        if data:
            text = "\n".join(data)
            try:
                parsed = json.loads(text)
            except ValueError:
                parsed = text
            yield Event(name or "message", parsed, event_id)
        name, data = "", []


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if len(rest) > _MAX_SSE_LINE:
            raise ResponseInvalid("the server sent an endless event")


def _worth_again(error: ServerError) -> bool:
    """Errors that pass by themselves; a conflict only when the server says when to come back."""
    return is_retryable(error.status) or (error.status == 409 and error.retry_after_s is not None)


def _parsed(answer: Response) -> Any:
    return answer.json() if answer.body else None
