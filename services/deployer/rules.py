"""The rules document: what a person wrote, checked field by field and turned into values.

Pure. Everything wrong is reported at once, each with the path of its field. Whether models, versions and aliases exist is not known
here (`binding.py` asks the catalogue).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import accumulate
from typing import Any

from services.deployer.bucketing import threshold
from services.deployer.predicate_syntax import MAX_STRING, Problems, parse_when
from services.deployer.predicates import ALWAYS, Node

MAX_RULES = 10_000
MAX_OPTIONS = 32
MAX_WEIGHT = 1_000_000

_RULE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Target:
    """What to serve: a version, or an alias that is followed when the device asks; one variant, or the first that runs."""

    model: str
    version: int | None = None
    alias: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """When a rule is open: Unix seconds, the start included, the end excluded; None is open on that side."""

    opens: float | None = None
    closes: float | None = None

    def is_open(self, now: float) -> bool:
        """Say whether `now` (Unix seconds) lies inside."""
        return (self.opens is None or now >= self.opens) and (self.closes is None or now < self.closes)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A percentage of the installs. `threshold` is the first bucket left out (`bucketing.py`)."""

    percent: float
    salt: str
    threshold: int


@dataclass(frozen=True, slots=True)
class Split:
    """How installs are divided among the options: running sums of their weights."""

    salt: str
    weights: tuple[int, ...]
    running: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It has one option, or several with a split that says who gets which."""

    id: str
    when: Node
    window: Window
    rollout: Rollout | None
    options: tuple[Target, ...]
    split: Split | None


@dataclass(frozen=True, slots=True)
class Rules:
    """A whole document: rules in reading order, and what is served when none of them serves."""

    rules: tuple[Rule, ...]
    default: Target | None


class RulesProblem(ValueError):
    """The document is wrong. `errors` holds one `{"field", "code", "detail"}` per problem, `total` how many there are in all."""

    def __init__(self, errors: list[dict[str, str]], total: int) -> None:
        super().__init__(f"{total} problem(s) in the rules")
        self.errors = errors
        self.total = total


def parse_rules(document: Any) -> Rules:
    """Return the document as values. Raises `RulesProblem` with everything that is wrong in it."""
    problems = Problems()
    rules: list[Rule] = []
    default = None
    if problems.check_object("", document, {"rules", "default"}):
        listed = document.get("rules", [])
        if not isinstance(listed, list):
            problems.add("rules", "WRONG_TYPE", "a list of rules is needed")
        elif len(listed) > MAX_RULES:
            problems.add("rules", "TOO_MANY", f"at most {MAX_RULES} rules fit into a collection, these are {len(listed)}")
        else:
            rules = [rule for place, item in enumerate(listed) if (rule := _rule(problems, f"rules[{place}]", item)) is not None]
            _check_unique(problems, listed)
        if document.get("default") is not None:
            default = _target(problems, "default", document["default"], extra=frozenset())
    if problems.total:
        raise RulesProblem(problems.errors, problems.total)
    return Rules(tuple(rules), default)


def _check_unique(problems: Problems, listed: list[Any]) -> None:
    seen: dict[str, int] = {}
    for place, item in enumerate(listed):
        name = item.get("id") if isinstance(item, dict) else None
        if isinstance(name, str) and seen.setdefault(name, place) != place:
            problems.add(f"rules[{place}].id", "DUPLICATE_ID", f"rules[{seen[name]}] has the id {name!r} already")


def _rule(problems: Problems, at: str, item: Any) -> Rule | None:
    if not problems.check_object(at, item, {"id", "when", "active", "rollout", "serve"}, required={"id", "serve"}):
        return None
    name = item.get("id")
    if "id" in item and not (isinstance(name, str) and _RULE_ID.fullmatch(name)):
        problems.add(f"{at}.id", "INVALID_ID", "an id has 1 to 64 letters, digits, '.', '_' or '-' and starts with a letter or digit")
    when = parse_when(problems, f"{at}.when", item["when"]) if item.get("when") is not None else ALWAYS
    window = _window(problems, f"{at}.active", item["active"]) if item.get("active") is not None else Window()
    rollout = _rollout(problems, f"{at}.rollout", item["rollout"]) if item.get("rollout") is not None else None
    options, split = _serve(problems, f"{at}.serve", item["serve"]) if "serve" in item else ((), None)
    if split is not None and rollout is not None and split.salt == rollout.salt:
        problems.add(
            f"{at}.serve.salt", "SAME_SALT", "a split needs a salt of its own: with the rollout's, its arms would be cut by the percentage"
        )
    if when is None or not options or not isinstance(name, str):
        return None
    return Rule(name, when, window, rollout, options, split)


def _window(problems: Problems, at: str, item: Any) -> Window:
    if not problems.check_object(at, item, {"from", "until"}):
        return Window()
    opens = _moment(problems, f"{at}.from", item.get("from"))
    closes = _moment(problems, f"{at}.until", item.get("until"))
    if opens is not None and closes is not None and closes <= opens:
        problems.add(f"{at}.until", "NEVER_OPEN", "'until' must be later than 'from': the window would never be open")
    return Window(opens, closes)


def _moment(problems: Problems, at: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        if not isinstance(value, str) or len(value) > 40 or "T" not in value.upper():
            raise ValueError
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        problems.add(at, "INVALID_TIME", "a moment is RFC 3339 with a zone, for example 2026-12-01T00:00:00Z, or null")
        return None


def _rollout(problems: Problems, at: str, item: Any) -> Rollout | None:
    if not problems.check_object(at, item, {"percent", "salt"}, required={"percent", "salt"}):
        return None
    salt = _salt(problems, f"{at}.salt", item)
    percent = item.get("percent")
    if "percent" not in item:
        return None
    if type(percent) not in (int, float):
        problems.add(f"{at}.percent", "WRONG_TYPE", "a percentage is a number")
        return None
    if not 0 <= percent <= 100:
        problems.add(f"{at}.percent", "OUT_OF_RANGE", f"a percentage lies between 0 and 100, this is {percent}")
        return None
    if (Fraction(str(percent)) * 1000).denominator != 1:
        problems.add(f"{at}.percent", "TOO_FINE", "a percentage has at most three decimals")
        return None
    return Rollout(percent, salt, threshold(percent))


def _salt(problems: Problems, at: str, item: Mapping[str, Any]) -> str:
    salt = item.get("salt")
    if isinstance(salt, str) and 0 < len(salt) <= MAX_STRING:
        return salt
    if "salt" in item:
        problems.add(at, "INVALID_SALT", f"a salt is a text of 1 to {MAX_STRING} characters")
    return ""


def _serve(problems: Problems, at: str, item: Any) -> tuple[tuple[Target, ...], Split | None]:
    if not isinstance(item, dict) or "split" not in item:
        target = _target(problems, at, item, extra=frozenset())
        return ((target,) if target else ()), None
    problems.check_object(at, item, {"split", "salt"}, required={"split", "salt"})
    salt = _salt(problems, f"{at}.salt", item)
    arms = item["split"]
    if not isinstance(arms, list):
        problems.add(f"{at}.split", "WRONG_TYPE", "a split is a list of options")
        return (), None
    if not 0 < len(arms) <= MAX_OPTIONS:
        problems.add(f"{at}.split", "EMPTY" if not arms else "TOO_MANY", f"a split has 1 to {MAX_OPTIONS} options")
        return (), None
    options, weights = [], []
    for place, arm in enumerate(arms):
        target = _target(problems, f"{at}.split[{place}]", arm, extra=frozenset({"weight"}))
        weight = arm.get("weight") if isinstance(arm, dict) else None
        if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT:
            if target is not None and "weight" in arm:
                problems.add(f"{at}.split[{place}].weight", "INVALID_WEIGHT", f"a weight is a whole number from 0 to {MAX_WEIGHT}")
            continue
        if target is not None:
            options.append(target)
            weights.append(weight)
    if len(options) == len(arms) and not sum(weights):
        problems.add(f"{at}.split", "NO_WEIGHT", "at least one option needs a weight above 0")
    if not options or not sum(weights):
        return (), None
    return tuple(options), Split(salt, tuple(weights), tuple(accumulate(weights)))


def _target(problems: Problems, at: str, item: Any, *, extra: frozenset[str]) -> Target | None:
    known = {"model", "version", "alias", "variant"} | extra
    if not problems.check_object(at, item, known, required={"model"} | extra):
        return None
    before = problems.total
    for name in ("model", "alias", "variant"):
        value = item.get(name)
        if value is not None and not (isinstance(value, str) and _SLUG.fullmatch(value)):
            problems.add(f"{at}.{name}", "INVALID_NAME", "a name has 1 to 64 lower-case letters, digits, '.', '_' or '-'")
    version = item.get("version")
    if version is not None and (type(version) is not int or not 1 <= version < 2**31):
        problems.add(f"{at}.version", "WRONG_TYPE", "a version is a whole number from 1 on")
    if (version is None) == (item.get("alias") is None):
        problems.add(at, "VERSION_OR_ALIAS", "name either a version or an alias")
    if item.get("model") is None:
        if "model" in item:
            problems.add(f"{at}.model", "REQUIRED", "a model is needed")
        return None
    if problems.total > before:
        return None
    return Target(item["model"], version, item.get("alias"), item.get("variant"))
