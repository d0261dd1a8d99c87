"""What a rule's `when` means: attributes of the device context, operators, and predicates over them.

Pure. Types decide and nothing is converted (PRODUCT section 6). Checking what a person wrote is `rules.py`; finding the candidates
among many rules quickly is `index.py`. This file is the meaning both rest on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

#: The device context as `facts.py` makes it: section ("" is the top level) to key to value.
Facts = Mapping[str, Mapping[str, Any]]
Test = Callable[[Any], bool]


class AttributeType(Enum):
    """What an attribute of the device context holds."""

    STRING = "string"
    NUMBER = "number"
    LIST = "string list"
    ANY = "any type"


class Special(Enum):
    """Keys of values that are not themselves keys: a boolean is not the number that Python takes it for."""

    MISSING = "missing"
    TRUE = "true"
    FALSE = "false"
    OTHER = "other"


#: Every attribute that a rule may name, besides `attributes.<name>`.
ATTRIBUTES: dict[str, AttributeType] = {
    "install_id": AttributeType.STRING,
    "app.id": AttributeType.STRING,
    "app.version": AttributeType.STRING,
    "sdk.name": AttributeType.STRING,
    "sdk.version": AttributeType.STRING,
    "device.model": AttributeType.STRING,
    "device.manufacturer": AttributeType.STRING,
    "device.soc": AttributeType.STRING,
    "device.abi": AttributeType.STRING,
    "device.ram_mb": AttributeType.NUMBER,
    "device.accelerators": AttributeType.LIST,
    "os.name": AttributeType.STRING,
    "os.version": AttributeType.STRING,
    "os.api_level": AttributeType.NUMBER,
    "locale": AttributeType.STRING,
    "country": AttributeType.STRING,
    "groups": AttributeType.LIST,
}
ATTRIBUTES_PREFIX = "attributes."

EQUALITY = frozenset({"eq", "ne", "in", "not_in"})
ORDER = frozenset({"gt", "gte", "lt", "lte", "between"})
AFFIX = frozenset({"prefix", "suffix"})
MEMBERSHIP = frozenset({"contains_any", "contains_all"})
SEMVER = frozenset({"semver_gt", "semver_gte", "semver_lt", "semver_lte"})
OPERATORS = EQUALITY | ORDER | AFFIX | MEMBERSHIP | SEMVER | {"exists"}

#: major, minor, patch, 1 for a release or 0 for a pre-release, then the pre-release identifiers.
Version = tuple[int, int, int, int, tuple[tuple[int, int, str], ...]]

_SEMVER_LONGEST = 256
_NUMBER = r"(0|[1-9][0-9]*)"
_SEMVER = re.compile(
    rf"{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER})?)?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


@lru_cache(maxsize=16_384)
def semver(text: str) -> Version | None:
    """Return a key whose order is the precedence of SemVer 2.0 (semver.org, item 11), or None when `text` is no version.

    Missing parts count as 0: "16" is 16.0.0. Build metadata does not count.
    """
    if len(text) > _SEMVER_LONGEST:
        return None
    match = _SEMVER.fullmatch(text)
    if match is None:
        return None
    major, minor, patch, before = match.groups()
    numbers = (int(major), int(minor or 0), int(patch or 0))
    if before is None:
        return (*numbers, 1, ())
    identifiers: list[tuple[int, int, str]] = []
    for part in before.split("."):
        if not part.isdigit():
            identifiers.append((1, 0, part))
        elif part != "0" and part[0] == "0":
            return None
        else:
            identifiers.append((0, int(part), ""))
    return (*numbers, 0, tuple(identifiers))


def equality_key(value: Any) -> Any:
    """Return what two values must share to be equal: numbers by value, strings by case, booleans apart from numbers.

    Lists and objects have the key `OTHER`, which no value of a rule has.
    """
    kind = type(value)
    if kind is str or kind is int or kind is float:
        return value
    if kind is bool:
        return Special.TRUE if value else Special.FALSE
    return Special.MISSING if value is None else Special.OTHER


def is_number(value: Any) -> bool:
    """Say whether the value is a number; booleans are not."""
    return type(value) is int or type(value) is float


def split_path(path: str) -> tuple[str, str]:
    """Return section and key of an attribute: ("device", "soc"), ("", "country"), ("attributes", "a.b")."""
    section, dot, key = path.partition(".")
    return (section, key) if dot else ("", section)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One predicate. `test` says whether it holds for the attribute's value; None stands for a missing attribute."""

    attr: str
    op: str
    value: Any
    section: str = field(init=False, compare=False)
    key: str = field(init=False, compare=False)
    test: Test = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        section, key = split_path(self.attr)
        object.__setattr__(self, "section", section)
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "test", _TESTS[self.op](self.value))


