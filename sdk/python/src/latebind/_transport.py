"""The network port of the SDK: what the device code and the management client need from HTTP, and its one real implementation.

A transport knows nothing of accounts, tokens or retries; it sends one request and gives one answer. Redirects are not followed here,
because a credential must not travel to where a redirect points. Answers are read up to a limit: an endless body cannot fill the memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2

from latebind.errors import ConnectionLost, ResponseInvalid, ServerUnreachable

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_CONNECT_TIMEOUT_S = 10.0
DEFAULT_MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The parsed body; raises ResponseInvalid when it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ResponseInvalid(f"the server answered {self.status} with a body that is not JSON") from error


class Stream(Protocol):
    """An answer whose body is read piece by piece."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, names in lower case."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """The body as it was sent. Raises ServerUnreachable when the connection breaks."""
        ...


class Transport(Protocol):
    """Sends requests. Safe to use from several threads at once. All methods raise ServerUnreachable when there is no answer."""

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        max_bytes: int = DEFAULT_MAX_ANSWER_BYTES,
    ) -> Response:
        """Send one request and read the whole answer; raises ResponseInvalid when the body is longer than `max_bytes`."""
        ...

    def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> AbstractContextManager[Stream]:
        """Send one request and read the answer's body in pieces. `timeout_s` is the longest silence."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class HttpTransport:
    """The transport over HTTP/1.1 with a pool of kept-alive connections (httpx2)."""

    def __init__(
        self, *, timeout_s: float = DEFAULT_TIMEOUT_S, connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S, max_connections: int = 20
    ) -> None:
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._client = httpx2.Client(
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            headers={"user-agent": "latebind-python"},
        )

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        max_bytes: int = DEFAULT_MAX_ANSWER_BYTES,
    ) -> Response:
        """See `Transport.send`."""
        with (
            _network_errors(url),
            self._client.stream(method, url, headers=dict(headers or {}), content=body, timeout=self._timeout(timeout_s)) as answer,
        ):
            pieces: list[bytes] = []
            size = 0
            for piece in answer.iter_bytes():
                size += len(piece)
                if size > max_bytes:
                    raise ResponseInvalid(f"the answer of {_host(url)} is longer than {max_bytes} bytes")
                pieces.append(piece)
            return Response(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, b"".join(pieces))

    @contextlib.contextmanager
    def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Iterator[Stream]:
        """See `Transport.stream`."""
        sent = {"accept-encoding": "identity", **(headers or {})}
        with contextlib.ExitStack() as stack:
            with _network_errors(url):
                answer = stack.enter_context(self._client.stream(method, url, headers=sent, timeout=self._timeout(timeout_s)))
            yield _HttpStream(answer, url)

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()

    def _timeout(self, timeout_s: float | None) -> httpx2.Timeout:
        return httpx2.Timeout(
            self._timeout_s if timeout_s is None else timeout_s, connect=min(self._connect_timeout_s, timeout_s or self._connect_timeout_s)
        )


class NoTransport:
    """The transport of a device without network: nothing is ever sent."""

    def send(self, method: str, url: str, **options: Any) -> Response:
        """See `Transport.send`."""
        raise ServerUnreachable("this device has no server")

    def stream(self, method: str, url: str, **options: Any) -> AbstractContextManager[Stream]:
        """See `Transport.stream`."""
        raise ServerUnreachable("this device has no server")

    def close(self) -> None:
        """See `Transport.close`."""


class _HttpStream:
    def __init__(self, answer: httpx2.Response, url: str) -> None:
        self._answer = answer
        self._url = url
        self.status = answer.status_code
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.headers.items()}

    def pieces(self) -> Iterator[bytes]:
        with _network_errors(self._url):
            yield from self._answer.iter_raw()


@contextlib.contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Vendor errors stop here."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise ServerUnreachable(f"{_host(url)} cannot be reached: {error or 'no connection in time'}") from error
    except httpx2.TimeoutException as error:
        raise ConnectionLost(f"{_host(url)} did not answer in time") from error
    except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        raise ConnectionLost(f"the connection to {_host(url)} broke: {error or type(error).__name__}") from error
    except (httpx2.RequestError, httpx2.StreamError) as error:
        raise ServerUnreachable(f"{_host(url)} cannot be reached: {error or type(error).__name__}") from error
    except httpx2.InvalidURL as error:
        raise ServerUnreachable(f"{url!r} is not a server address: {error}") from error


def _host(url: str) -> str:
    """Scheme, host and port: a signed link's path and query do not belong in messages."""
    return "/".join(url.split("/", 3)[:3])
