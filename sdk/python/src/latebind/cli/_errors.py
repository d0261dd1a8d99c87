"""Exit codes, and what to try next: every error that a command can end with becomes one sentence, one hint and one number.

The numbers are stable; docs/cli.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from latebind import errors
from latebind._declaration import DeclarationInvalid, ImportFailed, ImportRefused
from latebind.errors import LatebindError


class ExitCode(IntEnum):
    """What a command's exit status means."""

    OK = 0
    FAULT = 1
    USAGE = 2
    CREDENTIALS = 3
    NOT_FOUND = 4
    REFUSED = 5
    UNAVAILABLE = 6
    JOB_FAILED = 7
    NO_PACKAGE = 8
    DEVICE = 9
    CHECK_FAILED = 10
    INTERRUPTED = 130


class CommandError(LatebindError):
    """Something that the command line itself finds wrong. `hint` is the next thing to try."""

    default_code = "USAGE"
    exit_code = ExitCode.USAGE

    def __init__(self, detail: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.hint = hint


class ConfigUnusable(CommandError):
    """The configuration file is broken, or lacks the profile that was asked for."""

    default_code = "CONFIG_UNUSABLE"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, hint="log in again: latebind login SERVER")


class NotLoggedIn(CommandError):
    """No server or no key."""

    default_code = "NOT_LOGGED_IN"
    exit_code = ExitCode.CREDENTIALS

    def __init__(self, detail: str = "no server and no API key are known") -> None:
        super().__init__(detail, hint="latebind login SERVER, or set LATEBIND_SERVER and LATEBIND_API_KEY")


class JobFailed(CommandError):
    """A job ended without a result; `code` is its reason."""

    default_code = "JOB_FAILED"
    exit_code = ExitCode.JOB_FAILED


class CheckFailed(CommandError):
    """The command ran, and what it checked is not as it should be."""

    default_code = "CHECK_FAILED"
    exit_code = ExitCode.CHECK_FAILED


_HINTS = {
    "UNAUTHENTICATED": "log in with a key that is valid: latebind login SERVER",
    "FORBIDDEN": "use a key with a higher scope: latebind api-key create --scope publish (needs an admin key)",
    "PARAMETER_CONTRACT_BROKEN": "keep names and types as they are (latebind model show MODEL lists them), or start a new model id",
    "TENSOR_CONTRACT_BROKEN": "export the model with the inputs and outputs it had (latebind model show MODEL), or start a new model id",
    "RULES_INVALID": "correct the rules (docs/rules.md) and try again: latebind collection edit COLLECTION",
    "VERSION_NOT_READY": "latebind model versions MODEL shows the states; check the names in the rules",
    "COLLECTION_NOT_FOUND": "latebind collection list shows the ids; a collection answers after latebind collection publish",
    "NO_MATCH": "latebind collection explain COLLECTION says which rule stopped this device, or give the collection a default",
    "NO_COMPATIBLE_PACKAGE": "latebind collection explain COLLECTION says what each package needs and what the device reported",
    "NOT_ENROLLED": "pass --enrolment-key, or log in with an admin key so that one can be made",
    "ENGINE_MISSING": "install the engine as said, or push a variant for an engine that is installed",
    "FIRST_START_OFFLINE": "check the address and that latebindd runs: curl SERVER/livez",
    "SERVER_UNREACHABLE": "check the address and that latebindd runs: curl SERVER/livez",
    "PRECONDITION_FAILED": "somebody changed it meanwhile: show it again, then repeat the change",
    "RATE_LIMITED": "wait a little and repeat the command",
    "DISK_FULL": "make room, or choose another folder with --cache-dir",
    "INVALID_INPUT": "latebind resolve COLLECTION --manifest shows the inputs, or leave --input out to have one generated",
}

