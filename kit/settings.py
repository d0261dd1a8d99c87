"""Base of every settings class: frozen, from the environment (`LATEBIND_…`) or a `.env` file. No instance lives here."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Subclasses set `env_prefix`. Secrets are paths to files of mode 0600, never values, so printing settings shows none."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="LATEBIND_", env_file=".env", extra="ignore")
