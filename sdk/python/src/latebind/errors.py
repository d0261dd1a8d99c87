"""Everything that Latebind's SDK raises: one class per family of server errors, and one per thing that can go wrong on a device.

Each error has a stable `code` (docs/errors.md); `str(error)` is a sentence for people. This module does no I/O and needs only the
standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class LatebindError(Exception):
    """Base of all errors of this package.

    `code` is stable and in UPPER_SNAKE; `detail` says what happened.
    """

    default_code: ClassVar[str] = "LATEBIND_ERROR"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.code = code or self.default_code
        self.detail = detail


# --- What the server answers ------------------------------------------------------------------------------------------------------


class ServerError(LatebindError):
    """The server answered with an error (problem+json, RFC 9457).

    `status` is the HTTP status, `extra` holds the members of the problem beyond the standard ones, `retry_after_s` the seconds that the
    server asks to wait, or None.
    """

    default_code = "SERVER_ERROR"
    codes: ClassVar[dict[str, type[ServerError]]] = {}
    statuses: ClassVar[dict[int, type[ServerError]]] = {}

    def __init_subclass__(cls, *, status: int | None = None, code: str | None = None) -> None:
        super().__init_subclass__()
        if code is not None:
            cls.default_code = code
            ServerError.codes[code] = cls
        elif status is not None:
            ServerError.statuses[status] = cls

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        code: str | None = None,
        title: str = "",
        extra: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail, code=code)
        self.status = status
        self.title = title
        self.extra = dict(extra or {})
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class InvalidRequest(ServerError, status=400):
    """The request itself is wrong; sending it again cannot help."""

    default_code = "INVALID_REQUEST"


class Unauthorized(ServerError, status=401):
    """No credential, or one that is unknown, expired or revoked."""

    default_code = "UNAUTHORIZED"


class Forbidden(ServerError, status=403):
    """The credential is good but does not allow this."""

    default_code = "FORBIDDEN"


class NotFound(ServerError, status=404):
    """There is no such thing in this account."""

    default_code = "NOT_FOUND"


class Conflict(ServerError, status=409):
    """The state of the server does not allow this now."""

    default_code = "CONFLICT"


class PreconditionFailed(ServerError, status=412):
    """Somebody changed the resource in between (`If-Match`)."""

    default_code = "PRECONDITION_FAILED"


class TooLarge(ServerError, status=413):
    """The body is above a limit."""

    default_code = "BODY_TOO_LARGE"


class Unprocessable(ServerError, status=422):
    """The payload is malformed: unknown fields, wrong types."""

    default_code = "MALFORMED"


class RateLimited(ServerError, status=429):
    """Too many requests; `retry_after_s` says when to come back."""

    default_code = "RATE_LIMITED"


class Unavailable(ServerError, status=503):
    """The server cannot do this now; trying again later may work."""

    default_code = "UNAVAILABLE"


class NoMatch(NotFound, code="NO_MATCH"):
    """No rule of the collection serves this device, and the collection has no default."""


class CollectionNotFound(NotFound, code="COLLECTION_NOT_FOUND"):
    """The account has no published collection of this id."""


class NoCompatiblePackage(Conflict, code="NO_COMPATIBLE_PACKAGE"):
    """Rules matched, but nothing that they serve can run on this device; `packages` says why, one entry each."""

    @property
    def packages(self) -> list[dict[str, Any]]:
        """For each package: `model_id`, `version`, `variant`, `condition`, `needed`, `reported`."""
        return list(self.extra.get("packages") or [])


class InstallAlreadyEnrolled(Conflict, code="INSTALL_ALREADY_ENROLLED"):
    """This install id is enrolled with another public key."""


class InstallMismatch(Forbidden, code="INSTALL_MISMATCH"):
    """The context names another install than the token."""


class ParameterContractBroken(Conflict, code="PARAMETER_CONTRACT_BROKEN"):
    """A version breaks what the model's earlier ones promise of parameters; `extra` has every breach and the collections that serve it."""


