"""Whether what the rules serve is there: unknown models, versions, aliases and variants, archived versions.

Pure. Which of the problems may pass by themselves (an event is still on its way) is said with each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.deployer.binding import Catalogue
from services.deployer.rules import Rules, Target


@dataclass(frozen=True, slots=True)
class TargetProblem:
    """One target that cannot be served. `passing`: the version may become ready in a moment."""

    field: str
    code: str
    detail: str
    passing: bool

    def document(self) -> dict[str, str]:
        """Return the entry of a problem's `errors`."""
        return {"field": self.field, "code": self.code, "detail": self.detail}


def named_versions(rules: Rules) -> set[tuple[str, int]]:
    """Return the versions that the rules name themselves."""
    return {(target.model, target.version) for _, target in _targets(rules) if target.version is not None}


def target_problems(rules: Rules, catalogue: Catalogue, known_models: frozenset[str]) -> list[TargetProblem]:
    """Return what publishing refuses, in reading order. `known_models` are those of which any version was ever ready."""
    found = (_problem(at, target, catalogue, known_models) for at, target in _targets(rules))
    return [problem for problem in found if problem is not None]


def _targets(rules: Rules) -> Iterator[tuple[str, Target]]:
    for place, rule in enumerate(rules.rules):
        for option, target in enumerate(rule.options):
            yield (f"rules[{place}].serve" if rule.split is None else f"rules[{place}].serve.split[{option}]"), target
    if rules.default is not None:
        yield "default", rules.default


def _problem(at: str, target: Target, catalogue: Catalogue, known_models: frozenset[str]) -> TargetProblem | None:
    version = target.version
    if target.alias is not None:
        version = catalogue.aliases.get((target.model, target.alias))
    if target.model not in known_models:
        return TargetProblem(f"{at}.model", "UNKNOWN_MODEL", f"no version of model {target.model!r} is ready", passing=True)
    if version is None:
        return TargetProblem(f"{at}.alias", "UNKNOWN_ALIAS", f"model {target.model!r} has no alias {target.alias!r}", passing=True)
    entry = catalogue.versions.get((target.model, version))
    where = f"{at}.version" if target.alias is None else f"{at}.alias"
    if entry is None or not (entry.packages or entry.archived):
        return TargetProblem(where, "VERSION_NOT_READY", f"version {version} of model {target.model!r} is not ready", passing=True)
    if entry.archived:
        return TargetProblem(where, "VERSION_ARCHIVED", f"version {version} of model {target.model!r} is archived", passing=False)
    variants = [package.variant for package in entry.packages]
    if target.variant is not None and target.variant not in variants:
        detail = f"version {version} of model {target.model!r} has the variants {', '.join(variants)}"
        return TargetProblem(f"{at}.variant", "UNKNOWN_VARIANT", detail, passing=False)
    return None
