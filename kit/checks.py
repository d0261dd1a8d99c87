"""What an examination of a configuration finds, one line each. Adapters examine themselves; `services/doctor.py` asks them all.

A finding is for people: `detail` says what is, `advice` what to do about it. Neither ever holds a secret.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

#: Links, tokens and assignments end by the clock: machines that differ by more than this disagree about them.
MAX_SKEW_S = 5.0
#: Less room than this on a disk is worth a word.
LITTLE_ROOM_BYTES = 2 << 30


class State(StrEnum):
    """`note` is worth knowing and stops nothing; a `fault` has to be repaired."""

    OK = "ok"
    NOTE = "note"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    state: State
    check: str
    detail: str
    advice: str = ""


#: What an adapter's `examine` is.
Findings = AsyncIterator[Finding]


def ok(check: str, detail: str) -> Finding:
    """Return what is as it should be."""
    return Finding(State.OK, check, detail)


def note(check: str, detail: str, advice: str = "") -> Finding:
    """Return what works and should be known."""
    return Finding(State.NOTE, check, detail, advice)


def fault(check: str, detail: str, advice: str) -> Finding:
    """Return what is wrong, and what to do."""
    return Finding(State.FAULT, check, detail, advice)


def clocks(theirs: datetime, ours: datetime) -> Finding:
    """Compare a server's clock with this machine's, both aware. The time of the question is part of the difference."""
    seconds = (theirs - ours).total_seconds()
    if abs(seconds) <= MAX_SKEW_S:
        return ok("clock", f"agrees with this machine within {MAX_SKEW_S:g} s")
    return fault(
        "clock",
        f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} this machine",
        "let a time service (chrony, systemd-timesyncd) set the clocks of all machines",
    )


def room(folder: Path) -> Finding:
    """Say how much room the disk of a folder has. The folder exists."""
    free = shutil.disk_usage(folder).free
    if free < LITTLE_ROOM_BYTES:
        return note("room", f"{free >> 20} MiB are free on the disk of {folder}", "make room: a full disk refuses uploads and telemetry")
    return ok("room", f"{free >> 30} GiB are free")
