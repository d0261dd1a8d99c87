"""Traces (OpenTelemetry, OTLP over HTTP): spans from the request of a device to the insert that holds its rows. Off unless configured.

The composition root switches them on once per process, like logging. What is off loads no library and costs a comparison. A trace
crosses processes in W3C `traceparent` headers of requests and log records, never taken from outside. Spans hold neither texts of
exceptions nor ids of devices, digests or raw paths; the request id is what finds the rest in the logs.
https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from kit import http
from kit.context import request_id, traceparent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

#: Name of the header, of requests as bytes and of log records as text.
TRACEPARENT_HEADER = b"traceparent"
TRACEPARENT = "traceparent"
#: A batch is linked to the spans of at most so many of its records.
MAX_LINKS = 128

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int]

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES = frozenset({"/livez", "/readyz", "/startupz"})
_EXPORT_S = 3.0
_NOTHING: AbstractContextManager[None] = nullcontext()


class _Tracing:
    """What is on: makes spans and keeps `kit.context.traceparent` at the one that is open."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - only a process that traces loads it

        self._trace = trace
        self._provider = provider

    @contextmanager
    def span(
        self,
        part: str,
        name: str,
        kind: Kind,
        *,
        parent: str | None = None,
        links: Iterable[str] = (),
        attributes: Attributes | None = None,
    ) -> Iterator[Any]:
        """Open a span below `parent`: None is the open one, "" begins a trace."""
        trace = self._trace
        span = self._provider.get_tracer(f"latebind.{part}").start_span(
            name,
            self._context(traceparent.get() if parent is None else parent),
            kind=trace.SpanKind[kind.upper()],
            attributes=attributes,
            links=[trace.Link(found) for link in links if (found := self._parsed(link))],
        )
        own = span.get_span_context()
        token = traceparent.set(f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}")
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            if current := request_id.get():
                span.set_attribute("latebind.request_id", current)
            span.end()
            traceparent.reset(token)

    def _context(self, parent: str) -> Context:
        from opentelemetry.context import Context  # noqa: PLC0415

        found = self._parsed(parent)
        # An empty one: whatever the library holds as current is not ours.
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(found), Context()) if found else Context()

    def _parsed(self, text: str) -> Any:
        match = _TRACEPARENT.fullmatch(text)
        if match is None:
            return None
        trace = self._trace
        found = trace.SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=trace.TraceFlags(int(match[3], 16)))
        return found if found.is_valid else None


_on: _Tracing | None = None


@contextmanager
def tracing(url: str, *, instance: str, share: float) -> Iterator[None]:
    """Send spans of this process to an OTLP receiver (`http://host:4318`) while the block runs; an empty URL switches nothing on.

    `share` of the traces that begin here is recorded (0 to 1); who began a trace decides for everybody. Spans wait in a bounded queue and
    are dropped when the receiver does not take them: a trace is a help, not a fact. Leaving the block sends what waits, for some seconds at
    most. Raises `ValueError` when the URL is none or the library is not installed.
    """
    global _on  # noqa: PLW0603 - like logging: one per process, so that what is off costs nothing
    if not url:
        yield
        return
    provider, stop = _provider(url, instance, share)
    before, _on = _on, _Tracing(provider)
    try:
        yield
    finally:
        _on = before
        stop()


def traces_endpoint(url: str) -> str:
    """Return where spans are sent: the URL, with the standard path when it has none. Raises `ValueError` for a URL that is none."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("LATEBIND_TRACES_URL is the address of an OTLP receiver: http://collector:4318")
    return parts._replace(path=parts.path.rstrip("/") or "/v1/traces").geturl()


def _provider(url: str, instance: str, share: float) -> tuple[TracerProvider, Callable[[], None]]:
    endpoint = traces_endpoint(url)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise ValueError("traces need the extra `tracing` of latebind-server") from missing
    exporter = OTLPSpanExporter(endpoint, timeout=_EXPORT_S)
    resource = Resource.create({"service.name": "latebind", "service.instance.id": instance})
    provider = TracerProvider(ParentBasedTraceIdRatio(share), resource, shutdown_on_exit=False, span_limits=SpanLimits(max_links=MAX_LINKS))
    provider.add_span_processor(BatchSpanProcessor(exporter))

    def stop() -> None:
        # A receiver that is gone would keep the library trying for half a minute.
        late = threading.Timer(_EXPORT_S, exporter.shutdown)
        late.start()
        try:
            provider.shutdown()
        finally:
            late.cancel()

    return provider, stop


def span(part: str, name: str, *, kind: Kind = "internal", attributes: Attributes | None = None) -> AbstractContextManager[Any]:
    """Return a context that is one span of `part`, below the span that is open. Names and attributes hold few different values."""
    if _on is None:
        return _NOTHING
    return _on.span(part, name, kind, attributes=attributes)


def handling(
    part: str, name: str, records: Iterable[Mapping[str, str]], attributes: Attributes | None = None
) -> AbstractContextManager[Any]:
    """Return a context that is the span of handling records with these headers.

    Records of one request go on with its trace; a batch of several begins its own and is linked to theirs, `MAX_LINKS` at most.
    """
    if _on is None:
        return _NOTHING
    origins = list(dict.fromkeys(origin for headers in records if (origin := headers.get(TRACEPARENT))))
    if len(origins) == 1:
        return _on.span(part, name, "consumer", parent=origins[0], attributes=attributes)
    return _on.span(part, name, "consumer", parent="", links=origins[:MAX_LINKS], attributes=attributes)


def record_headers() -> Mapping[str, str]:
    """Return what a log record carries of the open span: nothing when there is none."""
    current = traceparent.get()
    return {TRACEPARENT: current} if current else {}


def traced_app(part: str, app: http.ASGIApp, *, template: Callable[[str], str], from_outside: bool = False) -> http.ASGIApp:
    """Return `app` with a span around each request but probes; `app` itself when traces are off.

    `template` names a path without what varies in it. `from_outside` begins a new trace whatever the request says.
    """
    if _on is None:
        return app
    on = _on

    async def traced(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        route = template(scope["path"])
        given = None if from_outside else http.header(scope, TRACEPARENT_HEADER)
        parent = "" if from_outside else given.decode("ascii", "replace") if given else None
        attributes = {"http.request.method": method, "http.route": route}
        with on.span(part, f"{method} {route}", "server", parent=parent, attributes=attributes) as opened:

            async def answer(message: http.Message) -> None:
                if message["type"] == "http.response.start":
                    opened.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await app(scope, receive, answer)

    return traced
