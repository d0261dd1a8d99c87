"""What an updater tells of one collection: each update state once, and failures in telemetry too. It decides nothing."""

from __future__ import annotations

import logging

from latebind.device import decision
from latebind.device.parts import DeviceParts
from latebind.device.state import PackageRef, StateFile
from latebind.errors import DiskFull, LatebindError
from latebind_proto.telemetry_pb2 import FAILURE_PHASE_DOWNLOAD, FAILURE_PHASE_LOAD, FAILURE_PHASE_RESOLVE, FAILURE_PHASE_VERIFY

log = logging.getLogger("latebind")

_PHASES = {"download": FAILURE_PHASE_DOWNLOAD, "verify": FAILURE_PHASE_VERIFY, "load": FAILURE_PHASE_LOAD}


class Voice:
    """Reports of one collection, on their way to the server through the buffers on disk."""

    def __init__(self, parts: DeviceParts, collection: str, state: StateFile) -> None:
        self._parts, self._collection, self._state = parts, collection, state
        self._told: set[tuple[str | None, str, str | None]] = set()

    def forget(self) -> None:
        """Another package is assigned: everything may be told again."""
        self._told.clear()

    def refused(self, error: LatebindError) -> None:
        """The question for a package failed, or was refused."""
        self._parts.telemetry.fail(None, FAILURE_PHASE_RESOLVE, error.code, error.detail, collection=self._collection)

    def failed(self, package: PackageRef, error: LatebindError) -> None:
        """Count a failure in telemetry, and report it once per package and code."""
        phase = decision.failure_phase_of(error)
        self._parts.telemetry.fail(self._parts.source(self._collection, package), _PHASES[phase], error.code, error.detail)
        self.tell("failed", package.digest, error)

    def tell(self, state: str, digest: str, error: LatebindError | None = None) -> None:
        """Report an update state of docs/wire.md."""
        code = error.code if error is not None else None
        if (digest, state, code) in self._told:
            return
        self._told.add((digest, state, code))
        detail = error.detail if error is not None else ""
        decision_id = self._state.value.decision_id
        try:
            self._parts.reports.add(self._collection, state, package=digest, code=code, detail=detail, decision_id=decision_id)
        except DiskFull as full:
            log.warning("a report is lost: %s", full)
