"""`latebindd`: arguments and settings only. What they start is in `services.launch`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from kit.checks import Finding, State
from kit.clock import SystemClock
from kit.errors import Problem
from kit.logs import configure_logging
from kit.workers import CannotStart
from services import backup, replay
from services.doctor import GATEWAY, examine, settings_faults
from services.launch import SERVICES, AlreadyRunning, LaunchSettings, Started, create_part, migrate_all, run
from services.prefetch import ENVIRONMENTS, prefetch
from services.serving import AddressInUse, default_loop_factory

_DESCRIPTION = "The Latebind server. Without arguments: everything in one process, on embedded stores below ./data."
_EPILOG = """examples:
  latebindd                               everything, on http://127.0.0.1:8080
  latebindd --port 9000 --data-dir /srv/latebind
  latebindd registry                      one service, its API and its workers
  latebindd telemetry --only workers      the workers of one service
  latebindd gateway                       the gateway; upstreams from LATEBIND_GATEWAY_*_URL
  latebindd migrate [service ...]         bring the stores to the newest revision; makes the operator key
  latebindd prefetch [environment ...]    make the packager's converter environments before the first job needs them
  latebindd telemetry replay [--dry-run]  list dead letters of telemetry, or try them again (--help says more)
  latebindd backup FOLDER                 databases and event log of a cluster at one moment (docs/backup.md); also: restore
  latebindd doctor [--json] [part ...]    hold this configuration against its servers; says what is wrong

Settings come from LATEBIND_... in the environment or a .env file; docs/settings.md lists them. Arguments win."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latebindd", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part",
        nargs="?",
        default="all",
        choices=["all", "gateway", "migrate", "prefetch", "doctor", *SERVICES],
        help="what to run (default: all)",
    )
    parser.add_argument("service", nargs="*", help="with migrate, prefetch and doctor: which ones (default: all)")
    parser.add_argument("--only", choices=["api", "workers"], help="run only the API or only the workers")
    parser.add_argument("--json", action="store_true", help="with doctor: findings as JSON")
    parser.add_argument("--host", help="address to listen on (LATEBIND_HOST, default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="public port, 0 picks a free one (LATEBIND_PORT, default 8080)")
    parser.add_argument(
        "--internal-port", type=int, help="port of /metrics and probes, 0 picks a free one (LATEBIND_INTERNAL_PORT, default 8081)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the embedded stores (LATEBIND_DATA_DIR, default ./data)")
    parser.add_argument("--ready-file", type=Path, help="write addresses and process id there as JSON once the server answers")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="LATEBIND_LOG_LEVEL, default info")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run `latebindd`. Exit codes: 0 stopped as asked, 1 cannot start or faults found (the reason is said), 2 wrong arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:2] == ["telemetry", "replay"]:
        return replay.main(arguments[2:])
    if arguments[:1] in (["backup"], ["restore"]):
        return backup.main(arguments[0], arguments[1:], SERVICES, create_part, lambda: migrate_all(LaunchSettings(), SERVICES))
    return _main(arguments)


def _main(arguments: list[str]) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    overrides = {name: getattr(given, name) for name in ("host", "port", "internal_port", "data_dir", "log_level")}
    try:
        settings = LaunchSettings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        return _report(settings_faults(error), as_json=given.json)
    configure_logging(level=settings.log_level)
    named: Sequence[str] = {"migrate": SERVICES, "prefetch": ENVIRONMENTS, "doctor": (GATEWAY, *SERVICES)}.get(given.part, ())
    if set(given.service) - set(named):
        parser.error(f"unexpected: {' '.join(given.service)} (`{given.part}` takes: {', '.join(named) or 'nothing'})")
    if given.part == "migrate":
        return _migrate(settings, given.service or SERVICES)
    if given.part == "prefetch":
        return asyncio.run(prefetch(given.service or ENVIRONMENTS))
    if given.part == "doctor":
        return asyncio.run(_examine(settings, given.service or (GATEWAY, *SERVICES), as_json=given.json))
    services = {"all": SERVICES, "gateway": ()}.get(given.part, (given.part,))
    work = run(
        settings,
        services=services,
        with_gateway=given.part in {"all", "gateway"},
        only=given.only or "all",
        on_started=partial(_announce, ready_file=given.ready_file),
    )
    try:
        with asyncio.Runner(loop_factory=default_loop_factory()) as runner:
            runner.run(work)
    except (AlreadyRunning, AddressInUse, CannotStart, ValueError) as error:
        sys.stderr.write(f"latebindd cannot start: {error}\n")
        return 1
    return 0


def _migrate(settings: LaunchSettings, services: Sequence[str]) -> int:
    try:
        operator_key = asyncio.run(migrate_all(settings, services))
    except Problem as problem:
        sys.stderr.write(f"latebindd migrate: {problem.detail}\n")
        return 1
    _show_operator_key(operator_key, settings.operator_key_file)
    return 0


async def _examine(settings: LaunchSettings, parts: Sequence[str], *, as_json: bool) -> int:
    addresses = [(settings.host, settings.port), (settings.internal_host, settings.internal_port)]
    findings: list[Finding] = []
    async for finding in examine(settings, parts, addresses, SystemClock(), traces_url=settings.traces_url):
        findings.append(finding)
        if not as_json:  # as they come: a server that does not answer takes its time
            _report([finding], as_json=False)
    if as_json:
        return _report(findings, as_json=True)
    return int(any(one.state is State.FAULT for one in findings))


def _report(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings, one line each; return the exit code that they mean."""
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    else:
        for one in findings:
            advice = f"\n       -> {one.advice}" if one.advice else ""
            sys.stdout.write(f"{one.state:5}  {one.check}: {one.detail}{advice}\n")
        sys.stdout.flush()
    return int(any(one.state is State.FAULT for one in findings))


def _announce(started: Started, ready_file: Path | None) -> None:
    """Tell people where it is; the operator key is shown this once."""
    sys.stderr.write(f"Latebind serves {started.url}  (API: {started.url}/docs, metrics: {started.internal_url}/metrics)\n")
    _show_operator_key(started.operator_key, started.operator_key_file)
    if ready_file is not None:
        ready_file.write_text(json.dumps({"url": started.url, "internal_url": started.internal_url, "pid": os.getpid()}) + "\n")


def _show_operator_key(key: str | None, path: Path) -> None:
    if key:
        sys.stderr.write(f"Operator key, shown once and kept in {path} (mode 0600): {key}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
