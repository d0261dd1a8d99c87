"""Update states as a device sends them: bytes in, checked JSON out.

Pure but for msgspec, the decoder of the device paths. Writing them down is the event log's and later `fleet.py`'s business.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

import msgspec

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
MAX_EVENTS = 200


class ReportProblem(ValueError):
    """The body is no list of update states."""


class _Event(msgspec.Struct, kw_only=True):
    event_id: _Name
    collection: _Name
    package: str | None = None
    state: Literal["assigned", "downloading", "downloaded", "verified", "running", "failed", "returned"]
    code: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    detail: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    decision_id: Annotated[str, msgspec.Meta(max_length=40)] | None = None


class _Events(msgspec.Struct):
    events: Annotated[list[_Event], msgspec.Meta(max_length=MAX_EVENTS)]


_decode = msgspec.json.Decoder(_Events).decode
_encode = msgspec.json.Encoder().encode


def read_report(body: bytes) -> tuple[int, bytes]:
    """Return how many events the body holds, and the JSON to store. Raises `ReportProblem`."""
    try:
        report = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ReportProblem(str(error)) from error
    for place, event in enumerate(report.events):
        if event.package is not None:
            match = _HEX.fullmatch(event.package)
            if match is None:
                raise ReportProblem(f"`package` is a digest: 64 hex digits - at `$.events[{place}].package`")
            event.package = match[1]
    return len(report.events), _encode(report)
