"""What every command begins with: where to talk to, as whom, and how to answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

import latebind
from latebind.cli._config import Profile, config_path, read_config, resolve_profile
from latebind.cli._errors import NotLoggedIn
from latebind.cli._output import Output

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="The most entries to list.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass
class State:
    """Options that stand before the command, and the output that the command writes to."""

    server: str | None = None
    api_key: str | None = None
    profile_name: str | None = None
    verbose: bool = False
    output: Output = field(default_factory=Output)

    def profile(self) -> Profile:
        """The server and the key in use. Raises ConfigUnusable."""
        return resolve_profile(read_config(config_path()), name=self.profile_name, server=self.server, api_key=self.api_key)

    def client(self) -> latebind.Client:
        """A client for the server and key in use. Raises NotLoggedIn."""
        profile = self.profile()
        if not profile.server:
            raise NotLoggedIn
        if not profile.api_key:
            raise NotLoggedIn(f"no API key is known for {profile.server}")
        return latebind.Client(profile.server, profile.api_key)


def begin(ctx: typer.Context, as_json: bool) -> tuple[latebind.Client, Output]:
    """The client and the output of a command."""
    state = state_of(ctx, as_json)
    return state.client(), state.output


def state_of(ctx: typer.Context, as_json: bool) -> State:
    """The state of a command that needs no client, or makes its own."""
    state = ctx.ensure_object(State)
    state.output.json_mode = state.output.json_mode or as_json
    return state
