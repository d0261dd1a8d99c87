"""Settings of the packager."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from kit.settings import Settings


class PackagerSettings(Settings):
    """Environment prefix `LATEBIND_PACKAGER_`; docs/settings.md explains each."""

    model_config = SettingsConfigDict(env_prefix="LATEBIND_PACKAGER_", frozen=True, env_file=".env", extra="ignore")

    jobs_at_once: int = 2
    account_jobs_at_once: int = 2
    queue_length: int = 1_000
    account_queue_length: int = 200
    job_seconds: float = 120.0
    child_memory_mb: int = 4096
    child_disk_mb: int = 512
    warm_seconds: float = 60.0
    account_results_mb: int = 1024
    scratch_dir: Path | None = None
    environments_dir: Path | None = None
    wheels_dir: Path | None = None
    unsafe_without_sandbox: bool = False
    signer_url: str = ""

    @property
    def environments(self) -> Path:
        """Where converter environments are kept: once per machine and user, not in the data and not in a checkout."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - expanduser() of Path raises
        return self.environments_dir or (cache if cache.is_absolute() else Path(tempfile.gettempdir())) / "latebind" / "environments"
