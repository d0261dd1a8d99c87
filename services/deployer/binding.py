"""Binding: collection rules, device facts and packages in, a package and the reason out.

Pure, and the only place where an answer is decided. Rules are compiled once per revision (`compile_rules`), bound to the catalogue
whenever a version or alias changes (`bind`), and opened for a moment (`Bound.at`): between two edges of time windows the open rules
stay the same. `decide` then reads memory only. It does not know devices, tables or HTTP.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from typing import Any

from services.deployer.bucketing import BUCKETS, murmur3, pick
from services.deployer.compatibility import Check, Package, blocker, runs
from services.deployer.index import Index, IndexRow, build, sum_bits
from services.deployer.predicates import Facts, Node, matches
from services.deployer.rules import Rule, Rules, Split, Target


class Reason(StrEnum):
    """Why an answer is what it is."""

    TARGETING_MATCH = "TARGETING_MATCH"
    SPLIT = "SPLIT"
    DEFAULT = "DEFAULT"
    NO_MATCH = "NO_MATCH"
    NO_COMPATIBLE_PACKAGE = "NO_COMPATIBLE_PACKAGE"
    HELD = "HELD"


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A version that became ready: its packages in order of preference. An archived one is known, but serves nobody."""

    packages: tuple[Package, ...]
    archived: bool = False


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What an account can serve: versions by (model, version), alias targets by (model, alias)."""

    versions: Mapping[tuple[str, int], VersionEntry]
    aliases: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Refused:
    """A package that something asked for and that cannot be served, with the condition that forbids it."""

    model_id: str
    version: int | None
    variant: str | None
    condition: str
    needed: Any
    reported: Any


@dataclass(frozen=True, slots=True)
class Option:
    """A target, bound: its packages in order, or (`missing`) why there is none."""

    target: Target
    version: int | None
    packages: tuple[Package, ...]
    missing: Refused | None


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """The answer that gives a package. One is made per rule and package when the rules are bound, none while answering."""

    reason: Reason
    rule_id: str | None
    package: Package
    ending: bytes = b""  # the last part of an ETag: which package


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer that gives none: `NO_MATCH`, or `NO_COMPATIBLE_PACKAGE` with every package that was looked at."""

    reason: Reason
    packages: tuple[Refused, ...] = ()


#: A bound option, ready to be tried: (package, the answer if it runs), in order.
_Ready = tuple[tuple[Package, Served], ...]
#: A rule as `decide` reads it: predicate (None: the index is exact), salt and dot, first bucket left out, split, options.
_Plan = tuple[Node | None, bytes | None, int, Split | None, tuple[_Ready, ...]]


@dataclass(frozen=True, slots=True)
class Compiled:
    """Rules with their index. Independent of the catalogue, so an alias move does not compile again."""

    rules: Rules
    index: Index

    @property
    def edges(self) -> tuple[float, ...]:
        """Moments (Unix seconds, ascending) at which a rule opens or closes."""
        windows = [rule.window for rule in self.rules.rules]
        return tuple(sorted({edge for window in windows for edge in (window.opens, window.closes) if edge is not None}))

    def targets(self) -> Iterable[Target]:
        """Return every target, the default's last."""
        for rule in self.rules.rules:
            yield from rule.options
        if self.rules.default is not None:
            yield self.rules.default

    @property
    def models(self) -> frozenset[str]:
        """Models that the rules serve: a change of any other model cannot change an answer."""
        return frozenset(target.model for target in self.targets())


def compile_rules(rules: Rules) -> Compiled:
    """Build the index of a document. Costs some microseconds per rule; not for the request path."""
    return Compiled(rules, build(rule.when for rule in rules.rules))


@dataclass(frozen=True, slots=True)
class Bound:
    """Compiled rules with everything they point at, for the time from `since` until `until` (Unix seconds).

    `epoch` names all of it: two processes with the same facts have the same epoch, and an answer can only change when it does.
    """

    compiled: Compiled
    options: tuple[tuple[Option, ...], ...]
    default: Option | None
    rows: tuple[IndexRow, ...]
    plans: tuple[_Plan, ...]
    ready_default: _Ready | None
    revision: int
    identity: str
    edges: tuple[float, ...]
    mark: int
    position: int = 0  # the mark, and how many edges lie behind: what comes later has a higher one, in every process
    open_rules: int = 0
    since: float = inf
    until: float = -inf
    epoch: str = ""
    tag: bytes = b""  # the first part of an ETag: position and epoch

    def at(self, now: float) -> Bound:
        """Return this with the rules that are open at `now` (Unix seconds); itself while nothing opened or closed."""
        if self.since <= now < self.until:
            return self
        rules = self.compiled.rules.rules
        open_rules = sum_bits((place for place, rule in enumerate(rules) if rule.window.is_open(now)), len(rules))
        since = max((edge for edge in self.edges if edge <= now), default=-inf)
        until = min((edge for edge in self.edges if edge > now), default=inf)
        epoch = hashlib.sha256(f"{self.identity}:{open_rules:x}".encode()).hexdigest()[:16]
        position = self.mark + bisect_right(self.edges, now)
        tag = f'"{position:013x}-{epoch}.'.encode()
        return replace(self, position=position, open_rules=open_rules, since=since, until=until, epoch=epoch, tag=tag)


