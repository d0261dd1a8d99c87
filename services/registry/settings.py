"""Settings of the registry."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from kit.settings import Settings


class RegistrySettings(Settings):
    """Environment prefix `LATEBIND_REGISTRY_`; docs/settings.md explains each."""

    model_config = SettingsConfigDict(env_prefix="LATEBIND_REGISTRY_", frozen=True, env_file=".env", extra="ignore")

    device_token_lifetime_s: int = Field(default=3600, ge=60, le=3600)
    max_upload_bytes: int = Field(default=16 << 30, ge=1)
    upload_part_bytes: int = Field(default=32 << 20, ge=1)
    upload_lifetime_h: int = Field(default=24, ge=1)
    catalogue_refresh_s: int = Field(default=600, ge=10)
    package_cache_bytes: int = Field(default=32 << 20, ge=0)
