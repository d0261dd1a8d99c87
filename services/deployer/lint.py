"""What is odd about a document that is otherwise right: rules that nobody reaches, that hide behind another, that overlap.

Pure. A warning never stops a publish. Compatibility is left aside: a rule behind a catch-all still serves devices that cannot run
what the catch-all serves, and the texts say so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from services.deployer.acceptance import Rows, disjoint, rows_of, subset
from services.deployer.rules import Rule, Rules

#: Pairs are compared among the first this many rules; the time grows with the square.
MAX_COMPARED = 400
MAX_OVERLAPS = 100
#: More rules than this in one collection make an answer noticeably slower (about 75 microseconds at a million).
MANY_RULES = 2_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning: a stable code, the rule it is about, the earlier rule that causes it, and a sentence."""

    code: str
    severity: str
    rule_id: str | None
    other_rule_id: str | None
    detail: str

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def lint(rules: Rules, now: float) -> list[Finding]:
    """Return findings in reading order. `now` (Unix seconds) tells which windows have closed for good."""
    findings: list[Finding] = []
    compared = [(rule, rows_of(rule.when)) for rule in rules.rules[:MAX_COMPARED]]
    overlaps = 0
    for place, rule in enumerate(rules.rules):
        dead = _dead(rule, rows_of(rule.when) if place >= MAX_COMPARED else compared[place][1], now)
        if dead is not None:
            findings.append(Finding("UNREACHABLE", "warning", rule.id, None, dead))
        elif place < MAX_COMPARED:
            before, overlapping = _against_earlier(compared, place, now)
            if before is not None:
                findings.append(before)
                continue
            for finding in overlapping[: MAX_OVERLAPS - overlaps]:
                findings.append(finding)
                overlaps += 1
    if len(rules.rules) > MAX_COMPARED:
        detail = f"only the first {MAX_COMPARED} rules were compared with each other"
        findings.append(Finding("NOT_COMPARED", "notice", None, None, detail))
    if overlaps == MAX_OVERLAPS:
        findings.append(Finding("MORE_OVERLAPS", "notice", None, None, f"only the first {MAX_OVERLAPS} overlaps are listed"))
    if len(rules.rules) > MANY_RULES:
        detail = f"{len(rules.rules)} rules in one collection: above {MANY_RULES} each answer and each publish takes noticeably longer"
        findings.append(Finding("MANY_RULES", "warning", None, None, detail))
    if rules.default is None:
        findings.append(Finding("NO_DEFAULT", "notice", None, None, "a device that no rule serves gets the answer NO_MATCH"))
    return findings


def _dead(rule: Rule, rows: Rows, now: float) -> str | None:
    if rows.never:
        return "its conditions contradict each other: no device meets them all"
    if rule.rollout is not None and rule.rollout.threshold <= 0:
        return "its percentage is 0"
    if rule.window.closes is not None and rule.window.closes <= now:
        return "its time window has closed for good"
    return None


def _against_earlier(compared: list[tuple[Rule, Rows]], place: int, now: float) -> tuple[Finding | None, list[Finding]]:
    rule, rows = compared[place]
    overlapping = []
    for earlier, accepted in compared[:place]:
        if _dead(earlier, accepted, now) is not None or not _windows_meet(earlier, rule):
            continue
        if _takes_all(earlier, rule, now) and subset(rows, accepted):
            detail = f"every device that meets it is served by {earlier.id!r} before, unless it cannot run what {earlier.id!r} serves"
            return Finding("SHADOWED", "warning", rule.id, earlier.id, detail), []
        if earlier.options != rule.options and not disjoint(rows, accepted):
            detail = f"a device can meet both; {earlier.id!r} comes first and decides"
            overlapping.append(Finding("OVERLAPPING", "notice", rule.id, earlier.id, detail))
    return None, overlapping


def _takes_all(earlier: Rule, later: Rule, now: float) -> bool:
    """Say whether the earlier rule leaves nobody out, from now on, for as long as the later one is open."""
    if earlier.rollout is not None and earlier.rollout.threshold < 100_000:
        return False
    opens = max(later.window.opens if later.window.opens is not None else -inf, now)
    return (earlier.window.opens is None or earlier.window.opens <= opens) and (
        earlier.window.closes is None or (later.window.closes is not None and later.window.closes <= earlier.window.closes)
    )


def _windows_meet(one: Rule, other: Rule) -> bool:
    opens = max(-inf if rule.window.opens is None else rule.window.opens for rule in (one, other))
    closes = min(inf if rule.window.closes is None else rule.window.closes for rule in (one, other))
    return opens < closes
