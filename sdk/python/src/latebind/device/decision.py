"""What an update check has to do, decided without I/O: values in, values out, the time and the random number as arguments."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from latebind.device.api import PollAdvice
from latebind.device.manifest import is_digest
from latebind.device.options import DeviceOptions
from latebind.device.state import CollectionState, PackageRef, Refusal
from latebind.errors import DeviceError, GoldenTestFailed, LatebindError, LoadFailed, ResponseInvalid, VerificationFailed

# With less life than this left in the stored assignment the device asks for a new one (docs/wire.md).
FRESH_ASSIGNMENT_S = 4 * 3600.0
SHORTEST_POLL_S = 1.0
LONGEST_POLL_S = 7 * 86_400.0
# What may be the network's fault as well as the package's.
_MAYBE_TRANSIENT = frozenset({"DIGEST_MISMATCH", "LENGTH_MISMATCH", "CACHE_DAMAGED"})


class PollResult(StrEnum):
    """How a check ended."""

    UNCHANGED = "unchanged"
    SWITCHED = "switched"
    REFUSED = "refused"  # the server has nothing for this device; the error says why
    KEPT = "kept"  # the server still assigns a package that has failed here
    FAILED = "failed"  # it could not be finished; the error says why


@dataclass(frozen=True, slots=True)
class PollOutcome:
    """What one check did. `package` is what runs (or would run) now, `received` the bytes of files that came over the network."""

    result: PollResult
    package: PackageRef | None
    error: LatebindError | None = None
    received: int = 0
    reason: str | None = None
    rule_id: str | None = None
    revision: int | None = None
    decision_id: str | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """The parts of a 200 answer that the device uses. Only the assignment in it is signed; the rest is for people and telemetry."""

    package: PackageRef
    assignment: Any
    reason: str | None
    rule_id: str | None
    decision_id: str | None


def parse_resolved(body: Mapping[str, Any]) -> Resolved:
    """Read a 200 answer. Raises ResponseInvalid."""
    package = body.get("package")
    digest = package.get("digest") if isinstance(package, dict) else None
    if not is_digest(digest):
        raise ResponseInvalid("resolve named no package")
    assert isinstance(package, dict)
    version = package.get("version")
    ref = PackageRef(
        str(digest),
        _text(package, "model_id") or "",
        version if isinstance(version, int) and 0 <= version < 2**32 else 0,
        _text(package, "variant") or "",
        engine="",
    )
    return Resolved(ref, body.get("assignment"), _text(body, "reason"), _text(body, "rule_id"), _text(body, "decision_id"))


def etag_to_send(state: CollectionState, *, now: float, machine: str, is_installed: bool) -> str | None:
    """The ETag for a conditional request, or None when a 304 would not help: there is work left, or the assignment runs out."""
    if state.etag is None or state.assigned is None or state.expires_at - now < FRESH_ASSIGNMENT_S:
        return None
    return None if next_step(state, state.assigned, machine=machine, is_installed=is_installed) is Step.INSTALL else state.etag


class Step(StrEnum):
    """What an accepted assignment asks for."""

    NOTHING = "nothing"
    INSTALL = "install"
    KEEP_OLD = "keep_old"


def next_step(state: CollectionState, digest: str, *, machine: str, is_installed: bool) -> Step:
    """`is_installed` tells of the current package whether its files are still there."""
    if state.current is not None and state.current.digest == digest and is_installed:
        return Step.NOTHING
    return Step.INSTALL if state.refusal(digest, machine=machine) is None else Step.KEEP_OLD


def refusal_of(state: CollectionState, digest: str, error: LatebindError, *, machine: str) -> Refusal | None:
    """What to remember of a failed installation; None when it says nothing against the package (network, disk)."""
    if not isinstance(error, VerificationFailed | LoadFailed) and error.code != "ENGINE_MISSING":
        return None
    before = state.refused.get(digest)
    attempts = before.attempts + 1 if before is not None and before.machine == machine else 1
    return Refusal(error.code, error.detail, attempts, machine, final=not is_transient(error))


def crash_loop() -> LoadFailed:
    """The error for a package in whose loading or first run the process has died again and again."""
    return LoadFailed("the process ended while this package was loaded or first run, again and again", code="CRASH_LOOP")


def is_transient(error: LatebindError) -> bool:
    """Whether the network or the disk may be to blame, and not the package."""
    return error.code in _MAYBE_TRANSIENT


def as_error(error: BaseException) -> LatebindError:
    """The error as one of ours; what the disk raised gets the code `DISK_ERROR`."""
    return error if isinstance(error, LatebindError) else DeviceError(f"the disk failed: {error}", code="DISK_ERROR")


def failure_phase_of(error: LatebindError) -> str:
    """Where an installation failed, in the words of PRODUCT section 8: `verify`, `load` or `download`."""
    if isinstance(error, LoadFailed | GoldenTestFailed) or error.code == "ENGINE_MISSING":
        return "load"
    return "verify" if isinstance(error, VerificationFailed) else "download"


def advised(state: CollectionState, advice: PollAdvice | None) -> CollectionState:
    """The state with the server's latest advice, if it gave any."""
    return state if advice is None else state.advised(advice.after_s, advice.spread_s)


def poll_delay(advice: PollAdvice | None, options: DeviceOptions, rng: random.Random) -> float:
    """Seconds until the next regular check: as the server advises, spread at random."""
    after, spread = (advice.after_s, advice.spread_s) if advice is not None else (options.poll_after_s, options.poll_spread_s)
    return min(max(after, SHORTEST_POLL_S) + rng.uniform(0.0, spread), LONGEST_POLL_S)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None
