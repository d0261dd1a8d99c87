"""`latebind account`, `api-key`, `enrolment-key`: who may do what. Texts of keys are shown once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Annotated

import typer

from latebind.cli._output import Output
from latebind.cli._state import AsJson, Limit, begin
from latebind.cli._times import parse_duration

account_app = typer.Typer()
api_key_app = typer.Typer()
enrolment_key_app = typer.Typer()

Account = Annotated[str | None, typer.Option(help="The account; only with an operator key.")]
Name = Annotated[str, typer.Option(help="What the key is for, in words.")]
Expires = Annotated[
    str | None, typer.Option("--expires-in", help="Life of the key, such as 90d, 12h, 30m; without it, it does not expire.")
]


class Scope(StrEnum):
    """What an API key may do; each includes the ones before it."""

    READ = "read"
    PUBLISH = "publish"
    ADMIN = "admin"


@account_app.command("create")
def create_account(
    ctx: typer.Context,
    *,
    account: Annotated[str, typer.Argument(help="Slug: 2 to 40 of a-z, 0-9 and -.")],
    title: Annotated[str, typer.Option(help="Name for people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create an account (operator). Its first admin key is shown this once."""
    client, out = begin(ctx, as_json)
    with client:
        made = client.accounts.create(account, title=title)

    def show() -> None:
        out.done(f"account {account} is there")
        _show_key(out, made["api_key"]["key"], "admin key")
        out.note(f"next: latebind login {client.server} --api-key KEY")

    out.emit(made, show)


@account_app.command("list")
def list_accounts(ctx: typer.Context, limit: Limit = 200, as_json: AsJson = False) -> None:
    """List accounts (operator)."""
    client, out = begin(ctx, as_json)
    with client:
        columns = {"account": "account", "title": "title", "created": "created_at"}
        out.items(islice(client.accounts.list(), limit), columns, "no accounts yet: latebind account create NAME")


@api_key_app.command("create")
def create_api_key(
    ctx: typer.Context,
    *,
    scope: Annotated[Scope, typer.Option(help="What it may do; each includes the ones before it.")] = Scope.READ,
    name: Name = "",
    expires_in: Expires = None,
    account: Account = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. Its text is shown this once."""
    client, out = begin(ctx, as_json)
    with client:
        made = client.api_keys.create(account=account, scopes=[scope.value], name=name, expires_at=_expiry(expires_in))
    out.emit(made, lambda: _show_key(out, made["key"], f"{scope.value} key {made['id']} of {made['account']}"))


@api_key_app.command("list")
def list_api_keys(ctx: typer.Context, account: Account = None, limit: Limit = 200, as_json: AsJson = False) -> None:
    """List API keys, revoked and expired ones too."""
    client, out = begin(ctx, as_json)
    columns = {"id": "id", "name": "name", "scopes": "scopes", "created": "created_at", "expires": "expires_at", "revoked": "revoked_at"}
    with client:
        out.items(islice(client.api_keys.list(account=account), limit), columns, "no API keys")


@api_key_app.command("revoke")
def revoke_api_key(ctx: typer.Context, key_id: Annotated[str, typer.Argument(help="Id, as listed.")], as_json: AsJson = False) -> None:
    """Revoke an API key. It takes effect within 30 seconds."""
    client, out = begin(ctx, as_json)
    with client:
        revoked = client.api_keys.revoke(key_id)
    out.emit(revoked, lambda: out.done(f"revoked {key_id}"))


@enrolment_key_app.command("create")
def create_enrolment_key(
    ctx: typer.Context,
    *,
    quota: Annotated[int, typer.Option(min=1, help="How many installs may enrol with it.")] = 1000,
    name: Name = "",
    expires_in: Expires = None,
    account: Account = None,
    as_json: AsJson = False,
) -> None:
    """Make an enrolment key for apps: it can enrol devices and nothing else. Its text is shown this once."""
    client, out = begin(ctx, as_json)
    with client:
        made = client.enrolment_keys.create(account=account, quota=quota, name=name, expires_at=_expiry(expires_in))
    out.emit(made, lambda: _show_key(out, made["key"], f"enrolment key {made['id']} of {made['account']}, for {quota} installs"))


@enrolment_key_app.command("list")
def list_enrolment_keys(ctx: typer.Context, account: Account = None, limit: Limit = 200, as_json: AsJson = False) -> None:
    """List enrolment keys and how many installs used them."""
    client, out = begin(ctx, as_json)
    columns = {"id": "id", "name": "name", "used": "used", "quota": "quota", "expires": "expires_at", "revoked": "revoked_at"}
    with client:
        out.items(islice(client.enrolment_keys.list(account=account), limit), columns, "no enrolment keys: latebind enrolment-key create")


@enrolment_key_app.command("revoke")
def revoke_enrolment_key(
    ctx: typer.Context, *, key_id: Annotated[str, typer.Argument(help="Id, as listed.")], as_json: AsJson = False
) -> None:
    """Revoke an enrolment key. Devices that enrolled with it stay enrolled."""
    client, out = begin(ctx, as_json)
    with client:
        revoked = client.enrolment_keys.revoke(key_id)
    out.emit(revoked, lambda: out.done(f"revoked {key_id}"))


def _expiry(expires_in: str | None) -> str | None:
    if expires_in is None:
        return None
    return (datetime.now(UTC) + timedelta(seconds=parse_duration(expires_in))).isoformat(timespec="seconds").replace("+00:00", "Z")


def _show_key(out: Output, key: str, what: str) -> None:
    out.note(f"{what}, shown this once:")
    out.say(key, "bold")
