"""Settings of the gateway."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from kit.settings import Settings


class GatewaySettings(Settings):
    """Environment prefix `LATEBIND_GATEWAY_`; docs/settings.md explains each."""

    model_config = SettingsConfigDict(env_prefix="LATEBIND_GATEWAY_", frozen=True, env_file=".env", extra="ignore")

    registry_url: str = ""
    packager_url: str = ""
    deployer_url: str = ""
    telemetry_url: str = ""
    max_json_bytes: int = 1 << 20
    max_part_bytes: int = 64 << 20
    user_requests_per_minute: int = 6_000
    device_requests_per_minute: int = 600
    anonymous_requests_per_minute: int = 6_000
    trusted_proxies: str = ""
    country_header: str = "cf-ipcountry"
    allowed_hosts: str = ""
    credential_cache_s: int = 30
