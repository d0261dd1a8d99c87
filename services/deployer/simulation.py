"""What-if: the draft held against every device seen so far, counted.

Pure. `devices = unchanged + moved` and `devices = served + refused` hold for every tally.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.deployer.binding import Bound, Refusal, Served, decide
from services.deployer.compatibility import Package
from services.deployer.domain import PackageFile
from services.deployer.facts import facts_of, installed_digests

_EXAMPLES = 5
#: (digest or None, reason when there is no package)
_Side = tuple[str | None, str]


@dataclass(slots=True)
class Move:
    """Devices that go from one answer to another."""

    devices: int = 0
    bytes: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """Counts of a simulation; `files` says what each package consists of (by digest)."""

    files: Mapping[str, tuple[PackageFile, ...]]
    devices: int = 0
    unchanged: int = 0
    moved: int = 0
    served: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    served_before: int = 0
    refused_before: Counter[str] = field(default_factory=Counter)
    bytes_to_download: int = 0
    moves: dict[tuple[_Side, _Side], Move] = field(default_factory=dict)
    packages: dict[str, Package] = field(default_factory=dict)

    def count(self, context: dict[str, Any], install_id: str, *, before: Bound | None, after: Bound) -> None:
        """Add one device. `before` is None while nothing is published."""
        facts = facts_of({**context, "install_id": install_id})
        was = _NOTHING if before is None else self._side(decide(before, facts, install_id))
        becomes = self._side(decide(after, facts, install_id))
        self.devices += 1
        if was[0] is None:
            self.refused_before[was[1]] += 1
        else:
            self.served_before += 1
        if becomes[0] is None:
            self.refused[becomes[1]] += 1
        else:
            self.served += 1
        if was[0] == becomes[0]:
            self.unchanged += 1
            return
        self.moved += 1
        move = self.moves.setdefault((was, becomes), Move())
        move.devices += 1
        if len(move.examples) < _EXAMPLES:
            move.examples.append(install_id)
        if becomes[0] is not None:
            needed = self._download(becomes[0], installed_digests(context))
            move.bytes += needed
            self.bytes_to_download += needed

    def _side(self, answer: Served | Refusal) -> _Side:
        if isinstance(answer, Refusal):
            return None, answer.reason.value
        self.packages[answer.package.digest] = answer.package
        return answer.package.digest, ""

    def _download(self, digest: str, installed: Iterable[str]) -> int:
        """Bytes of the package's files that are in none of the packages the device has."""
        there = {file.sha256 for package in installed for file in self.files.get(package, ())}
        missing = {file.sha256: file.size for file in self.files.get(digest, ()) if file.sha256 not in there}
        return sum(missing.values())


#: Before the first publish nobody gets anything.
_NOTHING: _Side = (None, "NOTHING_PUBLISHED")
