"""Checks and reads `when`: from JSON values to the predicates of `predicates.py`, with one problem per wrong field.

Pure. An attribute that no device can have, an operator that does not take the attribute's type and a value of another type are
refused here, because such a predicate could never hold.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

from services.deployer.predicates import (
    AFFIX,
    ATTRIBUTES,
    ATTRIBUTES_PREFIX,
    EQUALITY,
    MEMBERSHIP,
    OPERATORS,
    ORDER,
    SEMVER,
    All,
    AnyOf,
    AttributeType,
    Leaf,
    Node,
    Not,
    semver,
)

#: all, any and not, one inside the other.
MAX_DEPTH = 8
MAX_LEAVES = 256
MAX_VALUES = 1_000
MAX_STRING = 1_024
MAX_REPORTED = 100

_ATTRIBUTE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_LARGEST_NUMBER = 2**53


class Problems:
    """Collects what is wrong. The first `MAX_REPORTED` are kept, all are counted."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []
        self.total = 0

    def add(self, at: str, code: str, detail: str) -> None:
        """Note a problem of the field `at` ("" is the document)."""
        self.total += 1
        if len(self.errors) < MAX_REPORTED:
            self.errors.append({"field": at, "code": code, "detail": detail})

    def check_object(self, at: str, item: Any, known: Set[str], required: Set[str] = frozenset()) -> bool:
        """Say whether `item` is an object; note fields that are unknown or missing."""
        if not isinstance(item, dict):
            self.add(at, "WRONG_TYPE", "an object is needed")
            return False
        start = f"{at}." if at else ""
        for name in item:
            if name not in known:
                self.add(f"{start}{str(name)[:64]}", "UNKNOWN_FIELD", f"known fields are {', '.join(sorted(known))}")
        for name in sorted(required - item.keys()):
            self.add(f"{start}{name}", "REQUIRED", "this field is needed")
        return True


def parse_when(problems: Problems, at: str, item: Any) -> Node | None:
    """Return the predicate, or None after noting what is wrong with it."""
    leaves = [0]
    node = _node(problems, at, item, 0, leaves)
    if leaves[0] > MAX_LEAVES:
        problems.add(at, "TOO_MANY", f"a rule has at most {MAX_LEAVES} predicates, this one has {leaves[0]}")
        return None
    return node


def _node(problems: Problems, at: str, item: Any, depth: int, leaves: list[int]) -> Node | None:
    if not isinstance(item, dict):
        problems.add(at, "WRONG_TYPE", "a predicate is an object")
        return None
    name = next((name for name in ("all", "any", "not") if name in item), None)
    if name is None:
        leaves[0] += 1
        return _leaf(problems, at, item)
    if len(item) != 1:
        problems.add(at, "MIXED_PREDICATE", "an object has either 'all', 'any' or 'not' alone, or 'attr', 'op' and 'value'")
    elif depth == MAX_DEPTH:
        problems.add(at, "TOO_DEEP", f"'all', 'any' and 'not' nest at most {MAX_DEPTH} deep")
    elif name == "not":
        inner = _node(problems, f"{at}.not", item["not"], depth + 1, leaves)
        return None if inner is None else Not(inner)
    else:
        parts = _parts(problems, f"{at}.{name}", item[name], depth + 1, leaves)
        if parts is not None:
            return All(parts) if name == "all" else AnyOf(parts)
    return None


def _parts(problems: Problems, at: str, items: Any, depth: int, leaves: list[int]) -> tuple[Node, ...] | None:
    if not isinstance(items, list):
        problems.add(at, "WRONG_TYPE", "a list of predicates is needed")
    elif not items:
        problems.add(at, "EMPTY", "a list of at least one predicate is needed")
    elif len(items) > MAX_LEAVES:
        problems.add(at, "TOO_MANY", f"at most {MAX_LEAVES} predicates stand in one rule")
    else:
        read = [_node(problems, f"{at}[{place}]", item, depth, leaves) for place, item in enumerate(items)]
        good = tuple(part for part in read if part is not None)
        return good if len(good) == len(read) else None
    return None


