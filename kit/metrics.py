"""Counters, gauges and histograms for operators, by name. A `Null` one counts nothing.

What can be measured is declared first (`Metric`), so that the documentation can list it and a typing error is an error. Labels hold
few values: never a device, a digest or a raw path. Traces and product analytics are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from kit.clock import Clock, SystemClock

#: Upper bounds in seconds for things that take from a millisecond to a minute.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: Content type of `PrometheusMetrics.render`.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that is measured: `name` as scraped, `kind`, one sentence, its labels, bucket bounds of a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS


#: What `kit` itself measures. Services declare their own list and `register` it; docs/metrics.md has a heading for each.
KIT_METRICS = (
    Metric("latebind_http_requests_total", "counter", "Requests answered.", ("service", "method", "status")),
    Metric("latebind_http_request_seconds", "histogram", "Time from the first byte of a request to the last of its answer.", ("service",)),
    Metric("latebind_worker_crashes_total", "counter", "Workers that ended with an error and were started again.", ("worker",)),
    Metric("latebind_worker_healthy", "gauge", "1 when the worker does its job, else 0.", ("worker",)),
    Metric("latebind_dependency_up", "gauge", "1 when the dependency answers within a second, else 0.", ("dependency",)),
    Metric("latebind_database_connections", "gauge", "Connections of this process's pools.", ("service", "use", "state")),
    Metric("latebind_outbox_events", "gauge", "Events that wait for the relay.", ("service",)),
    Metric("latebind_outbox_oldest_seconds", "gauge", "Age of the oldest event that waits for the relay.", ("service",)),
    Metric("latebind_log_lag_records", "gauge", "Records of a topic that a group has not committed.", ("group", "topic")),
    Metric("latebind_log_records_total", "counter", "Records a group handled and committed.", ("group",)),
    Metric(
        "latebind_log_stalls_total", "counter", "Consumers that got nothing although there was something, and were replaced.", ("group",)
    ),
    Metric("latebind_log_failures_total", "counter", "Batches whose handler failed and that were read again.", ("group",)),
    Metric("latebind_log_batch_seconds", "histogram", "Time to handle and commit one batch.", ("group",)),
)


class Metrics(Protocol):
    """Where figures go. Every method is cheap and never raises for a declared name; an undeclared one is a `KeyError`."""

    def register(self, *metrics: Metric) -> None:
        """Declare metrics; the same declaration again is fine, a different one under the same name is a `ValueError`."""
        ...

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        ...

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one value into a histogram."""
        ...

    def render(self) -> bytes:
        """Return everything in Prometheus' text format (`CONTENT_TYPE`)."""
        ...


Measured = TypeVar("Measured", Counter, Gauge, Histogram)


class PrometheusMetrics:
    """A registry of its own; the process' memory, CPU and descriptors are in it too."""

    def __init__(self, *metrics: Metric) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._declared: dict[str, Metric] = {}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        # Looking a label set up costs the library 4 µs, on every request; remembered it is a dictionary read.
        self._labelled: dict[tuple[str, ...], Counter | Gauge | Histogram] = {}
        self.register(*KIT_METRICS, *metrics)

    def register(self, *metrics: Metric) -> None:
        """Declare metrics."""
        for metric in metrics:
            known = self._declared.get(metric.name)
            if known is not None:
                if known != metric:
                    raise ValueError(f"{metric.name} is declared differently elsewhere")
                continue
            self._declared[metric.name] = metric
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(metric.name, metric.help, metric.labels, registry=self._registry)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
            else:
                self._histograms[metric.name] = Histogram(
                    metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self._registry
                )

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._with_labels(self._counters[name], name, labels).inc(amount)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._with_labels(self._gauges[name], name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one value into a histogram."""
        self._with_labels(self._histograms[name], name, labels).observe(value)

    def _with_labels(self, metric: Measured, name: str, labels: dict[str, str]) -> Measured:
        if not labels:
            return metric
        key = (name, *labels.keys(), *labels.values())
        found = self._labelled.get(key)
        if found is None:
            found = self._labelled[key] = metric.labels(**labels)
        return cast(Measured, found)

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self._registry)


class NullMetrics:
    """Measures nothing and accepts every name."""

    def register(self, *metrics: Metric) -> None:
        """Do nothing."""

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Do nothing."""

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Do nothing."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Do nothing."""

    def render(self) -> bytes:
        """Return an empty document."""
        return b""


@contextmanager
def timed(metrics: Metrics, name: str, clock: Clock | None = None, **labels: str) -> Iterator[None]:
    """Observe how long the block took, in seconds, whether it ends well or not."""
    clock = clock or SystemClock()
    start = clock.monotonic()
    try:
        yield
    finally:
        metrics.observe(name, clock.monotonic() - start, **labels)
