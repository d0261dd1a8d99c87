"""Settings of the packager."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import SettingsConfigDict

from kit.settings import Settings


class PackagerSettings(Settings):
    """Environment prefix `LATEBIND_PACKAGER_`; docs/settings.md explains each."""

    model_config = SettingsConfigDict(env_prefix="LATEBIND_PACKAGER_", frozen=True, env_file=".env", extra="ignore")

    jobs_at_once: int = 2
    job_seconds: float = 120.0
    child_memory_mb: int = 4096
    child_disk_mb: int = 512
    scratch_dir: Path | None = None
    signer_url: str = ""
