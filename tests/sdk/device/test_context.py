"""What a device says of itself."""

from __future__ import annotations

import pytest

from latebind.device.context import detect_context, full_context, merge_context, telemetry_facts


def test_this_machine_is_described_without_hardware_ids() -> None:
    context = detect_context()
    assert context["os"]["name"] == "linux" and context["os"]["version"]
    assert context["device"]["ram_mb"] > 100 and context["device"]["abi"]
    assert set(context) <= {"device", "os", "locale"}
    assert set(context["device"]) <= {"model", "manufacturer", "soc", "abi", "ram_mb"}


def test_what_the_caller_says_goes_on_top() -> None:
    detected = {"device": {"model": "a", "ram_mb": 5}, "os": {"name": "linux"}, "locale": "de-DE"}
    merged = merge_context(
        detected, {"device": {"model": "b", "ram_mb": None, "accelerators": ["gpu"]}, "groups": ["beta"], "locale": None}
    )
    assert merged == {"device": {"model": "b", "accelerators": ["gpu"]}, "os": {"name": "linux"}, "groups": ["beta"]}
    assert detected["device"] == {"model": "a", "ram_mb": 5}


@pytest.mark.parametrize("key", ["install_id", "runtimes", "installed", "sdk", "devcie"])
def test_keys_of_the_sdk_and_mistakes_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        merge_context({}, {key: {}})


def test_the_full_context_carries_what_the_sdk_knows() -> None:
    full = full_context(
        {"country": "DE"}, install_id="i", sdk_version="1", runtimes=[{"engine": "litert", "version": "2"}], installed=["a" * 64]
    )
    assert full["installed"] == [{"package": "sha256:" + "a" * 64}] and full["sdk"] == {"name": "latebind-python", "version": "1"}


def test_telemetry_facts_take_only_what_fits() -> None:
    facts = telemetry_facts(
        {"device": {"model": "Pixel 9", "soc": 5}, "os": {"api_level": True}, "app": "x", "country": "DE"}, sdk_version="1"
    )
    assert (facts.device_model, facts.soc, facts.api_level, facts.app_id, facts.country) == ("Pixel 9", "", 0, "", "DE")
