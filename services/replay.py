"""`latebindd telemetry replay`: lists dead letters of telemetry and tries them again; `services.telemetry` says what that means."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from kit.clock import SystemClock
from kit.db.migrate import migrate
from kit.errors import Problem
from kit.logs import configure_logging
from kit.metrics import KIT_METRICS, PrometheusMetrics
from kit.ports import PortSettings, open_ports
from services.telemetry.app import create_replay
from services.telemetry.replay import Group, Outcome, Wanted
from services.telemetry.settings import TelemetrySettings

_DESCRIPTION = """Tries batches of devices again that could not be counted (docs/telemetry.md: dead letters), for example after an
upgrade that can read them. What can be read now counts once, however often it is tried; what cannot becomes a letter again, with its
history. On embedded stores the server has to be stopped for it."""


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latebindd telemetry replay", description=_DESCRIPTION)
    parser.add_argument("--reason", action="append", default=[], help="only letters with this reason; may be repeated (default: all)")
    parser.add_argument("--since", type=_moment, help="only letters written at or after this time (2026-11-30 or RFC 3339)")
    parser.add_argument("--until", type=_moment, help="only letters written before this time")
    parser.add_argument("--again", action="store_true", help="also those that were tried within the last two weeks")
    parser.add_argument("--dry-run", action="store_true", help="list letters by reason and day, and change nothing")
    parser.add_argument("--wait-s", type=float, default=60.0, help="seconds to wait until they were written (default: 60)")
    parser.add_argument("--json", action="store_true", help="the answer as JSON on standard output")
    parser.add_argument("--data-dir", type=Path, help="folder of the embedded stores (LATEBIND_DATA_DIR, default ./data)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command. Exit codes: 0 done, 1 cannot (the reason is said) or not all were written in time, 2 wrong arguments."""
    given = _parser().parse_args(arguments)
    configure_logging(level="warning")
    try:
        settings = PortSettings(**({"data_dir": given.data_dir} if given.data_dir else {}))
        return asyncio.run(_replay(settings, given))
    except Problem as problem:
        sys.stderr.write(f"latebindd telemetry replay: {problem.detail}\n")
    except (ValidationError, ValueError) as error:
        sys.stderr.write(f"latebindd telemetry replay: {error}\n")
    return 1


async def _replay(settings: PortSettings, given: argparse.Namespace) -> int:
    wanted = Wanted(frozenset(given.reason), given.since, given.until, given.again)
    async with open_ports(settings, ["telemetry"], clock=SystemClock(), metrics=PrometheusMetrics(*KIT_METRICS)) as ports:
        own = ports["telemetry"]
        await migrate(own.database, "services.telemetry")
        replay = create_replay(TelemetrySettings(), own)
        if given.dry_run:
            _show_groups(await replay.groups(wanted), as_json=given.json)
            return 0
        progress = _Progress()
        outcome = await replay.replay(wanted, wait_s=given.wait_s, tell=progress.tell)
        progress.end()
    _show(outcome, as_json=given.json)
    return int(outcome.unfinished > 0)


class _Progress:
    """One line on standard error that changes, or lines now and then where nobody looks."""

    def __init__(self) -> None:
        self._told = ""

    def tell(self, outcome: Outcome) -> None:
        text = f"{outcome.letters} letters, {outcome.replayed} tried again, {outcome.unfinished} not written yet"
        if text != self._told and sys.stderr.isatty():
            sys.stderr.write(f"\r{text}\033[K")
            sys.stderr.flush()
        self._told = text

    def end(self) -> None:
        if self._told:
            sys.stderr.write(f"\r{self._told}\033[K\n" if sys.stderr.isatty() else f"{self._told}\n")


def _show_groups(groups: Sequence[Group], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"groups": [asdict(group) for group in groups], "letters": sum(one.letters for one in groups)}) + "\n")
        return
    if not groups:
        sys.stdout.write("no dead letters\n")
    for one in groups:
        sys.stdout.write(f"{one.day}  {one.reason:12} {one.letters:8} letters, {one.tried} tried again  ({one.last_detail})\n")


def _show(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({**asdict(outcome), "counted": outcome.counted}) + "\n")
        return
    again = ", ".join(f"{count} {reason}" for reason, count in outcome.rejected_again.items()) or "none"
    sys.stdout.write(
        f"{outcome.letters} letters: {outcome.already_tried} had been tried before, {outcome.replayed} tried now.\n"
        f"Counted now: {outcome.counted}. Rejected again: {again}. Not written yet: {outcome.unfinished}.\n"
    )
