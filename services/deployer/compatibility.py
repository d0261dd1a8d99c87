"""Whether a package can run on a device, and why not: engine, its version, IR and opset, and what the manifest requires.

Pure. What a device does not report and nobody can derive is not checked (PRODUCT section 6), and the long form says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from services.deployer.predicates import Facts, Version, is_number, semver

#: onnxruntime minor version -> highest IR version and opset (default domain) it loads. 1.0 to 1.18 after "ONNX Runtime
#: compatibility" (onnxruntime.ai/docs/reference/compatibility.html), from 1.19 on measured by loading generated models with
#: the released wheels.
ONNXRUNTIME: dict[int, tuple[int, int]] = {
    0: (6, 11),
    1: (6, 11),
    2: (6, 11),
    3: (7, 12),
    4: (7, 12),
    5: (7, 12),
    6: (7, 13),
    7: (7, 13),
    8: (7, 14),
    9: (8, 15),
    10: (8, 15),
    11: (8, 16),
    12: (8, 17),
    13: (8, 17),
    14: (8, 18),
    15: (9, 19),
    16: (9, 19),
    17: (9, 20),
    18: (10, 21),
    19: (10, 21),
    20: (10, 21),
    21: (10, 22),
    22: (10, 22),
    23: (11, 23),
    24: (13, 25),
    25: (13, 26),
    26: (13, 26),
    27: (13, 26),
    28: (13, 26),
    29: (13, 26),
    30: (13, 26),
    31: (13, 26),
    32: (14, 28),
}
_NEWEST = max(ONNXRUNTIME)
#: Kinds of runtimes that a package remembers an answer for.
_REMEMBERED = 256
_LEADING_NUMBERS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,2}")


class Limits(NamedTuple):
    """What an engine version loads at least; `certain` says that it loads no more than that."""

    max_ir: int
    max_opset: int
    certain: bool


@dataclass(frozen=True, slots=True)
class Package:
    """One variant of a version, with what it needs. `min_version` is the manifest's text, `minimum` its order key; None: not needed."""

    digest: str
    model_id: str
    version: int
    variant: str
    size: int
    engine: str
    min_version: str | None = None
    minimum: Version | None = None
    ir_version: int | None = None
    opset: int | None = None
    abi: tuple[str, ...] = ()
    ram_mb: float | None = None
    accelerators: frozenset[str] = frozenset()
    demanding: bool = field(init=False)
    #: What was found for (version, max_ir, max_opset) of a runtime; bounded by `runs`.
    loads: dict[tuple[Any, Any, Any], bool] = field(init=False, default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "demanding", bool(self.abi or self.accelerators or self.ram_mb is not None))


class Check(NamedTuple):
    """One condition: `result` is None when it could not be checked, because the device does not report it."""

    condition: str
    needed: Any
    reported: Any
    result: bool | None


def package_of(manifest: Mapping[str, Any], *, digest: str, size: int) -> Package:
    """Return the package that a manifest (PRODUCT section 4) describes. Raises `KeyError` or `TypeError` for one that is none."""
    engine, requires = manifest["engine"], manifest.get("requires") or {}
    opset = engine.get("opset") or {}
    needed = engine.get("min_version")
    abi = requires.get("abi") or ()
    return Package(
        digest=digest,
        model_id=manifest["model_id"],
        version=manifest["version"],
        variant=manifest["variant"],
        size=size,
        engine=engine["name"],
        min_version=needed,
        minimum=release(needed) if isinstance(needed, str) else None,
        ir_version=engine.get("ir_version"),
        opset=opset.get("", opset.get("ai.onnx")),
        abi=(abi,) if isinstance(abi, str) else tuple(abi),
        ram_mb=requires.get("ram_mb"),
        accelerators=frozenset(requires.get("accelerators") or ()),
    )


@lru_cache(maxsize=4_096)
def release(text: str) -> Version | None:
    """Return the order key of an engine version: a semantic version, else the numbers it starts with ("2.1.0rc1" is 2.1.0)."""
    version = semver(text)
    if version is None:
        match = _LEADING_NUMBERS.match(text)
        if match:
            major, minor, patch = [*(int(part) for part in match[0].split(".")), 0, 0][:3]
            version = (major, minor, patch, 1, ())
    return version


@lru_cache(maxsize=4_096)
def known_limits(engine: str, version: str) -> Limits | None:
    """Return what is known of an engine version, or None. A version between two known ones has at least the older one's limits."""
    key = release(version)
    if engine != "onnxruntime" or key is None or key[0] < 1:
        return None
    minor = key[1] if key[0] == 1 else _NEWEST + 1
    older = max(known for known in ONNXRUNTIME if known <= minor)
    return Limits(*ONNXRUNTIME[older], older == minor)


