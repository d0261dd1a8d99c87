"""Response models of a comparison of two versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kit.web import Model
from services.registry.versions.compare import Comparison
from services.registry.versions.contract import ContractLevel


class DifferenceView(Model):
    """One thing that differs: `added`, `removed` or `changed`."""

    area: str
    name: str
    change: str
    before: Any
    after: Any


class FactView(Model):
    """One thing that is the same."""

    area: str
    name: str
    value: Any


class BreachView(Model):
    """One promise of the model that is broken: `missing`, `added`, `no_default`, `type`, `dtype`, `rank`, or `dimension` at `position`."""

    area: str
    name: str
    change: str
    old: Any
    new: Any
    position: int | None


class ComparisonView(Model):
    """What differs between two versions, then what is the same; which promises of the first the second breaks at the model's level; and
    what the gates found about each (docs/packaging.md, "Report")."""

    model_id: str
    from_version: int
    to_version: int
    equal: bool
    differences: list[DifferenceView]
    same: list[FactView]
    contract_level: ContractLevel
    breaches: list[BreachView]
    from_report: dict[str, Any] | None
    to_report: dict[str, Any] | None

    @classmethod
    def of(cls, model_id: str, before: int, after: int, comparison: Comparison) -> ComparisonView:
        """Show a comparison."""
        return cls(
            model_id=model_id,
            from_version=before,
            to_version=after,
            equal=not comparison.differences,
            differences=[
                DifferenceView(area=one.area, name=one.name, change=one.change, before=one.before, after=one.after)
                for one in comparison.differences
            ],
            same=[FactView(area=one.area, name=one.name, value=one.value) for one in comparison.same],
            contract_level=comparison.contract_level,
            breaches=[BreachView(**asdict(one)) for one in comparison.breaches],
            from_report=comparison.reports[0],
            to_report=comparison.reports[1],
        )
