"""The parameter contract: names and types stay, values may change (SEC-C14)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.versions.declaration import PARAMETER_TYPES
from services.registry.versions.domain import ParameterChange, contract_changes, contract_of

NAMES = st.sampled_from(["S", "B", "C", "labels", "anchors", "threshold"])
CONTRACTS = st.dictionaries(NAMES, st.sampled_from(PARAMETER_TYPES), max_size=6)


@settings(max_examples=800)
@given(CONTRACTS, CONTRACTS)
def test_any_change_of_names_or_types_breaks_it_and_nothing_else_does(old: dict[str, str], new: dict[str, str]) -> None:
    changes = contract_changes(old, new)
    assert bool(changes) == (old != new)
    named = {one.name: one for one in changes}
    assert len(named) == len(changes)
    for name in old.keys() | new.keys():
        if old.get(name) == new.get(name):
            assert name not in named
        elif name not in new:
            assert named[name] == ParameterChange(name, "missing", old[name], None)
        elif name not in old:
            assert named[name] == ParameterChange(name, "added", None, new[name])
        else:
            assert named[name] == ParameterChange(name, "type", old[name], new[name])


@settings(max_examples=600)
@given(CONTRACTS, st.data())
def test_values_do_not_count(contract: dict[str, str], data: st.DataObject) -> None:
    values = st.none() | st.integers() | st.text(max_size=5)
    declarations = [
        {"params": {name: {"type": kind, "value": data.draw(values)} for name, kind in data.draw(st.permutations(list(contract.items())))}}
        for _ in range(2)
    ]
    assert contract_changes(contract_of(declarations[0]), contract_of(declarations[1])) == []