@dataclass(frozen=True, slots=True)
class All:
    """Holds when every part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds when a part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Holds when its part does not."""

    part: Node


Node = Leaf | All | AnyOf | Not
#: `when` that is absent: always.
ALWAYS = All(())


def matches(node: Node, facts: Facts) -> bool:
    """Say whether the predicate holds for the device."""
    if type(node) is Leaf:
        return node.test(facts[node.section].get(node.key))
    if type(node) is All:
        return all(matches(part, facts) for part in node.parts)
    if type(node) is AnyOf:
        return any(matches(part, facts) for part in node.parts)
    assert type(node) is Not
    return not matches(node.part, facts)


def actual(leaf: Leaf, facts: Facts) -> Any:
    """Return the value that the device reported for the leaf's attribute; None: nothing."""
    return facts[leaf.section].get(leaf.key)


def _eq(wanted: Any) -> Test:
    key = equality_key(wanted)
    return lambda value: bool(equality_key(value) == key)


def _ne(wanted: Any) -> Test:
    key = equality_key(wanted)
    return lambda value: bool(equality_key(value) != key)


def _in(wanted: Sequence[Any]) -> Test:
    keys = frozenset(map(equality_key, wanted))
    return lambda value: equality_key(value) in keys


def _not_in(wanted: Sequence[Any]) -> Test:
    keys = frozenset(map(equality_key, wanted))
    return lambda value: equality_key(value) not in keys


def _between(wanted: Sequence[float]) -> Test:
    low, high = wanted
    return lambda value: is_number(value) and low <= value <= high


def _exists(wanted: bool) -> Test:
    return lambda value: (value is not None) is wanted


def _strings(value: Any) -> bool:
    return type(value) is list and all(type(member) is str for member in value)


def _contains_any(wanted: Sequence[str]) -> Test:
    members = frozenset(wanted)
    return lambda value: _strings(value) and not members.isdisjoint(value)


def _contains_all(wanted: Sequence[str]) -> Test:
    members = frozenset(wanted)
    return lambda value: _strings(value) and members.issubset(value)


def _semver_test(compare: Callable[[Version, Version], bool]) -> Callable[[str], Test]:
    def make(wanted: str) -> Test:
        limit = semver(wanted)
        assert limit is not None, "rules.py refuses values that are no version"

        def test(value: Any) -> bool:
            version = semver(value) if type(value) is str else None
            return version is not None and compare(version, limit)

        return test

    return make


_TESTS: dict[str, Callable[[Any], Test]] = {
    "eq": _eq,
    "ne": _ne,
    "in": _in,
    "not_in": _not_in,
    "gt": lambda limit: lambda value: is_number(value) and value > limit,
    "gte": lambda limit: lambda value: is_number(value) and value >= limit,
    "lt": lambda limit: lambda value: is_number(value) and value < limit,
    "lte": lambda limit: lambda value: is_number(value) and value <= limit,
    "between": _between,
    "exists": _exists,
    "prefix": lambda start: lambda value: type(value) is str and value.startswith(start),
    "suffix": lambda end: lambda value: type(value) is str and value.endswith(end),
    "contains_any": _contains_any,
    "contains_all": _contains_all,
    "semver_gt": _semver_test(lambda version, limit: version > limit),
    "semver_gte": _semver_test(lambda version, limit: version >= limit),
    "semver_lt": _semver_test(lambda version, limit: version < limit),
    "semver_lte": _semver_test(lambda version, limit: version <= limit),
}
