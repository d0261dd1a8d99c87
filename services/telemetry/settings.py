"""What an operator may set for telemetry. Prefix `LATEBIND_TELEMETRY_`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from kit.settings import Settings


class TelemetrySettings(Settings):
    """How batches are written, and how long they are kept."""

    model_config = SettingsConfigDict(env_prefix="LATEBIND_TELEMETRY_")

    #: Seconds that the writer waits for more after the first batch: fewer and larger inserts, later figures.
    linger_s: float = Field(default=1.0, ge=0, le=60)
    #: Batches of one insert, at most.
    max_records: int = Field(default=8000, ge=1)
    #: Bytes of one insert as sent by devices, at most.
    max_bytes: int = Field(default=16 << 20, ge=1)
    #: So many undecodable batches in a row, from different installs, stop the writer; 0 never does.
    max_rejects_in_row: int = Field(default=1000, ge=0)
    #: Whole months are deleted when their last day is older than this.
    retention_days: int = Field(default=400, ge=31)
