"""What a device says of itself when it asks (PRODUCT section 5): facts found on this machine, and what the caller knows better.

Only kinds of things are told, never a serial number or another hardware id.
"""

from __future__ import annotations

import locale
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latebind_proto.telemetry_pb2 import DeviceFacts

SDK_NAME = "latebind-python"

_KNOWN_KEYS = frozenset({"app", "device", "os", "locale", "country", "groups", "attributes"})
_OWN_KEYS = frozenset({"install_id", "sdk", "runtimes", "installed"})


def detect_context() -> dict[str, Any]:
    """The facts of this machine; what cannot be found out is left out."""
    device = {
        "model": _first_line("/sys/devices/virtual/dmi/id/product_name") or _first_line("/proc/device-tree/model"),
        "manufacturer": _first_line("/sys/devices/virtual/dmi/id/sys_vendor"),
        "soc": _soc(),
        "abi": platform.machine().lower() or None,
        "ram_mb": _ram_mb(),
    }
    language = locale.getlocale()[0]
    context: dict[str, Any] = {
        "device": {name: value for name, value in device.items() if value},
        "os": {"name": platform.system().lower() or "unknown", "version": _os_version()},
    }
    if language and language not in {"C", "POSIX"}:
        context["locale"] = language.replace("_", "-")
    return context


def merge_context(detected: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Detected facts with the caller's on top; a value of None removes one.

    Raises ValueError for keys that belong to the SDK or are unknown.
    """
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in detected.items()}
    for name, value in (given or {}).items():
        if name in _OWN_KEYS:
            raise ValueError(f"{name!r} in the device context is set by the SDK")
        if name not in _KNOWN_KEYS:
            raise ValueError(f"{name!r} is no part of the device context; put your own facts under 'attributes'")
        if isinstance(value, Mapping):
            base = merged.get(name)
            combined = {**(base if isinstance(base, dict) else {}), **value}
            merged[name] = {key: item for key, item in combined.items() if item is not None}
        else:
            merged[name] = value
    return {name: value for name, value in merged.items() if value is not None}


def full_context(
    facts: Mapping[str, Any], *, install_id: str, sdk_version: str, runtimes: Iterable[Mapping[str, Any]], installed: Iterable[str]
) -> dict[str, Any]:
    """The context as it is sent: the facts and what the SDK itself knows. `installed` holds package digests."""
    return {
        **facts,
        "install_id": install_id,
        "sdk": {"name": SDK_NAME, "version": sdk_version},
        "runtimes": [dict(runtime) for runtime in runtimes],
        "installed": [{"package": f"sha256:{digest}"} for digest in installed],
    }


def telemetry_facts(facts: Mapping[str, Any], *, sdk_version: str) -> DeviceFacts:
    """The part of the context by which analytics are grouped."""
    device, system, app = (_mapping(facts.get(name)) for name in ("device", "os", "app"))
    api_level = system.get("api_level")
    return DeviceFacts(
        device_model=_text(device.get("model")),
        manufacturer=_text(device.get("manufacturer")),
        soc=_text(device.get("soc")),
        abi=_text(device.get("abi")),
        os_name=_text(system.get("name")),
        os_version=_text(system.get("version")),
        api_level=api_level if isinstance(api_level, int) and not isinstance(api_level, bool) and 0 <= api_level < 2**31 else 0,
        country=_text(facts.get("country")),
        app_id=_text(app.get("id")),
        app_version=_text(app.get("version")),
        sdk_name=SDK_NAME,
        sdk_version=sdk_version,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value[:256] if isinstance(value, str) else ""


def _first_line(path: str) -> str | None:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.split("\0", 1)[0].split("\n", 1)[0].strip() or None


def _soc() -> str | None:
    """The last entry of the device tree's `compatible`, such as "brcm,bcm2712"; machines without a device tree have no SoC name."""
    try:
        entries = Path("/proc/device-tree/compatible").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    names = [entry for entry in entries if entry]
    return names[-1] if names else None


def _ram_mb() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1 << 20)
    except (ValueError, OSError, AttributeError):
        return None


def _os_version() -> str:
    """VERSION_ID of os-release (as "12" on Debian 12), else the kernel's release."""
    try:
        return platform.freedesktop_os_release()["VERSION_ID"]
    except (OSError, KeyError):
        return platform.release()
