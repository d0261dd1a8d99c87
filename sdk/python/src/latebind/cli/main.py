"""The entry point: global options, the nouns, and errors as exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import latebind
from latebind.cli import accounts, bundle, catalogue, collections, devices, export, import_, jobs, login, models, push, run, simulate, stats
from latebind.cli._errors import ExitCode, exit_code_of
from latebind.cli._state import State
from latebind.errors import LatebindError

_HELP = """Package models, bind them to devices by rules, and see how they run there.

Server and key come from --server/--api-key, LATEBIND_SERVER/LATEBIND_API_KEY, or `latebind login`, in this order.
Every command takes --json. Exit codes: docs/cli.md.
"""

app = typer.Typer(
    name="latebind", help=_HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
)

_NOUNS = (
    ("account", accounts.account_app, "Tenants of the server (operator)"),
    ("api-key", accounts.api_key_app, "Keys for people and CI"),
    ("enrolment-key", accounts.enrolment_key_app, "Keys with which devices enrol"),
    ("model", models.model_app, "Models and their versions"),
    ("alias", models.alias_app, "Movable names such as stable"),
    ("jobs", jobs.app, "Packaging jobs"),
    ("catalogue", catalogue.app, "Pre-packaged models of the operator"),
    ("collection", collections.app, "What apps name, and the rules behind it"),
    ("devices", devices.devices_app, "Devices that have asked"),
    ("decision", devices.decision_app, "Answers that devices got"),
    ("stats", stats.app, "Figures from the field"),
)
for _name, _app, _help in _NOUNS:
    app.add_typer(_app, name=_name, help=_help, no_args_is_help=True)
for _command, _name in (
    (login.login, "login"),
    (login.logout, "logout"),
    (login.whoami, "whoami"),
    (push.push, "push"),
    (import_.import_model, "import"),
    (export.export, "export"),
    (bundle.bundle, "bundle"),
    (run.resolve, "resolve"),
    (run.run, "run"),
    (simulate.simulate_fleet, "simulate-fleet"),
):
    app.command(_name)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"latebind {latebind.__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    *,
    server: Annotated[str | None, typer.Option(help="Address of the server; wins over LATEBIND_SERVER.")] = None,
    api_key: Annotated[str | None, typer.Option(help="API key; wins over LATEBIND_API_KEY.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile that `latebind login --profile` stored; wins over LATEBIND_PROFILE.")] = None,
    _show_version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every command."""
    state = ctx.ensure_object(State)
    state.server, state.api_key, state.profile_name = server, api_key, profile


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. Stops quietly when what reads the output is gone (as `| head` is)."""
    state = State()
    try:
        typer.main.get_command(app).main(arguments, prog_name="latebind", obj=state)
    except LatebindError as error:
        state.output.error(error)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAULT
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else ExitCode.FAULT
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
