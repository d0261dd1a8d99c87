"""Spans: nothing when off; joined, bounded and without secrets when on."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from kit import http
from kit.context import request_id, traceparent
from kit.tracing import MAX_LINKS, handling, record_headers, span, traced_app, traces_endpoint, tracing
from tests.otlp import receiving

PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


async def _call(app: http.ASGIApp, path: str = "/v1/things/secret-id", method: str = "GET", **headers: str) -> None:
    async def receive() -> http.Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: http.Message) -> None:
        pass

    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "path": path, "method": method, "headers": sent}, receive, send)


async def _app(_scope: http.Scope, _receive: http.Receive, send: http.Send) -> None:
    request_id.set("r-1")
    await send({"type": "http.response.start", "status": 202, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _template(_path: str) -> str:
    return "/v1/things"


def test_what_is_off_does_nothing_and_loads_nothing() -> None:
    with tracing("", instance="x", share=1.0):
        assert traced_app("registry", _app, template=_template) is _app
        assert span("registry", "x") is handling("registry", "y", [{"traceparent": PARENT}])
        with span("registry", "x"):
            assert record_headers() == {}
    check = "import services.launch, sys; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


async def test_spans_are_joined_from_request_to_record_to_insert() -> None:
    with receiving() as received, tracing(received.url, instance="here", share=1.0):
        seen: dict[str, str] = {}

        async def app(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
            seen.update(record_headers())
            await _app(scope, receive, send)

        await _call(traced_app("gateway", app, template=_template, from_outside=True), traceparent=PARENT)
        with handling("log", "handle it", [seen, seen, {}]), span("telemetry", "insert", kind="client", attributes={"rows": 3}):
            pass
        await _call(traced_app("registry", app, template=_template), method="BREW", traceparent=PARENT)
        assert traceparent.get() == ""
    first, *_ = received.named("GET /v1/things")
    handled, insert, inner = received.named("handle it")[0], received.named("insert")[0], received.named("_OTHER /v1/things")[0]
    # What somebody outside says of a trace is not believed; what our gateway says is.
    assert (first.parent, first.trace == "a" * 32) == ("", False)
    assert (inner.parent, inner.trace) == ("b" * 16, "a" * 32)
    assert (handled.trace, handled.parent) == (first.trace, first.id)
    assert (insert.trace, insert.parent, insert.attributes["rows"]) == (first.trace, handled.id, 3)
    assert first.attributes["http.response.status_code"] == 202
    assert first.attributes["latebind.request_id"] == "r-1"
    assert first.scope == "latebind.gateway"
    assert b"secret-id" not in received.raw


async def test_a_batch_of_many_requests_begins_a_trace_and_is_linked() -> None:
    origins = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 2 * MAX_LINKS)]
    with receiving() as received, tracing(received.url, instance="here", share=1.0):
        with handling("telemetry", "write", [{"traceparent": origin} for origin in [*origins, origins[0], "nonsense"]]):
            pass
        with handling("telemetry", "write nothing", [{}, {"traceparent": "nonsense"}]):
            pass
    (batch,) = received.named("write")
    assert batch.parent == ""
    assert len(batch.links) == MAX_LINKS
    assert batch.links[0] == (f"{1:032x}", f"{1:016x}")
    assert received.named("write nothing")[0].links == ()


async def test_an_error_is_marked_without_its_text() -> None:
    async def failing(*_arguments: Any) -> None:
        raise RuntimeError("the password is hunter2")

    with receiving() as received, tracing(received.url, instance="here", share=1.0):
        with pytest.raises(RuntimeError):
            await _call(traced_app("registry", failing, template=_template))
        with pytest.raises(KeyError), span("registry", "inner"):
            raise KeyError("hunter2")
    assert [(one.error, one.attributes["error.type"], one.events) for one in received.spans] == [
        (True, "RuntimeError", 0),
        (True, "KeyError", 0),
    ]
    assert b"hunter2" not in received.raw


async def test_who_begins_a_trace_decides_whether_it_is_recorded() -> None:
    with receiving() as received, tracing(received.url, instance="here", share=0.0):
        with span("gateway", "not recorded"):
            not_recorded = record_headers()["traceparent"]
        assert int(not_recorded[-2:], 16) & 1 == 0
        with handling("log", "not recorded either", [{"traceparent": not_recorded}]):
            pass
        with handling("log", "recorded elsewhere, so here too", [{"traceparent": PARENT}]):
            pass
    assert [one.name for one in received.spans] == ["recorded elsewhere, so here too"]


async def test_probes_are_not_traced() -> None:
    with receiving() as received, tracing(received.url, instance="here", share=1.0):
        for path in ("/livez", "/readyz", "/startupz"):
            await _call(traced_app("gateway", _app, template=_template), path)
    assert received.spans == []


def test_a_receiver_that_is_gone_costs_no_start_and_no_request() -> None:
    with tracing("http://127.0.0.1:9", instance="here", share=1.0), span("gateway", "lost"):
        pass


@pytest.mark.parametrize("url", ["collector:4318", "grpc://collector:4317", "http://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="OTLP receiver"), tracing(url, instance="here", share=1.0):
        pass


def test_the_standard_path_is_added() -> None:
    assert traces_endpoint("http://collector:4318") == traces_endpoint("http://collector:4318/") == "http://collector:4318/v1/traces"
    assert traces_endpoint("https://collector/otlp/v1/traces") == "https://collector/otlp/v1/traces"
