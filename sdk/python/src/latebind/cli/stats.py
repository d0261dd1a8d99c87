"""`latebind stats`: figures from the field. Every question takes the same filters; what it answers differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from latebind.cli._errors import CommandError
from latebind.cli._output import Output
from latebind.cli._state import AsJson, begin
from latebind.cli._times import parse_duration

app = typer.Typer()

_DIMENSIONS = (
    *("collection", "model", "version", "variant", "engine", "device_model", "soc", "abi", "os", "os_version", "api_level", "country"),
    *("app_id", "app_version", "sdk_version", "phase", "code"),
)

By = Annotated[
    list[str] | None,
    typer.Option(
        "--by", help="Group by model, version, variant, engine, collection, device_model, soc, os, api_level, country, app_version; repeat."
    ),
]
Where = Annotated[list[str] | None, typer.Option("--where", help="NAME=VALUE; repeat, the same name again means either.")]
Since = Annotated[str | None, typer.Option("--since", help="A duration back from now (30d, 12h) or a moment, RFC 3339.")]
Until = Annotated[str | None, typer.Option("--until", help="As --since; without it now.")]
Rows = Annotated[int, typer.Option("--limit", min=1, help="The most rows.")]
Interval = Annotated[str | None, typer.Option("--interval", help="Over time: hour, day or month.")]
Phase = Annotated[list[str] | None, typer.Option("--phase", help="load, first or steady; repeat.")]


@app.command("active-installs")
def active_installs(
    ctx: typer.Context,
    *,
    by: By = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    interval: Interval = None,
    limit: Rows = 100,
    as_json: AsJson = False,
) -> None:
    """Distinct installs that were active, per day or month."""
    _ask(ctx, as_json, "active-installs", by=by, where=where, **_times(since, until), interval=interval, limit=limit)


@app.command("inferences")
def inferences(
    ctx: typer.Context,
    *,
    by: By = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    interval: Interval = None,
    limit: Rows = 100,
    as_json: AsJson = False,
) -> None:
    """How often models ran."""
    _ask(ctx, as_json, "inferences", by=by, where=where, **_times(since, until), interval=interval, limit=limit)


@app.command("latency")
def latency(
    ctx: typer.Context,
    *,
    by: By = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    phase: Phase = None,
    limit: Rows = 100,
    as_json: AsJson = False,
) -> None:
    """How fast models loaded, ran first, and ran steadily: percentiles in milliseconds."""
    _ask(ctx, as_json, "latency", by=by, where=where, **_times(since, until), phase=phase, limit=limit)


@app.command("adoption")
def adoption(
    ctx: typer.Context,
    *,
    by: By = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    interval: Interval = None,
    limit: Rows = 100,
    as_json: AsJson = False,
) -> None:
    """How many installs run each version, over time."""
    _ask(ctx, as_json, "adoption", by=by, where=where, **_times(since, until), interval=interval, limit=limit)


@app.command("failures")
def failures(
    ctx: typer.Context,
    *,
    by: By = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    phase: Phase = None,
    limit: Rows = 100,
    as_json: AsJson = False,
) -> None:
    """What failed on devices, by phase and code."""
    _ask(ctx, as_json, "failures", by=by, where=where, **_times(since, until), phase=phase, limit=limit)


@app.command("compare")
def compare(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model id.")],
    baseline: Annotated[int, typer.Argument(min=1, help="The version to compare with.")],
    candidate: Annotated[int, typer.Argument(min=1, help="The version in question.")],
    by: By = None,
    where: Where = None,
    since: Since = None,
    until: Until = None,
    limit: Rows = 100,
    as_json: AsJson = False,
) -> None:
    """Two versions side by side in the field. A ratio below 1 means that the candidate is faster."""
    client, out = begin(ctx, as_json)
    params = {**_filters(where), **_times(since, until), "model": model, "version": baseline, "to": candidate, "limit": limit}
    with client:
        found = client.analytics.query("compare", group_by=by or (), **params)

    def show() -> None:
        names = list(by or ())
        rows = []
        for item in found["items"]:
            left, right, ratio = item["baseline"] or {}, item["candidate"] or {}, item["ratio"] or {}
            figures = [left.get("p50_ms"), right.get("p50_ms"), ratio.get("p50"), left.get("p95_ms"), right.get("p95_ms"), ratio.get("p95")]
            rows.append([*(item[name] for name in names), item["phase"], *figures])
        out.table(
            [*names, "phase", f"p50 v{baseline}", f"p50 v{candidate}", "ratio", f"p95 v{baseline}", f"p95 v{candidate}", "ratio"], rows
        )
        sides = (found["baseline"], found["candidate"])
        out.table([name.replace("_", " ") for name in sides[0]], [list(side.values()) for side in sides])

    out.emit(found, show)


def _ask(ctx: typer.Context, as_json: bool, what: str, *, by: list[str] | None, where: list[str] | None, **more: Any) -> None:
    client, out = begin(ctx, as_json)
    with client:
        found = client.analytics.query(what, group_by=by or (), **_filters(where), **more)
    out.emit(found, lambda: _show(out, found))


def _show(out: Output, found: Mapping[str, Any]) -> None:
    items = found["items"]
    if not items:
        out.note("nothing was measured in this time: devices send about every minute")
        return
    headings = sorted((name for name in items[0] if name != "last_detail"), key=_place)
    out.table([name.replace("_", " ") for name in headings], [[item[name] for name in headings] for item in items])
    if found.get("truncated"):
        out.warn("there are more rows: raise --limit, or ask for less with --where")
    if found.get("dropped_samples"):
        out.warn(f"devices had to give up {found['dropped_samples']} measurements; the true number is at most that much higher")


def _place(name: str) -> int:
    """Time first, then what it is grouped by, then the figures."""
    return 0 if name == "start" else 1 + _DIMENSIONS.index(name) if name in _DIMENSIONS else 100


def _filters(where: Iterable[str] | None) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for text in where or ():
        name, separator, value = text.partition("=")
        if not separator:
            raise CommandError(f"{text!r} is no filter", hint="write NAME=VALUE, such as --where model=digits")
        filters.setdefault(name, []).append(value)
    return filters


def _times(since: str | None, until: str | None) -> dict[str, str]:
    return {name: _moment(text) for name, text in (("since", since), ("until", until)) if text is not None}


def _moment(text: str) -> str:
    """RFC 3339 of a moment, or of a duration back from now."""
    if "T" in text or text.count("-") == 2:
        return text
    return (datetime.now(UTC) - timedelta(seconds=parse_duration(text))).isoformat(timespec="seconds").replace("+00:00", "Z")
