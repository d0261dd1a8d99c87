"""The device's side of docs/wire.md as calls: enrol, renew the token, resolve, fetch, send. It decides nothing and keeps nothing on disk.

A call that the server answers with 401 renews the token and is sent once more. No other retry happens here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import urljoin

from latebind._retry import parse_retry_after
from latebind._transport import Response, Stream, Transport
from latebind.device.clock import Clock, parse_time
from latebind.device.identity import Identity, IdentityFile
from latebind.device.manifest import MAX_MANIFEST_BYTES
from latebind.device.verify import MAX_ENVELOPE_BYTES, Trust
from latebind.errors import NotEnrolled, NotFound, ResponseInvalid, ServerError, ServerUnreachable, Unauthorized, from_problem

MAX_REDIRECTS = 3
LONGEST_TOKEN_S = 3600.0
SHORTEST_TOKEN_S = 30.0
RENEW_BEFORE_S = 600.0
#: After a renewal that the server could not do.
RENEW_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class PollAdvice:
    """When the server wants to be asked again: after `after_s` seconds plus a random part of `spread_s`."""

    after_s: float
    spread_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What resolve answered: 200 (`body`), 304 (`body` is None) or a refusal (`refusal`)."""

    status: int
    etag: str | None
    poll: PollAdvice | None
    body: Mapping[str, Any] | None
    refusal: ServerError | None


