"""`latebind catalogue`: pre-packaged models that an account can take over, and how an operator makes such a folder."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from latebind.cli._state import AsJson, Limit, begin

app = typer.Typer()


@app.command("list")
def list_entries(ctx: typer.Context, limit: Limit = 200, as_json: AsJson = False) -> None:
    """List models that can be taken over."""
    client, out = begin(ctx, as_json)
    with client:
        out.items(islice(client.catalogue.list(), limit), {"entry": "entry"}, "the catalogue is empty: see docs/catalogue.md")


@app.command("take")
def take(
    ctx: typer.Context,
    *,
    entry: Annotated[str, typer.Argument(help="Entry, as listed.")],
    as_json: AsJson = False,
) -> None:
    """Take a model over into the account."""
    client, out = begin(ctx, as_json)
    with client:
        taken = client.catalogue.take(entry)
    out.emit(taken, lambda: out.done(f"{entry} is taken over"))
