"""Reads the options that stand in the query of an adapter's URL into the adapter's dataclass: `?partitions=8&secure=true`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar
from urllib.parse import parse_qsl

_TRUTHS = {"true": True, "false": False}

T = TypeVar("T")


def read_options(kind: type[T], query: str, what: str) -> T:
    """Return `kind` with what `query` sets; each field has a default, whose type (text, int, float, bool) the value takes.

    Raises `ValueError`, with `what` ("a kafka URL") in its words, for an unknown option or a value of another type.
    """
    defaults = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if name not in defaults:
            raise ValueError(f"{what} has no option {name!r}; it has {', '.join(defaults)}")
        of: Any = type(defaults[name])
        try:
            values[name] = _TRUTHS[value] if of is bool else of(value)
        except (KeyError, ValueError):
            raise ValueError(f"{what}: {name} is {'true or false' if of is bool else of.__name__}, not {value!r}") from None
    return kind(**values)
