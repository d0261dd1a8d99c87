"""`latebind login`, `logout`, `whoami`: which server, as whom."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import latebind
from latebind.cli._config import DEFAULT_PROFILE, Config, Profile, config_path, read_config, write_config
from latebind.cli._errors import CommandError
from latebind.cli._state import AsJson, begin, state_of


def login(
    ctx: typer.Context,
    *,
    server: Annotated[str, typer.Argument(help="Address of the server, such as http://127.0.0.1:8080")],
    api_key: Annotated[str | None, typer.Option("--api-key", help="The key; without it, it is asked for or read from stdin.")] = None,
    profile: Annotated[str, typer.Option(help="Name under which to store it.")] = DEFAULT_PROFILE,
    as_json: AsJson = False,
) -> None:
    """Check a server and a key, and store them (mode 0600) for the commands that follow."""
    state = state_of(ctx, as_json)
    key = api_key or state.api_key or _ask_for_key()
    with latebind.Client(server, key) as client:
        who = client.whoami()
    path = config_path()
    stored = Profile(server.rstrip("/"), key, who.get("account"))
    write_config(path, Config(profile, {**read_config(path).profiles, profile: stored}))
    answer = {"server": stored.server, "account": stored.account, "kind": who["kind"], "scopes": who["scopes"], "profile": profile}

    def show() -> None:
        whom = f"account {stored.account}" if stored.account else "the operator"
        state.output.done(f"logged in at {stored.server} as {whom} ({', '.join(who['scopes']) or who['kind']}); stored in {path}")

    state.output.emit(answer, show)


def logout(
    ctx: typer.Context,
    *,
    profile: Annotated[str | None, typer.Option(help="Profile to forget; without it the one in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forget a stored server and key."""
    state = state_of(ctx, as_json)
    path = config_path()
    config = read_config(path)
    name = profile or config.current
    if name not in config.profiles:
        raise CommandError(f"there is no profile {name!r}", hint="latebind whoami shows what is in use")
    left = {other: stored for other, stored in config.profiles.items() if other != name}
    write_config(path, Config(next(iter(left), DEFAULT_PROFILE), left))
    state.output.emit({"profile": name}, lambda: state.output.done(f"forgot the profile {name}"))


def whoami(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the server in use, and whose key it is."""
    client, out = begin(ctx, as_json)
    with client:
        answer = {"server": client.server, **client.whoami()}
    out.emit(answer, lambda: out.facts({name: value for name, value in answer.items() if value is not None}))


def _ask_for_key() -> str:
    """The key from a prompt that does not show it, or the first line of stdin."""
    if sys.stdin.isatty():
        return str(typer.prompt("API key", hide_input=True, err=True)).strip()
    key = sys.stdin.readline().strip()
    if not key:
        raise CommandError("no API key was given", hint="latebind login SERVER --api-key KEY, or write the key to stdin")
    return key
