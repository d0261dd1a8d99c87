"""The configuration file and which server and key win."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latebind.cli._config import Config, Profile, config_path, read_config, resolve_profile, write_config
from latebind.cli._errors import ConfigUnusable

NAMES = st.text(string.ascii_letters + string.digits + "-._ \"'ü", min_size=1, max_size=20)
VALUES = st.none() | st.text(string.printable, min_size=1, max_size=40).filter(lambda text: "\x0b" not in text and "\x0c" not in text)


@given(st.dictionaries(NAMES, st.builds(Profile, VALUES, VALUES, VALUES), max_size=4), NAMES)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, profiles: dict[str, Profile], current: str) -> None:
    path = tmp_path_factory.mktemp("config") / "latebind" / "config.toml"
    write_config(path, Config(current, profiles))
    assert read_config(path) == Config(current, profiles)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_where_it_lies(tmp_path: Path) -> None:
    assert config_path({"LATEBIND_CONFIG": "/x/y.toml"}) == Path("/x/y.toml")
    assert config_path({"XDG_CONFIG_HOME": "/xdg"}) == Path("/xdg/latebind/config.toml")
    assert config_path({}) == Path.home() / ".config" / "latebind" / "config.toml"
    assert read_config(tmp_path / "none.toml") == Config("default", {})


def test_a_key_of_the_file_stays_with_its_server() -> None:
    config = Config("default", {"default": Profile("http://a", "key", "acme")})
    assert resolve_profile(config, name=None, server="http://a/", api_key=None, environ={}) == Profile("http://a", "key", "acme")
    assert resolve_profile(config, name=None, server="http://b", api_key=None, environ={}) == Profile("http://b")
    assert resolve_profile(config, name=None, server=None, api_key=None, environ={"LATEBIND_SERVER": "http://b"}).api_key is None
    assert resolve_profile(config, name=None, server=None, api_key="other", environ={}) == Profile("http://a", "other")
    with pytest.raises(ConfigUnusable, match="nope"):
        resolve_profile(config, name=None, server=None, api_key=None, environ={"LATEBIND_PROFILE": "nope"})


@pytest.mark.parametrize("text", ["profiles = 1", "[profiles]\nx = 2", "=", "\xff"])
def test_a_broken_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigUnusable):
        read_config(path)
