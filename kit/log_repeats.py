"""Keeps a library that tries again ten times a second from filling the disk with one sentence while a server is away."""

from __future__ import annotations

import logging
from collections.abc import Collection
from math import inf

#: So many different lines are remembered; beyond it everything is forgotten, and a line may come once more.
_MOST = 1000


class FewRepeats(logging.Filter):
    """Lets a line of one of these libraries through once in `every_s` seconds; the next one says how many were left out.

    Lines are the same when logger and template are, whatever fills the template.
    """

    def __init__(self, libraries: Collection[str], *, every_s: float = 10.0) -> None:
        super().__init__()
        self._libraries, self._every_s = frozenset(libraries), every_s
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it."""
        if record.name.partition(".")[0] not in self._libraries:
            return True
        line = (record.name, str(record.msg))
        written_at, left_out = self._seen.get(line, (-inf, 0))
        if record.created - written_at < self._every_s:
            self._seen[line] = (written_at, left_out + 1)
            return False
        if len(self._seen) >= _MOST:
            self._seen.clear()
        self._seen[line] = (record.created, 0)
        if left_out:
            record.msg = f"{record.msg} (and {left_out} more like it)"
        return True