_BY_CLASS: tuple[tuple[type[LatebindError], ExitCode, str], ...] = (
    (DeclarationInvalid, ExitCode.USAGE, "latebind push --help shows how to write it; docs/cli.md has a latebind.yaml"),
    (ImportRefused, ExitCode.REFUSED, "do as the message says, or push what you have: latebind push --help"),
    (ImportFailed, ExitCode.UNAVAILABLE, "check address, revision and credentials, then repeat the command"),
    (errors.NoMatch, ExitCode.NO_PACKAGE, ""),
    (errors.NoCompatiblePackage, ExitCode.NO_PACKAGE, ""),
    (errors.Unauthorized, ExitCode.CREDENTIALS, "log in with a key that is valid: latebind login SERVER"),
    (errors.Forbidden, ExitCode.CREDENTIALS, "use a key of the account with a higher scope"),
    (errors.NotFound, ExitCode.NOT_FOUND, "check the name; the list command of the noun shows what there is"),
    (errors.RateLimited, ExitCode.UNAVAILABLE, ""),
    (errors.Unavailable, ExitCode.UNAVAILABLE, "repeat the command in a moment; the server's log and /readyz say what it waits for"),
    (errors.Conflict, ExitCode.REFUSED, "look at the current state with the show command, then decide"),
    (errors.ServerError, ExitCode.REFUSED, "correct what the message names and repeat the command"),
    (errors.ServerUnreachable, ExitCode.UNAVAILABLE, ""),
    (errors.DeviceError, ExitCode.DEVICE, "repeat with --verbose; latebind devices show INSTALL lists what the device reported"),
)


def exit_code_of(error: LatebindError) -> ExitCode:
    """The exit status for an error."""
    if isinstance(error, CommandError):
        return error.exit_code
    return next((code for cls, code, _ in _BY_CLASS if isinstance(error, cls)), ExitCode.FAULT)


def hint_of(error: LatebindError) -> str:
    """The next thing to try."""
    if isinstance(error, CommandError) and error.hint:
        return error.hint
    if error.code in _HINTS:
        return _HINTS[error.code]
    return next((hint for cls, _, hint in _BY_CLASS if isinstance(error, cls) and hint), "latebind COMMAND --help")


def details_of(error: LatebindError) -> list[str]:
    """Further lines: one per field or per package that the server names."""
    if not isinstance(error, errors.ServerError):
        return []
    lines = []
    for one in error.extra.get("errors") or []:
        where = one.get("field") or one.get("path") or ""
        lines.append(f"{where}: {one.get('detail', one.get('code', ''))}" if where else str(one.get("detail", one.get("code", ""))))
    for one in error.extra.get("packages") or []:
        name = f"{one.get('model_id')} v{one.get('version')} {one.get('variant')}"
        lines.append(f"{name}: {one.get('condition')} needs {one.get('needed')}, the device has {one.get('reported')}")
    lines += [breach_text(one) for one in error.extra.get("breaches") or []]
    for one in error.extra.get("collections") or []:
        lines.append(f"served by collection {one.get('id')} {one.get('name')}")
    return lines


def breach_text(breach: Mapping[str, Any]) -> str:
    """One broken promise of a model (docs/contract.md) in words: `S: int → float`."""
    kind = {"inputs": "input ", "outputs": "output "}.get(str(breach.get("area")), "")
    place, nothing = "", "absent"
    if breach.get("position") is not None:
        place, nothing = f" dimension {breach['position']}", "unnamed"
    sides = [nothing if breach.get(side) is None else str(breach[side]) for side in ("old", "new")]
    more = " (a new parameter needs a default)" if breach.get("change") == "no_default" else ""
    return f"{kind}{breach.get('name')}{place}: {' → '.join(sides)}{more}"


def as_json(error: LatebindError) -> dict[str, object]:
    """The error as `--json` prints it."""
    body: dict[str, object] = {"code": error.code, "detail": error.detail, "exit_code": int(exit_code_of(error)), "next": hint_of(error)}
    if isinstance(error, errors.ServerError):
        body |= {"status": error.status, **{name: value for name, value in error.extra.items() if name not in body}}
        if error.request_id:
            body["request_id"] = error.request_id
    return {"error": body}
