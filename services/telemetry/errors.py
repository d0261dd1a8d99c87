"""Errors of telemetry: what a device or a person may see, and why a batch became a dead letter."""

from __future__ import annotations

from kit.errors import Invalid


class TelemetryInvalid(Invalid):
    """The envelope of a batch is wrong; sending it again cannot help."""

    code = "TELEMETRY_INVALID"


class QueryInvalid(Invalid):
    """An analytics query asks for something that does not exist or is too much."""

    code = "ANALYTICS_QUERY_INVALID"


class Rejected(Exception):
    """A batch that cannot be counted. `reason` is stable (docs/telemetry.md lists them), `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