class DeviceApi:
    """Talks to one server as one install. Safe to use from several threads."""

    def __init__(
        self, *, server: str, transport: Transport, identity: Identity, identity_file: IdentityFile, enrolment_key: str | None, clock: Clock
    ) -> None:
        self._server = server.rstrip("/") + "/"
        self._transport = transport
        self._identity = identity
        self._identity_file = identity_file
        self._enrolment_key = enrolment_key
        self._clock = clock
        self._lock = threading.Lock()
        self._token: str | None = None
        self._renew_at = 0.0

    @property
    def identity(self) -> Identity:
        """The identity, with the pinned keys once enrolled."""
        return self._identity

    def enrol(self) -> Identity:
        """Enrol if this has not happened yet, and pin the server's keys.

        Raises NotEnrolled, ServerError, ServerUnreachable, VerificationFailed.
        """
        with self._lock:
            if not self._identity.enrolled:
                self._enrol()
        return self._identity

    def give_trust(self, trust: Trust) -> None:
        """Keys that the app brought; they win over those of the server. Raises DiskFull."""
        with self._lock:
            self._identity = self._identity_file.give(self._identity, trust)

    def resolve(self, collection: str, context: Mapping[str, Any], *, nonce: str, etag: str | None, counter: int) -> Answer:
        """Ask what to run; `counter` is that of the last accepted assignment, 0 for none.

        Refusals that carry a decision come back in the answer; every other error is raised.
        """
        headers = {"content-type": "application/json", "latebind-nonce": nonce}
        if etag is not None:
            headers["if-none-match"] = etag
        if counter:
            headers["latebind-counter"] = str(counter)  # a server that has not heard of it yet catches up before it answers
        response = self._call("POST", f"v1/device/collections/{collection}:resolve", headers=headers, body=json.dumps(context).encode())
        if response.status == 304:
            return Answer(304, response.headers.get("etag"), _parse_poll_header(response.headers.get("latebind-poll")), None, None)
        if response.status == 200:
            body = response.json()
            if not isinstance(body, dict):
                raise ResponseInvalid("resolve answered something that is not an object")
            return Answer(200, response.headers.get("etag"), _parse_poll(body.get("poll")), body, None)
        error = self._error(response)
        if error.code in {"NO_MATCH", "NO_COMPATIBLE_PACKAGE", "COLLECTION_NOT_FOUND"}:
            return Answer(response.status, None, _parse_poll(error.extra.get("poll")), None, error)
        raise error

    def manifest(self, digest: str) -> bytes:
        """The manifest's bytes as stored; not verified here."""
        return self._good(self._call("GET", f"v1/device/packages/{digest}/manifest", max_bytes=MAX_MANIFEST_BYTES)).body

    def signature(self, digest: str) -> bytes:
        """The package's DSSE envelope as stored; not verified here."""
        return self._good(self._call("GET", f"v1/device/packages/{digest}/signature", max_bytes=MAX_ENVELOPE_BYTES)).body

    @contextmanager
    def blob(self, sha256: str, *, offset: int, timeout_s: float) -> Iterator[Stream]:
        """Read a blob from `offset` on. The answer is 200 (all of it) or 206; the caller looks at its `content-range`.

        The credential goes to the server only, never to where its redirect points.
        """
        url = self._blob_link(sha256)
        headers = {"range": f"bytes={offset}-", "if-range": f'"{sha256}"'} if offset else {}
        for _ in range(MAX_REDIRECTS):
            with self._transport.stream("GET", url, headers=headers, timeout_s=timeout_s) as stream:
                if stream.status in {301, 302, 303, 307, 308} and "location" in stream.headers:
                    url = urljoin(url, stream.headers["location"])
                    continue
                if stream.status not in {200, 206}:
                    raise self._error(Response(stream.status, stream.headers, _read_at_most(stream, 64 << 10)))
                yield stream
                return
        raise ResponseInvalid("the link of a file leads in circles")

    def send_telemetry(self, batch: bytes, *, timeout_s: float | None = None) -> None:
        """Send one compressed TelemetryBatch; returns when the server has it. Raises ServerError, ServerUnreachable."""
        headers = {"content-type": "application/x-protobuf", "content-encoding": "zstd"}
        self._good(self._call("POST", "v1/device/telemetry", headers=headers, body=batch, timeout_s=timeout_s))

    def send_events(self, events: list[Any], *, timeout_s: float | None = None) -> None:
        """Send update states; returns when the server has them. Raises ServerError, ServerUnreachable."""
        body = json.dumps({"events": events}).encode()
        self._good(self._call("POST", "v1/device/events", headers={"content-type": "application/json"}, body=body, timeout_s=timeout_s))

    # --- credential -------------------------------------------------------------------------------------------------------------

    def _call(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> Response:
        token = self._valid_token()
        response = self._send(method, path, token, headers, options)
        if response.status != 401:
            return response
        token = self._valid_token(rejected=token)
        return self._send(method, path, token, headers, options)

    def _send(self, method: str, path: str, token: str, headers: Mapping[str, str] | None, options: Mapping[str, Any]) -> Response:
        sent = {"authorization": f"Bearer {token}", **(headers or {})}
        return self._transport.send(method, urljoin(self._server, path), headers=sent, **options)

    def _valid_token(self, *, rejected: str | None = None) -> str:
        """A token with enough life left. With `rejected`, one other than that, unless another thread has renewed it already."""
        with self._lock:
            if not self._identity.enrolled:
                self._enrol()
            elif self._token is None or self._token == rejected:
                self._renew()
            elif self._clock.monotonic() >= self._renew_at:
                self._renew_if_possible()
            assert self._token is not None
            return self._token

    def _enrol(self) -> None:
        if not self._enrolment_key:
            raise NotEnrolled(f"this install is not enrolled in the account {self._identity.account!r}; pass an enrolment key")
        nonce = self._challenge()
        answer = self._post_open(
            "v1/device/enroll",
            {
                "account": self._identity.account,
                "enrolment_key": self._enrolment_key,
                "install_id": self._identity.install_id,
                "public_key": self._identity.public_key_text,
                "nonce": nonce,
                "signature": self._identity.sign_enrolment(nonce),
            },
        )
        if not self._identity.enrolled:
            self._identity = self._identity_file.pin(self._identity, answer.get("trust"))
        self._keep_token(answer)

    def _renew_if_possible(self) -> None:
        """Renew before the token ends. A server that cannot do that now does not stop the device: the old token is tried meanwhile."""
        try:
            self._renew()
        except (ServerError, ServerUnreachable) as error:
            if isinstance(error, ServerError) and error.status < 500:
                raise
            self._renew_at = self._clock.monotonic() + RENEW_AGAIN_S

    def _renew(self) -> None:
        nonce = self._challenge()
        request = {
            "account": self._identity.account,
            "install_id": self._identity.install_id,
            "nonce": nonce,
            "signature": self._identity.sign_token_request(nonce),
        }
        try:
            answer = self._post_open("v1/device/token", request)
        except (Unauthorized, NotFound):
            # The server no longer knows this install (restored from an older backup): the same key enrols again, the pinned keys stay.
            if not self._enrolment_key:
                raise
            self._enrol()
        else:
            self._keep_token(answer)

    def _keep_token(self, answer: Mapping[str, Any]) -> None:
        token = answer.get("token")
        try:
            left = parse_time(str(answer.get("expires_at"))) - self._clock.now()
        except ValueError:
            left = SHORTEST_TOKEN_S
        if not isinstance(token, str) or not token:
            raise ResponseInvalid("the server gave no token")
        # The life is counted on the monotonic clock, within what the protocol allows: a wrong wall clock costs a renewal, not the service.
        life = min(max(left, SHORTEST_TOKEN_S), LONGEST_TOKEN_S)
        self._token = token
        self._renew_at = self._clock.monotonic() + life - (RENEW_BEFORE_S if life > 2 * RENEW_BEFORE_S else life / 10)

    def _challenge(self) -> str:
        nonce = self._post_open("v1/device/challenge", None).get("nonce")
        if not isinstance(nonce, str) or not nonce:
            raise ResponseInvalid("the server gave no nonce")
        return nonce

    def _post_open(self, path: str, body: Any) -> Mapping[str, Any]:
        """POST without a credential; the parsed answer."""
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if body is not None else {}
        answer = self._good(self._transport.send("POST", urljoin(self._server, path), headers=headers, body=data)).json()
        if not isinstance(answer, dict):
            raise ResponseInvalid(f"{path} answered something that is not an object")
        return answer

    # --- answers ----------------------------------------------------------------------------------------------------------------

    def _blob_link(self, sha256: str) -> str:
        """Where a blob can be read without a credential."""
        path = f"v1/device/blobs/{sha256}"
        response = self._call("GET", path)
        if response.status >= 400:
            raise self._error(response)
        if response.status not in {302, 303, 307, 308} or "location" not in response.headers:
            raise ResponseInvalid(f"the server answered {response.status} where a link was due")
        return urljoin(urljoin(self._server, path), response.headers["location"])

    def _good(self, response: Response) -> Response:
        if response.status not in {200, 201, 202, 204}:
            raise self._error(response)
        return response

    def _error(self, response: Response) -> ServerError:
        try:
            problem = json.loads(response.body)
        except (ValueError, RecursionError):
            problem = None
        retry_after_s = parse_retry_after(response.headers.get("retry-after"), self._clock.now())
        if response.status == 401 and problem is None:
            return Unauthorized("the server does not accept this device's credential", status=401)
        return from_problem(response.status, problem, retry_after_s=retry_after_s, request_id=response.headers.get("x-request-id"))


def _parse_poll(raw: Any) -> PollAdvice | None:
    if not isinstance(raw, dict):
        return None
    after, spread = raw.get("after_s"), raw.get("spread_s", 0)
    if not _is_duration(after) or not _is_duration(spread):
        return None
    return PollAdvice(float(after), float(spread))


def _is_duration(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _parse_poll_header(text: str | None) -> PollAdvice | None:
    """`after=3600; spread=600`."""
    parts = dict(part.strip().partition("=")[::2] for part in (text or "").split(";"))
    try:
        return _parse_poll({"after_s": float(parts["after"]), "spread_s": float(parts.get("spread") or 0)})
    except (KeyError, ValueError):
        return None


def _read_at_most(stream: Stream, limit: int) -> bytes:
    data = b""
    for piece in stream.pieces():
        data += piece
        if len(data) >= limit:
            break
    return data[:limit]