class TensorContractBroken(Conflict, code="TENSOR_CONTRACT_BROKEN"):
    """As `ParameterContractBroken`, and only inputs or outputs differ: in name, dtype, rank or named dimensions."""


class TelemetryInvalid(InvalidRequest, code="TELEMETRY_INVALID"):
    """The server can never accept this telemetry batch."""


_STANDARD_MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})


def from_problem(status: int, problem: Any, *, retry_after_s: float | None = None, request_id: str | None = None) -> ServerError:
    """The error for an answer of the server: by `code` when it has a class of its own, else by status, else `ServerError`.

    `problem` is the parsed body, or None when it was not JSON.
    """
    body: Mapping[str, Any] = problem if isinstance(problem, Mapping) else {}
    code = body.get("code")
    code = code if isinstance(code, str) and code else None
    cls = ServerError.codes.get(code or "") or ServerError.statuses.get(status) or (Unavailable if status >= 500 else ServerError)
    title = str(body.get("title") or "")
    return cls(
        str(body.get("detail") or title or f"the server answered {status}"),
        status=status,
        code=code,
        title=title,
        extra={key: value for key, value in body.items() if key not in _STANDARD_MEMBERS},
        retry_after_s=retry_after_s,
        request_id=request_id or (str(body["request_id"]) if body.get("request_id") else None),
    )


# --- What goes wrong on the device ------------------------------------------------------------------------------------------------


class DeviceError(LatebindError):
    """Something went wrong on this side of the wire."""

    default_code = "DEVICE_ERROR"


class ServerUnreachable(DeviceError):
    """No answer: no network, no such host, connection refused or cut, or too slow."""

    default_code = "SERVER_UNREACHABLE"


class ConnectionLost(ServerUnreachable):
    """The server was reached, but the answer did not come, or not whole."""

    default_code = "CONNECTION_LOST"


class ResponseInvalid(DeviceError):
    """The server answered something that docs/wire.md does not allow."""

    default_code = "RESPONSE_INVALID"


class FirstStartOffline(ServerUnreachable):
    """The server cannot be reached and nothing is installed yet: there is no model to start with."""

    default_code = "FIRST_START_OFFLINE"


class NotEnrolled(DeviceError):
    """This install has no identity at the server yet, and no enrolment key was given."""

    default_code = "NOT_ENROLLED"


class DownloadFailed(DeviceError):
    """A file could not be fetched, or arrived below the minimum rate. What has arrived is kept, and the next try resumes."""

    default_code = "DOWNLOAD_FAILED"


class DiskFull(DeviceError):
    """There is no room (disk, quota or file size limit). Nothing half written is used."""

    default_code = "DISK_FULL"


class VerificationFailed(DeviceError):
    """A package or an assignment is not what its signature, digest or rules demand. `code` says which check failed."""

    default_code = "VERIFICATION_FAILED"


class CacheDamaged(VerificationFailed):
    """A file in the cache is not the one that was installed."""

    default_code = "CACHE_DAMAGED"


class PackageRefused(DeviceError):
    """The server still assigns a package that has failed on this device before; it is not tried again until the assignment changes."""

    default_code = "PACKAGE_REFUSED"


class EngineMissing(DeviceError):
    """No installed engine runs this package; the message names the extra to install."""

    default_code = "ENGINE_MISSING"


class LoadFailed(DeviceError):
    """The engine could not load the model."""

    default_code = "LOAD_FAILED"


class GoldenTestFailed(LoadFailed):
    """The model loads, but does not give the outputs that it gave when it was packaged."""

    default_code = "GOLDEN_TEST_FAILED"


class InferenceFailed(DeviceError):
    """The engine failed while it ran the model."""

    default_code = "INFERENCE_FAILED"


class InvalidInput(DeviceError):
    """The input does not have the names, dtypes or shapes that the model declares (`handle.info.inputs`)."""

    default_code = "INVALID_INPUT"


class UnknownParameter(DeviceError):
    """The model has no file of this name (`handle.info.params`, `handle.info.files`)."""

    default_code = "UNKNOWN_PARAMETER"


class Closed(DeviceError):
    """The handle or the manager has been closed."""

    default_code = "CLOSED"
