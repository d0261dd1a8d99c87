"""Errors with a status and a stable code. Raised where the rule is, rendered once (`kit.web`), rebuilt as classes in the SDK.

Every code has a heading in docs/errors.md; a test compares.
"""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """Base of every error a client may see (RFC 9457).

    `status` is the HTTP status, `code` the stable UPPER_SNAKE name, `detail` says what was wrong and what to do next,
    `extra` holds further members of the problem document (for example `errors`, one entry per field).
    """

    status: int = 400
    code: str = "BAD_REQUEST"
    title: str = ""
    #: Seconds for the Retry-After header; None: no header.
    retry_after_s: int | None = None

    def __init__(self, detail: str = "", *, retry_after_s: int | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """Return the problem document. `type` is stable per code and needs no look-up."""
        body: dict[str, Any] = {
            "type": f"urn:latebind:error:{self.code.lower().replace('_', '-')}",
            "title": self.title or self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if instance:
            body["instance"] = instance
        body.update(self.extra)
        return body


class Invalid(Problem):
    """The request was understood and is wrong. `errors` lists `{"field", "code", "detail"}`."""

    status = 400
    code = "INVALID_REQUEST"


class Unprocessable(Problem):
    """The payload is malformed: not JSON, an unknown field, a wrong type."""

    status = 422
    code = "MALFORMED_BODY"


class Unauthorized(Problem):
    """No credential, or one that is not valid (any more)."""

    status = 401
    code = "UNAUTHENTICATED"


class Forbidden(Problem):
    """The credential is valid and does not allow this."""

    status = 403
    code = "FORBIDDEN"


class NotFound(Problem):
    """Nothing there, or nothing that this account may know of: both answer alike."""

    status = 404
    code = "NOT_FOUND"


class Conflict(Problem):
    """The state of the resource does not allow this now."""

    status = 409
    code = "CONFLICT"


class PreconditionFailed(Problem):
    """`If-Match` names another state than the stored one: read it again, then repeat the change."""

    status = 412
    code = "PRECONDITION_FAILED"


class TooLarge(Problem):
    """The body is over the limit."""

    status = 413
    code = "BODY_TOO_LARGE"


class TooManyRequests(Problem):
    """Over the rate; `Retry-After` says when to come back."""

    status = 429
    code = "RATE_LIMITED"
    retry_after_s = 1


class Unavailable(Problem):
    """Something this needs cannot be reached now; the same request may work later."""

    status = 503
    code = "UNAVAILABLE"
    retry_after_s = 2


class NotMigrated(Unavailable):
    """The tables of a service are missing or older than this release. Nothing but `latebindd migrate` helps."""

    code = "NOT_MIGRATED"
    retry_after_s = 10

    @classmethod
    def of(cls, service: str, has: str = "") -> NotMigrated:
        """Return it in words for operators; `has` says more of what is there."""
        return cls(f"the tables of {service} are missing or older than this release{has}: run `latebindd migrate {service}`")


class MethodNotAllowed(Problem):
    """The path exists, the method does not."""

    status = 405
    code = "METHOD_NOT_ALLOWED"


class Internal(Problem):
    """A fault of ours. The log has the details under the request id."""

    status = 500
    code = "INTERNAL"