def _leaf(problems: Problems, at: str, item: dict[str, Any]) -> Leaf | None:
    problems.check_object(at, item, {"attr", "op", "value"}, required={"attr", "op", "value"})
    if not item.keys() >= {"attr", "op", "value"} or len(item) > 3:
        return None
    attr, op, value = item["attr"], item["op"], item["value"]
    kind = _attribute_type(attr)
    if kind is None:
        problems.add(f"{at}.attr", "UNKNOWN_ATTRIBUTE", f"known attributes are {', '.join(ATTRIBUTES)} and attributes.<name>")
        return None
    if not isinstance(op, str) or op not in OPERATORS:
        problems.add(f"{at}.op", "UNKNOWN_OPERATOR", f"known operators are {', '.join(sorted(OPERATORS))}")
        return None
    trouble = _operator_trouble(kind, op)
    if trouble:
        problems.add(f"{at}.op", "WRONG_OPERATOR", f"{attr} holds a {kind.value}: {trouble}")
        return None
    before = problems.total
    _check_value(problems, f"{at}.value", kind, op, value)
    return Leaf(attr, op, _frozen(value)) if problems.total == before else None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _attribute_type(attr: Any) -> AttributeType | None:
    if not isinstance(attr, str):
        return None
    if attr.startswith(ATTRIBUTES_PREFIX) and _ATTRIBUTE_NAME.fullmatch(attr[len(ATTRIBUTES_PREFIX) :]):
        return AttributeType.ANY
    return ATTRIBUTES.get(attr)


def _operator_trouble(kind: AttributeType, op: str) -> str:
    if kind is AttributeType.ANY or op == "exists":
        return ""
    taken = {
        AttributeType.STRING: EQUALITY | AFFIX | SEMVER,
        AttributeType.NUMBER: EQUALITY | ORDER,
        AttributeType.LIST: MEMBERSHIP,
    }[kind]
    return "" if op in taken else f"'{op}' does not take that; use one of {', '.join(sorted(taken))} or exists"


def _check_value(problems: Problems, at: str, kind: AttributeType, op: str, value: Any) -> None:
    if op == "exists":
        if type(value) is not bool:
            problems.add(at, "WRONG_TYPE", "'exists' has the value true or false")
    elif op == "between":
        _check_between(problems, at, value)
    elif op in SEMVER:
        if not isinstance(value, str) or semver(value) is None:
            problems.add(at, "INVALID_VERSION", f"'{op}' has a semantic version as value, for example \"4.2.0\"")
    elif op in MEMBERSHIP or op in ("in", "not_in"):
        member_kind = AttributeType.STRING if op in MEMBERSHIP else kind
        if _check_list(problems, at, op, value):
            for place, member in enumerate(value):
                _check_scalar(problems, f"{at}[{place}]", member_kind, member)
    else:
        wanted = AttributeType.NUMBER if op in ORDER else AttributeType.STRING if op in AFFIX else kind
        _check_scalar(problems, at, wanted, value)


def _check_between(problems: Problems, at: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) != 2 or not all(type(end) in (int, float) for end in value):
        problems.add(at, "WRONG_TYPE", "'between' has a list of two numbers, both included")
        return
    for place, end in enumerate(value):
        _check_scalar(problems, f"{at}[{place}]", AttributeType.NUMBER, end)
    if value[0] > value[1]:
        problems.add(at, "EMPTY_RANGE", "the first number of 'between' may not be above the second: nothing would lie between")


def _check_list(problems: Problems, at: str, op: str, value: Any) -> bool:
    if not isinstance(value, list):
        problems.add(at, "WRONG_TYPE", f"'{op}' has a list as value")
    elif not value:
        problems.add(at, "EMPTY", f"'{op}' needs at least one value")
    elif len(value) > MAX_VALUES:
        problems.add(at, "TOO_MANY", f"'{op}' takes at most {MAX_VALUES} values, these are {len(value)}")
    else:
        return True
    return False


def _check_scalar(problems: Problems, at: str, kind: AttributeType, value: Any) -> None:
    if type(value) is str:
        if kind is AttributeType.NUMBER:
            problems.add(at, "WRONG_TYPE", "a number is needed; nothing is converted")
        elif len(value) > MAX_STRING:
            problems.add(at, "TOO_LONG", f"a text has at most {MAX_STRING} characters")
    elif type(value) in (int, float):
        if kind is AttributeType.STRING:
            problems.add(at, "WRONG_TYPE", "a text is needed; nothing is converted")
        elif not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
            problems.add(at, "OUT_OF_RANGE", "a number lies between -2^53 and 2^53")
    elif type(value) is bool:
        if kind is not AttributeType.ANY:
            problems.add(at, "WRONG_TYPE", f"a {'number' if kind is AttributeType.NUMBER else 'text'} is needed, not true or false")
    else:
        problems.add(at, "WRONG_TYPE", "a text, a number or a boolean is needed")
