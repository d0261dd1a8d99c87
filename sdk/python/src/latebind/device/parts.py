"""What the updaters of one device share: its ports and its settings, built in one place (`agent.py`) and passed down."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latebind.device.api import DeviceApi
from latebind.device.cache import PackageCache
from latebind.device.clock import Clock
from latebind.device.engines import Engine
from latebind.device.options import DeviceOptions
from latebind.device.sender import Reports
from latebind.device.state import PackageRef
from latebind.device.telemetry import RunSource, Telemetry


@dataclass(frozen=True, slots=True)
class DeviceParts:
    """One device of one account. `states` is the folder of the state files, `facts` what the device says of itself."""

    account: str
    server: str
    api: DeviceApi
    cache: PackageCache
    states: Path
    engines: Mapping[str, Engine]
    facts: Mapping[str, Any]
    sdk_version: str
    clock: Clock
    random: random.Random
    telemetry: Telemetry
    reports: Reports
    options: DeviceOptions

    @property
    def machine(self) -> str:
        """What the result of a golden test belongs to: the system and the engines. When it changes, the test is repeated."""
        system = self.facts.get("os")
        named = system if isinstance(system, Mapping) else {}
        engines = " ".join(f"{engine.name}={engine.version}" for engine in sorted(self.engines.values(), key=lambda item: item.name))
        return f"{named.get('name', '')} {named.get('version', '')} {engines}"

    def source(self, collection: str, package: PackageRef) -> RunSource:
        """Whose measurements and failures these are, when the package itself is not loaded."""
        engine = self.engines.get(package.engine)
        version = engine.version if engine is not None else ""
        return RunSource(collection, package.model_id, package.version, package.variant, package.digest, package.engine, version)
