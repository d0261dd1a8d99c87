"""Where the command line finds its server and key: arguments, then the environment, then the file that `latebind login` wrote."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latebind._files import write_whole
from latebind.cli._errors import ConfigUnusable

DEFAULT_PROFILE = "default"


@dataclass(frozen=True, slots=True)
class Profile:
    """One server as one account. `account` is None when the key is an operator's."""

    server: str | None = None
    api_key: str | None = None
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The file: named profiles, and the one in use."""

    current: str
    profiles: Mapping[str, Profile]


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """`$LATEBIND_CONFIG`, else `latebind/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`."""
    if environ.get("LATEBIND_CONFIG"):
        return Path(environ["LATEBIND_CONFIG"])
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "latebind" / "config.toml"


def read_config(path: Path) -> Config:
    """The file's content; an empty one when there is no file. Raises ConfigUnusable."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        profiles = {
            name: Profile(**{key: str(value) for key, value in fields.items() if key in Profile.__slots__})
            for name, fields in document.get("profiles", {}).items()
        }
        return Config(str(document.get("current", DEFAULT_PROFILE)), profiles)
    except FileNotFoundError:
        return Config(DEFAULT_PROFILE, {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, TypeError, OSError) as error:
        raise ConfigUnusable(f"{path} cannot be read: {error}") from error


def write_config(path: Path, config: Config) -> None:
    """Write the file whole, readable by its owner only."""
    lines = [f"current = {json.dumps(config.current)}"]
    for name, profile in sorted(config.profiles.items()):
        lines += ["", f"[profiles.{json.dumps(name)}]"]
        values = {"server": profile.server, "api_key": profile.api_key, "account": profile.account}
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if value]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, ("\n".join(lines) + "\n").encode(), mode=0o600)


def resolve_profile(
    config: Config, *, name: str | None, server: str | None, api_key: str | None, environ: Mapping[str, str] = os.environ
) -> Profile:
    """The profile in use: what was typed wins over the environment, the environment over the file.

    A key from the file is only used for the server that it was stored with. Raises ConfigUnusable for a profile that does not exist.
    """
    name = name or environ.get("LATEBIND_PROFILE") or None
    if name is not None and name not in config.profiles:
        known = ", ".join(sorted(config.profiles)) or "none"
        raise ConfigUnusable(f"there is no profile {name!r} (known: {known})")
    profile = config.profiles.get(name or config.current, Profile())
    server = server or environ.get("LATEBIND_SERVER") or None
    api_key = api_key or environ.get("LATEBIND_API_KEY") or None
    if server is not None and server.rstrip("/") != (profile.server or "").rstrip("/"):
        profile = Profile(server)
    if api_key is not None and api_key != profile.api_key:
        profile = replace(profile, api_key=api_key, account=None)
    return profile
