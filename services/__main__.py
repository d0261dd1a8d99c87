"""`latebindd`: arguments and settings only. What they start is in `services.launch`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path

from kit.logs import configure_logging
from services.launch import SERVICES, AddressInUse, AlreadyRunning, LaunchSettings, Started, default_loop_factory, migrate_all, run

_DESCRIPTION = "The Latebind server. Without arguments: everything in one process, on embedded stores below ./data."
_EPILOG = """examples:
  latebindd                               everything, on http://127.0.0.1:8080
  latebindd --port 9000 --data-dir /srv/latebind
  latebindd registry                      one service, its API and its workers
  latebindd telemetry --only workers      the workers of one service
  latebindd gateway                       the gateway; upstreams from LATEBIND_GATEWAY_*_URL
  latebindd migrate [service ...]         bring databases to the newest revision

Settings come from LATEBIND_... in the environment or a .env file; docs/settings.md lists them. Arguments win."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latebindd", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part", nargs="?", default="all", choices=["all", "gateway", "migrate", *SERVICES], help="what to run (default: all)"
    )
    parser.add_argument("service", nargs="*", help="with migrate: which services (default: all)")
    parser.add_argument("--only", choices=["api", "workers"], help="run only the API or only the workers")
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
    """Run `latebindd`. Exit codes: 0 stopped as asked, 1 cannot start (the reason is on stderr), 2 wrong arguments."""
    parser = _parser()
    given = parser.parse_args(arguments)
    overrides = {name: getattr(given, name) for name in ("host", "port", "internal_port", "data_dir", "log_level")}
    settings = LaunchSettings(**{name: value for name, value in overrides.items() if value is not None})
    configure_logging(level=settings.log_level)
    wrong = set(given.service) - set(SERVICES)
    if wrong or (given.service and given.part != "migrate"):
        parser.error(f"unexpected: {' '.join(given.service)} (services are named after `migrate`: {', '.join(SERVICES)})")
    if given.part == "migrate":
        asyncio.run(migrate_all(settings, given.service or SERVICES))
        return 0
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
    except (AlreadyRunning, AddressInUse, ValueError) as error:
        sys.stderr.write(f"latebindd cannot start: {error}\n")
        return 1
    return 0


def _announce(started: Started, ready_file: Path | None) -> None:
    """Tell people where it is; the operator key is shown this once."""
    lines = [f"Latebind serves {started.url}  (API: {started.url}/docs, metrics: {started.internal_url}/metrics)"]
    if started.operator_key:
        lines.append(f"Operator key, shown once and kept in {started.operator_key_file} (mode 0600): {started.operator_key}")
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
    if ready_file is not None:
        ready_file.write_text(json.dumps({"url": started.url, "internal_url": started.internal_url, "pid": os.getpid()}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
