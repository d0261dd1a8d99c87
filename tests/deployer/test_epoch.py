"""The epoch rises with everything that can change an answer, and with nothing else."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from services.deployer.binding import Bound, Catalogue, VersionEntry, bind, compile_rules
from services.deployer.compatibility import Package
from services.deployer.rules import parse_rules


def package(version: int, variant: str = "v") -> Package:
    return Package(f"digest-{version}-{variant}", "m", version, variant, 1, "onnxruntime")


def bound(*, alias: int = 1, archived: bool = False, revision: int = 1, content: str = "x", extra: Any = None, order: int = 1) -> Bound:
    rules = parse_rules(
        {
            "rules": [
                {
                    "id": "a",
                    "active": {"from": "2026-12-01T00:00:00Z", "until": "2026-12-02T00:00:00Z"},
                    "serve": {"model": "m", "version": 2},
                }
            ],
            "default": {"model": "m", "alias": "stable"},
        }
    )
    packages = (package(2), package(2, "w"))[::order]
    versions = {("m", 1): VersionEntry((package(1),)), ("m", 2): VersionEntry(packages, archived), ("m", 3): VersionEntry((package(3),))}
    versions.update(extra or {})
    catalogue = Catalogue(versions, {("m", "stable"): alias})
    return bind(compile_rules(rules), catalogue, collection="c", revision=revision, content=content)


def at(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


NOW = at("2026-11-22T10:00:00Z")


def test_same_facts_same_epoch() -> None:
    assert bound().at(NOW).epoch == bound().at(NOW + 3600).epoch
    assert bound(extra={("other", 1): VersionEntry((package(9),))}).at(NOW).epoch == bound().at(NOW).epoch


def test_every_change_has_an_epoch_of_its_own() -> None:
    changes = [
        {},
        {"alias": 3},
        {"alias": 7},
        {"archived": True},
        {"revision": 2},
        {"content": "y"},
        {"order": -1},
    ]
    epochs = {bound(**change).at(NOW).epoch for change in changes}
    assert len(epochs) == len(changes)


def test_edges_of_windows() -> None:
    opening, closing = at("2026-12-01T00:00:00Z"), at("2026-12-02T00:00:00Z")
    before, during, after = bound().at(NOW), bound().at(opening), bound().at(closing)
    assert before.until == opening
    assert (during.since, during.until) == (opening, closing)
    assert (before.open_rules, during.open_rules, after.open_rules) == (0, 1, 0)
    assert before.epoch != during.epoch
    assert before.epoch == after.epoch
    assert before.at(opening - 1e-3) is before
    assert before.at(opening).epoch == during.epoch
    assert during.at(NOW).epoch == before.epoch  # a clock that is set back
