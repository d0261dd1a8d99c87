"""Durations as people type them."""

from __future__ import annotations

import re

from latebind.cli._errors import CommandError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")


def parse_duration(text: str) -> float:
    """Seconds of `90`, `30s`, `5m`, `12h`, `90d`, `2w`. Raises CommandError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise CommandError(f"{text!r} is no duration", hint="write a number with s, m, h, d or w, such as 90s or 30d")
    return float(match[1]) * _UNITS[match[2] or "s"]
