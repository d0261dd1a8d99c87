"""What an app says of the model it wants: an account and a collection, nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Names the collection whose model the app runs. Raises ValueError for names that can be no account or collection."""

    account: str
    collection: str

    def __post_init__(self) -> None:
        for name in ("account", "collection"):
            check_name(getattr(self, name), name)


def check_name(value: str, what: str) -> str:
    """The value, if it is a safe name: it becomes part of URLs and of file names."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a valid {what}: letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit"
        )
    return value
