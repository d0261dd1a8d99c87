"""Settings of the deployer. docs/settings.md explains each."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from kit.settings import Settings


class DeployerSettings(Settings):
    """Environment prefix `LATEBIND_DEPLOYER_`. Times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="LATEBIND_DEPLOYER_")

    poll_after_s: int = Field(3600, ge=1)
    poll_spread_s: int = Field(600, ge=0)
    assignment_lifetime_s: int = Field(86_400, ge=60)
    ready_wait_s: float = Field(2.0, ge=0)
    last_seen_every_s: float = Field(3.0, gt=0)
    look_every_s: float = Field(0.2, gt=0)
    history_days: int = Field(30, ge=1)
