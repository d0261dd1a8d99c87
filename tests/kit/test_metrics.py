"""Counters, gauges, histograms: declared first, rendered for Prometheus."""

from __future__ import annotations

import pytest

from kit.clock import FakeClock
from kit.metrics import KIT_METRICS, Metric, Metrics, NullMetrics, PrometheusMetrics, timed

COUNTED = Metric("test_things_total", "counter", "Things.", ("kind",))
TIMED = Metric("test_seconds", "histogram", "Time.", buckets=(1.0, 5.0))


def test_what_was_measured_is_rendered() -> None:
    metrics = PrometheusMetrics(COUNTED, TIMED, Metric("test_level", "gauge", "Level."))
    metrics.count("test_things_total", kind="a")
    metrics.count("test_things_total", 2, kind="a")
    metrics.gauge("test_level", 4)
    metrics.observe("test_seconds", 3)
    text = metrics.render().decode()
    assert 'test_things_total{kind="a"} 3.0' in text
    assert "test_level 4.0" in text
    assert 'test_seconds_bucket{le="1.0"} 0.0' in text
    assert 'test_seconds_bucket{le="5.0"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert "# HELP test_things_total Things." in text


def test_what_is_not_declared_is_an_error() -> None:
    metrics = PrometheusMetrics()
    with pytest.raises(KeyError):
        metrics.count("test_things_total", kind="a")
    metrics.register(COUNTED)
    with pytest.raises(ValueError, match="label"):
        metrics.count("test_things_total", other="a")


def test_the_same_declaration_twice_is_fine_and_another_is_not() -> None:
    metrics = PrometheusMetrics(COUNTED)
    metrics.register(COUNTED)
    with pytest.raises(ValueError, match="declared differently"):
        metrics.register(Metric("test_things_total", "counter", "Other things.", ("kind",)))


def test_two_registries_do_not_share_figures() -> None:
    one, two = PrometheusMetrics(COUNTED), PrometheusMetrics(COUNTED)
    one.count("test_things_total", kind="a")
    assert 'kind="a"' not in two.render().decode()


@pytest.mark.parametrize("metrics", [NullMetrics(), PrometheusMetrics(TIMED)])
def test_time_is_taken_whether_it_ends_well_or_not(metrics: Metrics) -> None:
    clock = FakeClock()
    with pytest.raises(RuntimeError), timed(metrics, "test_seconds", clock):
        clock.advance(2)
        raise RuntimeError
    if isinstance(metrics, PrometheusMetrics):
        assert "test_seconds_sum 2.0" in metrics.render().decode()


def test_the_null_one_takes_everything() -> None:
    metrics = NullMetrics()
    metrics.register(COUNTED)
    metrics.count("x", a="b")
    metrics.gauge("x", 1)
    metrics.observe("x", 1)
    assert metrics.render() == b""


def test_names_follow_the_habits_of_prometheus() -> None:
    for metric in KIT_METRICS:
        assert metric.name.startswith("latebind_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
