"""The rule index: which rules of a collection may accept a device, as bits in reading order.

Pure. Bit i stands for rule i. For each attribute that rules ask about there is a table from value to the bits of the rules that accept
it (rules that do not ask about it are always among them); the candidates are the AND of a few table reads. After "priority-ordered
bitmap index" in the performance guide, section 3. A bitmap may be too wide, never too narrow: rules whose rows are not exact are
checked again by the caller.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.deployer.acceptance import Keys, Members, Ranges, RowKey, RowKind, rows_of
from services.deployer.predicates import Node, Special, semver

#: Bytes of bitmaps that one table keeps ready; beyond that they are made when needed (values) or merged (ranges).
TABLE_BYTES = 4 << 20
#: Answers that a table remembers for values which are not listed in rules themselves.
REMEMBERED = 1_024


class Table(Protocol):
    """One attribute's bits."""

    ready: dict[Any, int]

    def lookup(self, value: Any) -> int:
        """Return the bits of the rules that may accept the value; None stands for a missing attribute."""
        ...


class ValueTable:
    """Equality. A listed value has its own bits; every other value has the bits of the rules that do not list it."""

    def __init__(self, accepted: Sequence[tuple[int, Keys]], rest: int, size: int) -> None:
        base = rest
        flips: dict[Any, list[int]] = defaultdict(list)
        for bit, keys in accepted:
            if keys.but:
                base |= 1 << bit
            for key in keys.keys:
                flips[key].append(bit)
        self._base = base
        self._flips = dict(flips)
        self.ready: dict[Any, int] = {}
        self._all_ready = len(flips) * (size // 8 + 40) <= TABLE_BYTES
        self._limit = max(16, TABLE_BYTES // (size // 8 + 40))
        if self._all_ready:
            self.ready = {key: self._bits(key) for key in flips}

    def _bits(self, key: Any) -> int:
        bits = self._base
        for bit in self._flips[key]:
            bits ^= 1 << bit
        return bits

    def lookup(self, value: Any) -> int:
        """Return the bits for any value."""
        kind = type(value)
        if kind is str or kind is int or kind is float:
            key = value
        elif value is None:
            key = Special.MISSING
        elif kind is bool:
            key = Special.TRUE if value else Special.FALSE
        else:
            key = Special.OTHER
        known = self.ready.get(key)
        if known is not None:
            return known
        if self._all_ready or key not in self._flips:
            return self._base
        bits = self._bits(key)
        if len(self.ready) >= self._limit:
            self.ready.clear()
        self.ready[key] = bits
        return bits


class RangeTable:
    """Order of numbers or versions. Between two limits that stand in rules all values have the same bits."""

    def __init__(self, accepted: Sequence[tuple[int, Ranges]], rest: int, size: int, kind: RowKind) -> None:
        self._semver = kind is RowKind.SEMVER
        self._others = rest
        start = rest
        flips: dict[Any, int] = {}
        for bit, ranges in accepted:
            if ranges.others:
                self._others |= 1 << bit
            if ranges.start:
                start |= 1 << bit
            for cut in ranges.cuts:
                flips[cut] = flips.get(cut, 0) ^ (1 << bit)
        cuts = sorted(flips)
        # Too many limits for the memory of one table: neighbours share the union of their bits.
        group = -(-len(cuts) * (size // 8 + 40) // TABLE_BYTES) or 1
        self.exact = group == 1
        self._cuts: list[Any] = []
        self._segments: list[int] = [start]
        bits = start
        for place, cut in enumerate(cuts):
            bits ^= flips[cut]
            if place % group == 0:
                self._cuts.append(cut)
                self._segments.append(bits)
            else:
                self._segments[-1] |= bits
        self.ready: dict[Any, int] = {}

    def lookup(self, value: Any) -> int:
        """Return the bits for any value."""
        kind = type(value)
        place: Any = None
        if self._semver:
            if kind is str:
                known = self.ready.get(value)
                if known is not None:
                    return known
                place = semver(value)
        elif kind is int or kind is float:
            place = value
        if place is None:
            return self._others
        bits = self._segments[bisect_right(self._cuts, (place, 0))]
        if len(self.ready) >= REMEMBERED:
            self.ready.clear()
        self.ready[value] = bits
        return bits


class MemberTable:
    """Lists of strings: the bits of all members together."""

    def __init__(self, accepted: Sequence[tuple[int, Members]], rest: int) -> None:
        self._base = rest
        self._of: dict[str, int] = {}
        for bit, members in accepted:
            for member in members.any_of:
                self._of[member] = self._of.get(member, 0) | (1 << bit)
        self.ready: dict[Any, int] = {}

    def lookup(self, value: Any) -> int:
        """Return the bits for any value; a list with anything but strings in it is no string list."""
        bits = self._base
        if type(value) is list:
            known = self._of
            for member in value:
                if type(member) is not str:
                    return self._base
                found = known.get(member)
                if found is not None:
                    bits |= found
        return bits


#: Section, key, bits that are ready (by string or number), the table for everything else.
IndexRow = tuple[str, str, dict[Any, int], Table]


@dataclass(frozen=True, slots=True)
class Index:
    """The tables of one collection. `checked` are the rules whose predicate is evaluated on candidates: their bits may be too wide."""

    size: int
    rows: tuple[IndexRow, ...]
    everyone: int
    checked: frozenset[int]


def build(predicates: Iterable[Node]) -> Index:
    """Compile the predicates of a collection, in reading order."""
    accepted = tuple(rows_of(predicate) for predicate in predicates)
    size = len(accepted)
    everyone = (1 << size) - 1
    by_row: dict[RowKey, list[tuple[int, Any]]] = defaultdict(list)
    for bit, rows in enumerate(accepted):
        for key, row in rows.rows.items():
            by_row[key].append((bit, row))
    checked = {bit for bit, rows in enumerate(accepted) if not rows.exact}
    listed: list[tuple[int, int, IndexRow]] = []
    for (kind, section, name), members in by_row.items():
        asked = sum_bits((bit for bit, _ in members), size)
        table: Table
        if kind is RowKind.VALUE:
            table = ValueTable(members, everyone ^ asked, size)
        elif kind is RowKind.MEMBERS:
            table = MemberTable(members, everyone ^ asked)
        else:
            table = RangeTable(members, everyone ^ asked, size, kind)
            if not table.exact:
                checked.update(bit for bit, _ in members)
        listed.append((len(members), len(table.ready), (section, name, table.ready, table)))
    # The attribute that most rules ask about comes first, then the one with the most values: it leaves the fewest candidates.
    listed.sort(key=lambda item: (-item[0], -item[1]))
    return Index(size, tuple(row for _, _, row in listed), everyone, frozenset(checked))


def sum_bits(bits: Iterable[int], size: int) -> int:
    """Return the integer with these bits set (in one pass: or-ing one by one costs the square of the size)."""
    field = bytearray(size // 8 + 1)
    for bit in bits:
        field[bit >> 3] |= 1 << (bit & 7)
    return int.from_bytes(field, "little")


def set_bits(bits: int) -> Iterator[int]:
    """Yield the places of the set bits, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
