"""For each attribute, the values with which a predicate can still hold: the algebra behind the rule index and the lint.

Pure. A predicate is taken apart into rows, one per attribute and kind of question (equality, order of numbers, order of versions,
members of a list). Each row is a *necessary* condition: it may accept too much, never too little. When all rows together are the
predicate itself, the rows are called exact and nothing has to be checked again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from typing import Any

from services.deployer.predicates import (
    AFFIX,
    EQUALITY,
    MEMBERSHIP,
    ORDER,
    All,
    AnyOf,
    Leaf,
    Node,
    Not,
    Special,
    equality_key,
    is_number,
    semver,
)


class RowKind(IntEnum):
    """Which question about the attribute a row answers."""

    VALUE = 0
    NUMBER = 1
    SEMVER = 2
    MEMBERS = 3


#: Which question, section, key.
RowKey = tuple[RowKind, str, str]
#: A value and 0 for just below it, 1 for just above: where an ordered set begins or ends.
Cut = tuple[Any, int]


@dataclass(frozen=True, slots=True)
class Keys:
    """A set of equality keys, or with `but` everything except these."""

    keys: frozenset[Any]
    but: bool = False

    def inverted(self) -> Keys:
        """Return everything else."""
        return Keys(self.keys, not self.but)

    def both(self, other: Keys) -> Keys:
        """Return what is in both sets."""
        if self.but and other.but:
            return Keys(self.keys | other.keys, True)
        if not self.but and not other.but:
            return Keys(self.keys & other.keys)
        listed, left_out = (other, self) if self.but else (self, other)
        return Keys(listed.keys - left_out.keys)

    def either(self, other: Keys) -> Keys:
        """Return what is in one of the sets."""
        return self.inverted().both(other.inverted()).inverted()

    @property
    def empty(self) -> bool:
        """Whether nothing is in it."""
        return not self.but and not self.keys


@dataclass(frozen=True, slots=True)
class Ranges:
    """A set of ordered values: `start` says whether the smallest are in, each cut changes it. `others` stands for all that has no order."""

    others: bool
    start: bool
    cuts: tuple[Cut, ...]

    def accepts_at(self, value: Any) -> bool:
        """Say whether an ordered value is in the set."""
        return self.start is not bool(bisect_right(self.cuts, (value, 0)) & 1)

    def inverted(self) -> Ranges:
        """Return everything else."""
        return Ranges(not self.others, not self.start, self.cuts)

    def _combined(self, other: Ranges, rule: Callable[[bool, bool], bool]) -> Ranges:
        here, there = self.start, other.start
        now = start = rule(here, there)
        mine, theirs = set(self.cuts), set(other.cuts)
        cuts = []
        for cut in sorted(mine | theirs):
            here, there = here is not (cut in mine), there is not (cut in theirs)
            if rule(here, there) is not now:
                now = not now
                cuts.append(cut)
        return Ranges(rule(self.others, other.others), start, tuple(cuts))

    def both(self, other: Ranges) -> Ranges:
        """Return what is in both sets."""
        return self._combined(other, lambda here, there: here and there)

    def either(self, other: Ranges) -> Ranges:
        """Return what is in one of the sets."""
        return self._combined(other, lambda here, there: here or there)

    @property
    def empty(self) -> bool:
        """Whether nothing is in it."""
        return not self.others and not self.start and not self.cuts


@dataclass(frozen=True, slots=True)
class Members:
    """Lists of strings that share at least one member with `any_of`."""

    any_of: frozenset[str]

    def both(self, other: Members) -> Members:
        """Return a set that holds what is in both: the smaller one, as wide as it may be."""
        return self if len(self.any_of) <= len(other.any_of) else other

    def either(self, other: Members) -> Members:
        """Return what is in one of the sets."""
        return Members(self.any_of | other.any_of)

    @property
    def empty(self) -> bool:
        """Whether nothing is in it: never, `contains_*` lists are not empty."""
        return False


Acceptance = Keys | Ranges | Members


@dataclass(frozen=True, slots=True)
class Rows:
    """What a predicate accepts. An attribute without a row is not narrowed. `exact`: the rows together are the predicate."""

    rows: dict[RowKey, Acceptance]
    exact: bool

    @property
    def never(self) -> bool:
        """Whether some row accepts nothing, so that the predicate cannot hold."""
        return any(row.empty for row in self.rows.values())


def rows_of(node: Node, *, negated: bool = False) -> Rows:
    """Return the rows of a predicate, or of its negation."""
    if isinstance(node, Leaf):
        return _leaf_rows(node, negated)
    if isinstance(node, Not):
        return rows_of(node.part, negated=not negated)
    parts = [rows_of(part, negated=negated) for part in node.parts]
    if isinstance(node, All) is not negated:
        return _all(parts)
    assert isinstance(node, (All, AnyOf))
    return _any(parts)


def _all(parts: list[Rows]) -> Rows:
    rows: dict[RowKey, Acceptance] = {}
    exact = True
    for part in parts:
        exact = exact and part.exact
        for key, row in part.rows.items():
            before = rows.get(key)
            # The intersection of two member rows is wider than both conditions.
            exact = exact and not (before is not None and key[0] is RowKind.MEMBERS)
            rows[key] = row if before is None else _both(before, row)
    return Rows(rows, exact)


def _any(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Rows({}, False)
    shared = reduce(lambda keys, part: keys & part.rows.keys(), parts[1:], set(parts[0].rows))
    rows = {key: reduce(_either, [part.rows[key] for part in parts]) for key in shared}
    # Or distributes over one row only: (a and b) or c has no rows of its own.
    exact = all(part.exact and len(part.rows) == 1 for part in parts) and len(rows) == 1
    return Rows(rows, exact)


def _both(one: Acceptance, other: Acceptance) -> Acceptance:
    return one.both(other)  # type: ignore[arg-type]  # rows of one key are of one class


def _either(one: Acceptance, other: Acceptance) -> Acceptance:
    return one.either(other)  # type: ignore[arg-type]  # rows of one key are of one class


def _leaf_rows(leaf: Leaf, negated: bool) -> Rows:
    if leaf.op in AFFIX:
        if negated:
            return Rows({}, False)
        return Rows({(RowKind.VALUE, leaf.section, leaf.key): Keys(frozenset(Special), True)}, False)
    if leaf.op in MEMBERSHIP:
        if negated:
            return Rows({}, False)
        row = Members(frozenset(leaf.value))
        return Rows({(RowKind.MEMBERS, leaf.section, leaf.key): row}, leaf.op == "contains_any" or len(row.any_of) == 1)
    accepted: Keys | Ranges
    if leaf.op in EQUALITY or leaf.op == "exists":
        kind, accepted = RowKind.VALUE, _keys(leaf)
    elif leaf.op in ORDER:
        kind, accepted = RowKind.NUMBER, _ranges(leaf.op, leaf.value)
    else:
        kind, accepted = RowKind.SEMVER, _ranges(leaf.op.removeprefix("semver_"), semver(leaf.value))
    return Rows({(kind, leaf.section, leaf.key): accepted.inverted() if negated else accepted}, True)


def _keys(leaf: Leaf) -> Keys:
    if leaf.op == "exists":
        return Keys(frozenset({Special.MISSING}), leaf.value)
    values = leaf.value if leaf.op in ("in", "not_in") else (leaf.value,)
    return Keys(frozenset(map(equality_key, values)), leaf.op in ("ne", "not_in"))


def _ranges(op: str, limit: Any) -> Ranges:
    if op == "between":
        low, high = limit
        return Ranges(False, False, ((low, 0), (high, 1)))
    side = 0 if op in ("gte", "lt") else 1
    return Ranges(False, op in ("lt", "lte"), ((limit, side),))


def subset(inner: Rows, outer: Rows) -> bool:
    """Say whether everything that `inner` accepts is accepted by `outer`. No means: not known."""
    if inner.never:
        return True
    return outer.exact and all(_row_subset(inner, key, row) for key, row in outer.rows.items())


def disjoint(one: Rows, other: Rows) -> bool:
    """Say whether no device is accepted by both. No means: not known."""
    if one.never or other.never:
        return True
    for key, row in one.rows.items():
        against = other.rows.get(key)
        if against is not None and key[0] is not RowKind.MEMBERS and _both(row, against).empty:
            return True
    return _listed_outside(one, other) or _listed_outside(other, one)


def _row_subset(inner: Rows, key: RowKey, row: Acceptance) -> bool:
    mine = inner.rows.get(key)
    if isinstance(row, Members):
        return isinstance(mine, Members) and mine.any_of <= row.any_of
    if mine is not None and _both(mine, row.inverted()).empty:
        return True
    # A finite list of values can be held against any other kind of row of the same attribute.
    listed = inner.rows.get((RowKind.VALUE, key[1], key[2]))
    return isinstance(listed, Keys) and not listed.but and all(_accepts(key[0], row, value) for value in listed.keys)


def _listed_outside(one: Rows, other: Rows) -> bool:
    for (kind, section, name), row in one.rows.items():
        if kind is not RowKind.VALUE or not isinstance(row, Keys) or row.but:
            continue
        for against in (RowKind.NUMBER, RowKind.SEMVER):
            ranges = other.rows.get((against, section, name))
            if ranges is not None and not any(_accepts(against, ranges, value) for value in row.keys):
                return True
    return False


def _accepts(kind: RowKind, row: Acceptance, key: Any) -> bool:
    """Say whether the row accepts a value given by its equality key."""
    if isinstance(row, Keys):
        return (key in row.keys) is not row.but
    assert isinstance(row, Ranges)
    if kind is RowKind.NUMBER:
        return row.accepts_at(key) if is_number(key) else row.others
    version = semver(key) if type(key) is str else None
    return row.others if version is None else row.accepts_at(version)
