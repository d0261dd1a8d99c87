"""Answers of the server become classes."""

from __future__ import annotations

import pytest

from latebind import errors
from latebind.errors import from_problem


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [
        (404, "NO_MATCH", errors.NoMatch),
        (409, "NO_COMPATIBLE_PACKAGE", errors.NoCompatiblePackage),
        (404, "COLLECTION_NOT_FOUND", errors.CollectionNotFound),
        (409, "INSTALL_ALREADY_ENROLLED", errors.InstallAlreadyEnrolled),
        (409, "PARAMETER_CONTRACT_BROKEN", errors.ParameterContractBroken),
        (404, "SOMETHING_NEW", errors.NotFound),
        (409, None, errors.Conflict),
        (429, "RATE_LIMITED", errors.RateLimited),
        (502, None, errors.Unavailable),
        (418, None, errors.ServerError),
    ],
)
def test_the_code_decides_and_then_the_status(status: int, code: str | None, cls: type[errors.ServerError]) -> None:
    error = from_problem(status, {"code": code, "title": "t", "detail": "what happened", "parameters": [1]}, retry_after_s=3.0)
    assert type(error) is cls
    assert (error.status, str(error), error.retry_after_s) == (status, "what happened", 3.0)
    assert error.extra == {"parameters": [1]}
    assert error.code == (code or cls.default_code)


def test_a_body_that_is_no_problem_still_makes_an_error() -> None:
    for body in (None, [], "text", {"code": 5}):
        error = from_problem(503, body)
        assert isinstance(error, errors.Unavailable) and error.code == "UNAVAILABLE" and "503" in str(error)


def test_codes_are_unique_and_upper_snake() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.LatebindError)]
    codes = [cls.default_code for cls in classes]
    assert len(set(codes)) == len(codes)
    assert all(code == code.upper() and " " not in code for code in codes)
