"""What can be set on a device; the defaults suit a phone or a small computer."""

from __future__ import annotations

from dataclasses import dataclass, field

from latebind.device.download import DownloadLimits


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Settings of one device.

    - `threads`: of the engine; None leaves it the choice.
    - `probation_runs`: failures after which a new package that has never answered is given up.
    - `poll_after_s`, `poll_spread_s`: hold until the server has given advice.
    - `start_spread_s`: bounds the random wait before the first check after a start from the cache.
    - `retry_base_s`, `retry_cap_s`: bound the pauses after failures.
    - `open_attempts`: how often a first start tries when the server is busy or a download breaks off.
    - `flush_interval_s`: how often measurements go to disk and are sent.
    - `detail_per_minute`: above this many runs of a model a sketch is sent instead of single samples.
    - `telemetry_bytes`, `report_bytes`: bound the buffers on disk. `reserve_bytes` of disk are left to the app.
    - `close_timeout_s`: bounds the last sending on close; 0 leaves it out.
    - `install_files`: without it a package counts as installed once it is verified and assigned (simulated devices that run nothing).
    - `download`: when a download is given up.
    """

    threads: int | None = None
    probation_runs: int = 3
    poll_after_s: float = 3600.0
    poll_spread_s: float = 600.0
    start_spread_s: float = 5.0
    retry_base_s: float = 2.0
    retry_cap_s: float = 900.0
    open_attempts: int = 3
    flush_interval_s: float = 60.0
    detail_per_minute: int = 120
    telemetry_bytes: int = 4 << 20
    report_bytes: int = 256 << 10
    reserve_bytes: int = 8 << 20
    close_timeout_s: float = 5.0
    install_files: bool = True
    download: DownloadLimits = field(default_factory=DownloadLimits)
