"""The parts of `make demo` that need no fleet."""

from __future__ import annotations

from typing import Any

from examples.demo import check, rules
from latebind.cli._kinds import read_kinds, spread


def test_kinds_are_spread_by_weight_and_each_is_there_first() -> None:
    kinds = read_kinds()
    assert len(kinds) >= 8
    chosen = spread(kinds, 210)
    assert {kind.name for kind in chosen[: len(kinds)]} == {kind.name for kind in kinds}
    heavy, light = (sum(kind.name == name for kind in chosen) for name in ("galaxy-a15", "moto-e7"))
    assert 3 * light <= heavy <= 5 * light
    assert spread(kinds, 3) == list(kinds[:3])


def test_some_kinds_have_no_litert_and_some_an_old_runtime() -> None:
    engines = {kind.name: {str(one["engine"]): one for one in kind.runtimes} for kind in read_kinds()}
    assert any("litert" not in found for found in engines.values())
    assert any("onnxruntime" not in found for found in engines.values())
    assert any(found.get("onnxruntime", {}).get("max_opset", 99) < 15 for found in engines.values())
    assert len({str(kind.context["device"]["soc"]) for kind in read_kinds()}) >= 8


def test_differences_are_found() -> None:
    fleet: dict[str, Any] = {
        "packages": [{"model_id": "m", "version": 1, "variant": "v", "inferences": 5}],
        "latency": [{"model_id": "m", "kind": "k", "count": 5, "p50_ms": 10.0, "p95_ms": 20.0}],
    }
    counted = check.counted_inferences(fleet, [])
    served = check.server_inferences([{"app_id": "a", "model": "m", "version": 1, "variant": "v", "inferences": 5}])
    assert check.differences(counted, served) == []
    assert check.differences(counted, {}) != []
    latency = check.counted_latency(fleet, [], {"k": "Phone"})
    for p50, count, agree in ((10.1, 5, True), (10.5, 5, False), (10.0, 6, False)):
        items = [{"model": "m", "device_model": "Phone", "count": count, "p50_ms": p50, "p95_ms": 20.0}]
        assert (check.differences(latency, check.server_latency(items, real=False)) == []) is agree


def test_the_edit_changes_both_collections() -> None:
    assert rules.FILES != rules.FILES_AFTER
    assert rules.NOTES != rules.NOTES_AFTER
