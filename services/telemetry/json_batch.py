"""A telemetry batch as JSON -> the fields of the message `TelemetryBatch`, as its constructor takes them.

Pure. Names as in proto/latebind/v1/telemetry.proto, bytes as hex, enums by name; unknown names are ignored, as protobuf does.
The generic JSON mapping of protobuf is not used: it recurses over untrusted input, and writes 64-bit numbers as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from services.telemetry.errors import Rejected

PHASES = {"PHASE_LOAD": 1, "PHASE_FIRST": 2, "PHASE_STEADY": 3}
FAILURE_PHASES = {
    "FAILURE_PHASE_RESOLVE": 1,
    "FAILURE_PHASE_DOWNLOAD": 2,
    "FAILURE_PHASE_VERIFY": 3,
    "FAILURE_PHASE_LOAD": 4,
    "FAILURE_PHASE_RUN": 5,
}

Read = Callable[[Any], Any]


def _wrong(what: str) -> Rejected:
    return Rejected("MALFORMED", f"JSON: {what}")


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _wrong("text expected")
    return value


def _number(value: Any) -> int:
    # A 64-bit number may come as text, as in protobuf's own JSON.
    if type(value) is str and value.lstrip("-").isdecimal() and len(value) <= 20:
        return int(value)
    if type(value) is not int:
        raise _wrong("whole number expected")
    return value


def _hex(value: Any) -> bytes:
    try:
        return bytes.fromhex(_text(value))
    except ValueError as error:
        raise _wrong("hex expected") from error


def _one_of(names: Mapping[str, int]) -> Read:
    def read(value: Any) -> int:
        if type(value) is not str or value not in names:
            raise _wrong(f"one of {', '.join(names)} expected")
        return names[value]

    return read


def _list_of(read: Read) -> Read:
    def read_all(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _wrong("list expected")
        return [read(item) for item in value]

    return read_all


def _object(fields: Mapping[str, Read]) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _wrong("object expected")
        return {name: fields[name](item) for name, item in value.items() if name in fields and item is not None}

    return read


_NUMBERS = _list_of(_number)
_FACTS = _object(
    {
        **dict.fromkeys(("device_model", "manufacturer", "soc", "abi", "os_name", "os_version", "country"), _text),
        **dict.fromkeys(("app_id", "app_version", "sdk_name", "sdk_version"), _text),
        "api_level": _number,
    }
)
_PACKAGE = _object(
    {
        **dict.fromkeys(("collection", "model_id", "variant", "engine", "engine_version"), _text),
        "version": _number,
        "package_digest": _hex,
    }
)
_SERIES = _object(
    {
        "package": _PACKAGE,
        "phase": _one_of(PHASES),
        "base_ms": _number,
        "samples": _object({"at_delta_ms": _NUMBERS, "latency_delta_us": _NUMBERS}),
        "sketch": _object({"span_ms": _number, "bucket_delta": _NUMBERS, "count": _NUMBERS}),
    }
)
_FAILURE = _object({"package": _PACKAGE, "phase": _one_of(FAILURE_PHASES), "code": _text, "detail": _text, "at_ms": _number})
_BATCH = _object(
    {
        "batch_id": _hex,
        "created_at_ms": _number,
        "facts": _FACTS,
        "series": _list_of(_SERIES),
        "failures": _list_of(_FAILURE),
        "dropped_samples": _number,
    }
)


def read_json(body: bytes) -> dict[str, Any]:
    """Return keyword arguments for `TelemetryBatch`. Raises `Rejected`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Rejected("MALFORMED", f"not JSON: {error}") from error
    fields: dict[str, Any] = _BATCH(document)
    for one in fields.get("series", ()):
        if "samples" in one and "sketch" in one:
            raise _wrong("a series has samples or a sketch, not both")
    return fields