def bind(compiled: Compiled, catalogue: Catalogue, *, collection: str, revision: int, content: str, mark: int = 0) -> Bound:
    """Bind rules to the catalogue. `content` is a digest of the revision's document, `mark` the collection's (0: nobody is served).

    The result is not open yet: call `at`.
    """
    options = tuple(tuple(bind_target(target, catalogue) for target in rule.options) for rule in compiled.rules.rules)
    default = None if compiled.rules.default is None else bind_target(compiled.rules.default, catalogue)
    plans = tuple(
        _plan(
            place,
            rule,
            tuple(_ready(option, Reason.TARGETING_MATCH if rule.split is None else Reason.SPLIT, rule.id) for option in bound),
            compiled.index.checked,
        )
        for place, (rule, bound) in enumerate(zip(compiled.rules.rules, options, strict=True))
    )
    bound_to = [
        [option.version, [package.digest for package in option.packages], option.missing.condition if option.missing else None]
        for group in (*options, (default,) if default else ())
        for option in group
    ]
    identity = hashlib.sha256(json.dumps([collection, revision, content, bound_to]).encode()).hexdigest()
    return Bound(
        compiled=compiled,
        options=options,
        default=default,
        rows=compiled.index.rows,
        plans=plans,
        ready_default=None if default is None else _ready(default, Reason.DEFAULT, None),
        revision=revision,
        identity=identity,
        edges=compiled.edges,
        mark=mark,
    )


def bind_target(target: Target, catalogue: Catalogue) -> Option:
    """Follow the alias and find the packages. What is missing or archived becomes a refusal that says so."""

    def missing(version: int | None, condition: str, needed: Any, reported: Any) -> Option:
        return Option(target, version, (), Refused(target.model, version, target.variant, condition, needed, reported))

    version = target.version
    if target.alias is not None:
        version = catalogue.aliases.get((target.model, target.alias))
        if version is None:
            return missing(None, "alias", target.alias, None)
    assert version is not None, "a target names a version or an alias"
    entry = catalogue.versions.get((target.model, version))
    if entry is None:
        return missing(version, "version", "ready", None)
    if entry.archived:
        return missing(version, "archived", False, True)
    packages = tuple(package for package in entry.packages if target.variant in (None, package.variant))
    if not packages:
        return missing(version, "variant", target.variant, [package.variant for package in entry.packages])
    return Option(target, version, packages, None)


def decide(bound: Bound, facts: Facts, install_id: str) -> Served | Refusal:
    """Return what this device gets. `bound` must be open for the present moment (`Bound.at`)."""
    candidates = bound.open_rules
    for section, key, known, table in bound.rows:
        value = facts[section].get(key)
        try:
            bits = known.get(value)
        except TypeError:  # a list or an object
            bits = None
        # As keys of a dictionary true and 1 are the same; the table knows the difference.
        candidates &= table.lookup(value) if bits is None or value is True or value is False else bits
        if not candidates:
            break
    tried: list[tuple[int, int]] = []
    while candidates:
        lowest = candidates & -candidates
        place = lowest.bit_length() - 1
        when, salt, limit, split, arms = bound.plans[place]
        if (when is None or matches(when, facts)) and (
            salt is None or (murmur3(salt + install_id.encode("utf-8", "surrogatepass")) * BUCKETS) >> 32 < limit
        ):
            arm = 0 if split is None else pick(split.salt, install_id, split.running)
            for package, served in arms[arm]:
                if runs(package, facts):
                    return served
            tried.append((place, arm))
        candidates ^= lowest
    if bound.ready_default is not None:
        for package, served in bound.ready_default:
            if runs(package, facts):
                return served
    return _refusal(bound, facts, tried)


def _plan(place: int, rule: Rule, arms: tuple[_Ready, ...], checked: frozenset[int]) -> _Plan:
    when = rule.when if place in checked else None
    if rule.rollout is None or rule.rollout.threshold >= BUCKETS:
        return when, None, 0, rule.split, arms
    return when, f"{rule.rollout.salt}.".encode("utf-8", "surrogatepass"), rule.rollout.threshold, rule.split, arms


def _ready(option: Option, reason: Reason, rule_id: str | None) -> _Ready:
    return tuple((package, Served(reason, rule_id, package, f'.{package.digest[:16]}"'.encode())) for package in option.packages)


def _refusal(bound: Bound, facts: Facts, tried: list[tuple[int, int]]) -> Refusal:
    options = [bound.options[place][arm] for place, arm in tried]
    if bound.default is not None:
        options.append(bound.default)
    if not options:
        return Refusal(Reason.NO_MATCH)
    return no_compatible_package(item for option in options for item in _refused(option, facts))


def no_compatible_package(entries: Iterable[Refused]) -> Refusal:
    """Return the refusal that names each package once, in reading order, however many rules led to it."""
    unique: dict[tuple[Any, ...], Refused] = {}
    for item in entries:
        unique.setdefault((item.model_id, item.version, item.variant, item.condition, repr(item.needed)), item)
    return Refusal(Reason.NO_COMPATIBLE_PACKAGE, tuple(unique.values()))


def _refused(option: Option, facts: Facts) -> list[Refused]:
    if option.missing is not None:
        return [option.missing]
    return [refused(package, check) for package in option.packages if (check := blocker(package, facts)) is not None]


def refused(package: Package, check: Check) -> Refused:
    """Return the entry of a refusal for a package and the condition that does not hold."""
    return Refused(package.model_id, package.version, package.variant, check.condition, check.needed, check.reported)
