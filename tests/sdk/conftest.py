"""Fixtures of the device's tests: a simulated server, engines loaded once, and managers and agents that end with the test."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latebind.device.agent import DeviceAgent
from latebind.device.engines import Engine, find_engines
from latebind.device.manager import Manager
from latebind.device.options import DeviceOptions
from tests.sdk.simulator import ACCOUNT, ENROLMENT_KEY, Simulator, running

CONTEXT: dict[str, Any] = {
    "app": {"id": "com.acme.cam", "version": "4.2.0"},
    "device": {"model": "Pixel 9", "soc": "tensor-g4", "abi": "arm64-v8a"},
    "os": {"name": "android", "version": "16", "api_level": 36},
    "country": "DE",
}


def quick(**changes: Any) -> DeviceOptions:
    """Options without long pauses."""
    defaults: dict[str, Any] = {"retry_base_s": 0.01, "retry_cap_s": 0.05, "start_spread_s": 0.0, "reserve_bytes": 0}
    return DeviceOptions(**{**defaults, **changes})


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with running() as simulator:
        yield simulator


@pytest.fixture(scope="session")
def engines() -> dict[str, Engine]:
    return find_engines()


@pytest.fixture
def make_agent(simulator: Simulator, tmp_path: Path, engines: dict[str, Engine]) -> Iterator[Callable[..., DeviceAgent]]:
    agents: list[DeviceAgent] = []

    def make(**changes: Any) -> DeviceAgent:
        defaults: dict[str, Any] = {
            "server": simulator.url,
            "account": ACCOUNT,
            "cache_dir": tmp_path / "device",
            "enrolment_key": ENROLMENT_KEY,
            "context": CONTEXT,
            "engines": engines,
            "rng": random.Random(1),
            "options": quick(),
        }
        agent = DeviceAgent(**{**defaults, **changes})
        agents.append(agent)
        return agent

    yield make
    for agent in agents:
        agent.close(send=False)


@pytest.fixture
def make_manager(simulator: Simulator, tmp_path: Path, engines: dict[str, Engine]) -> Iterator[Callable[..., Manager]]:
    managers: list[Manager] = []

    def make(**changes: Any) -> Manager:
        defaults: dict[str, Any] = {
            "server": simulator.url,
            "enrolment_key": ENROLMENT_KEY,
            "cache_dir": tmp_path / "device",
            "context": CONTEXT,
            "engines": engines,
            "rng": random.Random(1),
            "options": quick(),
        }
        manager = Manager(**{**defaults, **changes})
        managers.append(manager)
        return manager

    yield make
    for manager in managers:
        manager.close()