def runs(package: Package, facts: Facts) -> bool:
    """Say whether the package can run on the device. The fast form of `checks`: no result is False."""
    reported = facts[""].get("runtimes")
    if type(reported) is not list:
        return False
    engine, loads = package.engine, package.loads
    for runtime in reported:
        if type(runtime) is dict and runtime.get("engine") == engine:
            key = (runtime.get("version"), runtime.get("max_ir"), runtime.get("max_opset"))
            try:
                can = loads.get(key)
            except TypeError:  # a list or an object where a text or number belongs
                can = _runtime_loads(package, runtime)
            if can is None:
                can = _runtime_loads(package, runtime)
                if 1 not in key and 0 not in key:  # as keys, true and false would be these; no runtime stops at IR 1
                    if len(loads) >= _REMEMBERED:
                        loads.clear()
                    loads[key] = can
            if can:
                break
    else:
        return False
    return not package.demanding or _device_has(package, facts["device"])


def _device_has(package: Package, device: Mapping[str, Any]) -> bool:
    if package.ram_mb is not None:
        ram = device.get("ram_mb")
        if (type(ram) is int or type(ram) is float) and ram < package.ram_mb:
            return False
    if package.abi:
        abi = device.get("abi")
        if type(abi) is str and abi not in package.abi:
            return False
    if package.accelerators:
        has = device.get("accelerators")
        if type(has) is list:
            return package.accelerators <= {item for item in has if type(item) is str}
    return True


def _runtime_loads(package: Package, runtime: Mapping[str, Any]) -> bool:
    version = runtime.get("version")
    if type(version) is not str:
        version = None
    if version is not None and package.minimum is not None:
        has = release(version)
        if has is None or has < package.minimum:
            return False
    needed = package.ir_version
    if needed is not None:
        most: Any = runtime.get("max_ir")
        if is_number(most):
            if needed > most:
                return False
        elif version is not None and _above_known(package.engine, version, 0, needed):
            return False
    needed = package.opset
    if needed is not None:
        most = runtime.get("max_opset")
        if is_number(most):
            return bool(needed <= most)
        return version is None or not _above_known(package.engine, version, 1, needed)
    return True


def _above_known(engine: str, version: str, which: int, needed: int) -> bool:
    limits = known_limits(engine, version)
    return limits is not None and limits.certain and needed > limits[which]


def checks(package: Package, facts: Facts) -> list[Check]:
    """Return every condition of the package with what it needs, what the device reported, and whether it holds."""
    reported = facts[""].get("runtimes")
    runtimes = [runtime for runtime in reported if type(runtime) is dict] if type(reported) is list else []
    same = [runtime for runtime in runtimes if runtime.get("engine") == package.engine]
    if not same:
        names = sorted({str(runtime.get("engine")) for runtime in runtimes})
        return [Check("engine", package.engine, names, False), *_device_checks(package, facts)]
    # Of several runtimes of one engine the one that loads it counts, else the first.
    chosen = next((runtime for runtime in same if _runtime_loads(package, runtime)), same[0])
    return [Check("engine", package.engine, package.engine, True), *_runtime_checks(package, chosen), *_device_checks(package, facts)]


def blocker(package: Package, facts: Facts) -> Check | None:
    """Return the first condition that does not hold, or None when the package can run."""
    return next((check for check in checks(package, facts) if check.result is False), None)


def _runtime_checks(package: Package, runtime: Mapping[str, Any]) -> list[Check]:
    version = runtime.get("version")
    if type(version) is not str:
        version = None
    found = []
    if package.minimum is not None:
        has = release(version) if version is not None else None
        holds = None if version is None else has is not None and has >= package.minimum
        found.append(Check("min_version", package.min_version, version, holds))
    for condition, which, name, needed in (("ir_version", 0, "max_ir", package.ir_version), ("opset", 1, "max_opset", package.opset)):
        if needed is None:
            continue
        most: Any = runtime.get(name)
        if is_number(most):
            found.append(Check(condition, needed, most, bool(needed <= most)))
            continue
        limits = known_limits(package.engine, version) if version is not None else None
        if limits is None:
            found.append(Check(condition, needed, None, None))
        elif needed <= limits[which]:
            found.append(Check(condition, needed, limits[which], True))
        else:
            found.append(Check(condition, needed, limits[which], False if limits.certain else None))
    return found


def _device_checks(package: Package, facts: Facts) -> list[Check]:
    device = facts["device"]
    found = []
    if package.abi:
        abi = device.get("abi")
        needed = list(package.abi)
        found.append(Check("abi", needed, abi, abi in package.abi) if type(abi) is str else Check("abi", needed, None, None))
    if package.ram_mb is not None:
        ram: Any = device.get("ram_mb")
        least = package.ram_mb
        found.append(Check("ram_mb", least, ram, ram >= least) if is_number(ram) else Check("ram_mb", least, None, None))
    if package.accelerators:
        has, all_of = device.get("accelerators"), sorted(package.accelerators)
        if type(has) is list:
            holds = package.accelerators <= {item for item in has if type(item) is str}
            found.append(Check("accelerators", all_of, has, holds))
        else:
            found.append(Check("accelerators", all_of, None, None))
    return found
