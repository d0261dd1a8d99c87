"""`latebind simulate-fleet`: many different devices on the real SDK code, against a real server."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from latebind.cli._kinds import BUILT_IN, read_kinds
from latebind.cli._output import Output, size_text
from latebind.cli._state import AsJson, state_of
from latebind.cli._times import parse_duration
from latebind.cli.run import Account, EnrolmentKey, device_access


def simulate_fleet(
    ctx: typer.Context,
    *,
    collections: Annotated[list[str] | None, typer.Argument(metavar="COLLECTION...", help="Collections that every device uses.")] = None,
    devices: Annotated[int, typer.Option("--devices", "-n", min=1, max=100_000, help="How many devices.")] = 50,
    real: Annotated[int, typer.Option("--real", min=0, help="How many of them truly download, verify, load and run models.")] = 0,
    kinds: Annotated[Path | None, typer.Option(help="A JSON file of kinds of devices; without it the built-in ones.")] = None,
    duration: Annotated[str, typer.Option(help="How long to run after all have joined, such as 30s or 10m. Ctrl-C ends it early.")] = "20s",
    rate: Annotated[float, typer.Option(min=0, help="Inferences per minute, device and collection.")] = 60.0,
    poll: Annotated[str | None, typer.Option(help="Ask this often instead of as the server advises, such as 5s.")] = None,
    seed: Annotated[int, typer.Option(help="For what is left to chance.")] = 0,
    cache_dir: Annotated[Path | None, typer.Option(help="Keep the devices here, to go on with them later.")] = None,
    enrolment_key: EnrolmentKey = None,
    account: Account = None,
    show_kinds: Annotated[bool, typer.Option("--show-kinds", help="Print the built-in kinds as JSON and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drive many different simulated devices through the real SDK: enrol, ask, verify, run, measure, follow changes of the rules.

    Devices that are not --real skip the package's files and make their latencies up; everything else is the SDK's own code.
    """
    state = state_of(ctx, as_json)
    if show_kinds:
        typer.echo(BUILT_IN.read_text(encoding="utf-8"), nl=False)
        return
    if not collections:
        raise typer.BadParameter("name at least one collection", param_hint="COLLECTION")
    chosen = read_kinds() if kinds is None else read_kinds(kinds)
    seconds = parse_duration(duration)
    poll_s = None if poll is None else parse_duration(poll)
    server, account, enrolment_key = device_access(state, account=account, enrolment_key=enrolment_key, quota=devices)

    from latebind.cli._fleet import Fleet, FleetPlan  # noqa: PLC0415 - numpy and the engines take half a second
    from latebind.cli._fleet_report import summarise  # noqa: PLC0415

    with _folder(cache_dir) as folder, _interrupted() as stop:
        plan = FleetPlan(server, account, enrolment_key or "", tuple(collections), chosen, devices, real, folder, rate, poll_s, seed)
        fleet = Fleet(plan)
        out = state.output
        with out.steps(f"{devices} devices join") as step:
            fleet.join(lambda done: step(f"{done} of {devices} devices have joined", done / devices))
        out.note(f"{devices} devices have joined in {fleet.wall_s:.1f} s; running for {duration} (Ctrl-C ends it early)")
        with out.steps("running") as step:
            fleet.run(seconds, stop, progress=lambda share: step(f"{devices} devices run", share))
        with out.steps("sending what was measured") as step:
            fleet.finish(lambda done: step("sending what was measured", done / devices))
        report = {"wall_s": round(fleet.wall_s, 3), **summarise(fleet.devices)}
        out.emit(report, lambda: show_report(out, report))


def show_report(out: Output, report: dict[str, Any]) -> None:
    """Show what a fleet counted."""
    rows = []
    for kind in report["kinds"]:
        got = [f"{name} × {count}" for name, count in kind["packages"].items()]
        refused = [f"{code} × {count}" for code, count in kind["refusals"].items()]
        rows.append([kind["kind"], kind["devices"], kind["real"], "\n".join(got) or None, "\n".join(refused) or None])
    out.table(["kind", "devices", "real", "got", "refused"], rows, title="who got what")
    if report["refusal_reasons"]:
        names = ("kind", "package", "condition", "needed", "reported", "devices")
        out.table(list(names), [[reason[name] for name in names] for reason in report["refusal_reasons"]], title="why not")
    latencies = [
        [one["model_id"], one["kind"], "measured" if one["real"] else "made up", one["count"], one["p50_ms"], one["p95_ms"]]
        for one in report["latency"]
    ]
    if latencies:
        out.table(["model", "kind", "latency", "runs", "p50 ms", "p95 ms"], latencies, title="steady runs, as the devices counted them")
    if report["moves"]:
        out.table(["from", "to", "devices"], [[move["from"], move["to"], move["devices"]] for move in report["moves"]], title="who moved")
    out.facts(
        {
            "devices": f"{report['devices']} of {report['device_kinds']} kinds, {report['real_devices']} real",
            "inferences": f"{report['inferences']}, {report['failed_inferences']} failed",
            "moved": f"{report['moved_devices']} devices",
            "downloaded": size_text(report["bytes_received"]),
            "took": f"{report['wall_s']:.1f} s",
        }
    )
    for code, count in report["failures"].items():
        out.warn(f"{code}: {count} times")


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="latebind-fleet-") as temporary:
        yield Path(temporary)


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets the first time; the second Ctrl-C ends the program."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
