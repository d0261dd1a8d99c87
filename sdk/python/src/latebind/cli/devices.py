"""`latebind devices` and `latebind decision`: who asked, what they got, what they run."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from latebind.cli._explain import answer_text
from latebind.cli._output import Columns, Output, short
from latebind.cli._state import AsJson, Limit, begin

devices_app = typer.Typer()
decision_app = typer.Typer()


@devices_app.command("list")
def list_devices(
    ctx: typer.Context,
    *,
    collection: Annotated[str | None, typer.Option(help="Only devices that asked for it.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List devices that have asked."""
    client, out = begin(ctx, as_json)
    columns: Columns = {
        "install": "install_id",
        "model": lambda one: one["context"].get("device", {}).get("model"),
        "soc": lambda one: one["context"].get("device", {}).get("soc"),
        "os": lambda one: _system(one["context"]),
        "state": lambda one: ", ".join(_state(state) for state in one["collections"]),
        "last seen": "last_seen_at",
    }
    with client:
        out.items(islice(client.devices.list(collection=collection), limit), columns, "no device has asked yet")


@devices_app.command("show")
def show(
    ctx: typer.Context, *, install: Annotated[str, typer.Argument(metavar="INSTALL", help="Install id.")], as_json: AsJson = False
) -> None:
    """Show one device: what it says of itself, what it should run and runs, what happened."""
    client, out = begin(ctx, as_json)
    with client:
        found = client.devices.get(install)
    out.emit(found, lambda: _show_device(out, found))


@decision_app.command("show")
def show_decision(
    ctx: typer.Context, *, decision: Annotated[str, typer.Argument(metavar="DECISION", help="Decision id.")], as_json: AsJson = False
) -> None:
    """Show one answer that a device got, with what it said of itself then."""
    client, out = begin(ctx, as_json)
    with client:
        found = client.devices.decision(decision)

    def show_it() -> None:
        out.facts(
            {
                "decision": found["decision_id"],
                "collection": f"{found['collection']}, revision {found['revision']}",
                "install": found["install_id"],
                "at": found["decided_at"],
                "answer": answer_text({"package": None, "rule_id": None, "reason": "?", **found["answer"]}),
                "context": found["context"],
            }
        )

    out.emit(found, show_it)


def _show_device(out: Output, found: dict[str, Any]) -> None:
    context = found["context"]
    device = context.get("device", {})
    out.facts(
        {
            "install": found["install_id"],
            "device": " ".join(str(part) for part in (device.get("manufacturer"), device.get("model"), device.get("soc")) if part),
            "os": _system(context),
            "runtimes": ", ".join(f"{one.get('engine')} {one.get('version', '')}" for one in context.get("runtimes", [])),
            "groups": context.get("groups"),
            "country": context.get("country"),
            "first seen": found["first_seen_at"],
            "last seen": found["last_seen_at"],
        }
    )
    rows = [
        [one["collection"], short(one["wanted"]), short(one["running"]), one["state"], one["code"] or one["reason"]]
        for one in found["collections"]
    ]
    out.table(["collection", "should run", "runs", "state", "why"], rows)
    if found["events"]:
        events = [
            [one["at"], one["collection"], one["state"], short(one["package"]), one["code"], one["detail"]] for one in found["events"]
        ]
        out.table(["at", "collection", "state", "package", "code", "detail"], events, title="events, the newest first")


def _system(context: dict[str, Any]) -> str:
    system = context.get("os", {})
    level = f" (API {system['api_level']})" if system.get("api_level") else ""
    return f"{system.get('name', '')} {system.get('version', '')}{level}".strip()


def _state(state: dict[str, Any]) -> str:
    if state["wanted"] is None:
        return str(state["reason"] or "–").lower().replace("_", " ")
    if state["running"] == state["wanted"]:
        return f"runs {short(state['running'])}"
    return f"{state['state'] or 'assigned'} {short(state['wanted'])}"
