"""The contract of a model: what an app may rely on, whichever version it gets (docs/adr/0050, 0170). Pure.

Parameters promise name and type; inputs and outputs promise name, dtype, rank and the names of their dimensions. Values of parameters and
fixed sizes may change from version to version. What is promised adds up: a version takes over what those before it have promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

#: A dimension without a name: a fixed size, or an open one.
UNNAMED = ""


class ContractLevel(StrEnum):
    """What a new version may change of the model's parameters: nothing, or add some that have a default (docs/contract.md)."""

    FROZEN = "frozen"
    ADDITIVE = "additive"


@dataclass(frozen=True, slots=True)
class ParameterPromise:
    """A parameter's type, and the value that stands in for it where a version does not have it (None: nothing does)."""

    type: str
    default: Any = None


@dataclass(frozen=True, slots=True)
class TensorPromise:
    """An input or output. `dimensions` has a name or `UNNAMED` for each; None: nobody knows the rank.

    `declared`: its owner said so. Otherwise it was read from a model, whose names for dimensions promise nothing: exporters invent them.
    """

    dtype: str
    dimensions: tuple[str, ...] | None
    declared: bool


Tensors = Mapping[str, TensorPromise]


@dataclass(frozen=True, slots=True)
class Contract:
    """Everything that is promised, by name. `inputs`, `outputs` None: they were not declared, and no model has been read yet."""

    params: Mapping[str, ParameterPromise] = field(default_factory=dict)
    inputs: Tensors | None = None
    outputs: Tensors | None = None


@dataclass(frozen=True, slots=True)
class Breach:
    """One broken promise. `area`: parameters, inputs, outputs. `change`: missing, added, no_default, type, dtype, rank, dimension.

    `position` counts the dimensions of a tensor from 0. `old` and `new` are what was promised and what is there; None: nothing.
    """

    area: str
    name: str
    change: str
    old: Any
    new: Any
    position: int | None = None

    def __str__(self) -> str:
        """Say it in a few words: `S (int → float)`."""
        place = "" if self.position is None else f" dimension {self.position}"
        kind = {"parameters": "", "inputs": "input ", "outputs": "output "}[self.area]
        if self.change == "no_default":
            return f"{self.name} (absent → {self.new}, without a default)"
        nothing = "absent" if self.position is None else "unnamed"
        return f"{kind}{self.name}{place} ({_word(self.old, nothing)} → {_word(self.new, nothing)})"


def contract_of(declaration: Mapping[str, Any], manifest: Mapping[str, Any] | None = None) -> Contract:
    """Return what a version promises by its declaration; tensors that it does not declare are those of its package's manifest."""
    params: Mapping[str, Mapping[str, Any]] = declaration.get("params") or {}
    promised = {name: ParameterPromise(str(params[name]["type"]), params[name].get("default")) for name in sorted(params)}
    sides = {}
    for side in ("inputs", "outputs"):
        declared = declaration.get(side)
        read = None if manifest is None else manifest.get(side)
        sides[side] = _tensors(declared, declared=True) if declared else _tensors(read, declared=False) if read else None
    return Contract(promised, **sides)


def breaches(old: Contract, new: Contract, level: ContractLevel) -> list[Breach]:
    """Return every promise of `old` that `new` does not keep: parameters, then inputs, then outputs, each by name."""
    found = list(_parameter_breaches(old.params, new.params, level))
    for side in ("inputs", "outputs"):
        before, after = getattr(old, side), getattr(new, side)
        if before is not None and after is not None:
            found += _tensor_breaches(side, before, after)
    return found


def added_up(old: Contract, new: Contract) -> Contract:
    """Return what is promised once `new`, which keeps `old`, stands beside it."""
    params = dict(old.params)
    for name, promise in new.params.items():
        known = params.get(name)
        params[name] = promise if known is None or promise.default is not None else replace(promise, default=known.default)
    return Contract(params, _added_up(old.inputs, new.inputs), _added_up(old.outputs, new.outputs))


def contract_to_json(contract: Contract) -> dict[str, Any]:
    """Return what is stored of a contract."""

    def tensors(side: Tensors | None) -> Any:
        if side is None:
            return None
        return {name: [one.dtype, None if one.dimensions is None else list(one.dimensions), one.declared] for name, one in side.items()}

    params = {name: [one.type, one.default] for name, one in contract.params.items()}
    return {"params": params, "inputs": tensors(contract.inputs), "outputs": tensors(contract.outputs)}


def contract_from_json(stored: Mapping[str, Any]) -> Contract:
    """Return the contract that was stored."""

    def tensors(side: Mapping[str, Any] | None) -> Tensors | None:
        if side is None:
            return None
        return {name: TensorPromise(dtype, None if names is None else tuple(names), said) for name, (dtype, names, said) in side.items()}

    params = {name: ParameterPromise(kind, default) for name, (kind, default) in stored["params"].items()}
    return Contract(params, tensors(stored["inputs"]), tensors(stored["outputs"]))


def _tensors(listed: Any, *, declared: bool) -> Tensors:
    tensors = {}
    for tensor in listed:
        shape = tensor.get("shape")
        names = None if shape is None else tuple(size if isinstance(size, str) else UNNAMED for size in shape)
        tensors[tensor["name"]] = TensorPromise(tensor["dtype"], names, declared)
    return tensors


def _parameter_breaches(old: Mapping[str, ParameterPromise], new: Mapping[str, ParameterPromise], level: ContractLevel) -> Iterator[Breach]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if after is None:
            assert before is not None
            yield Breach("parameters", name, "missing", before.type, None)
        elif before is None:
            if level is ContractLevel.FROZEN:
                yield Breach("parameters", name, "added", None, after.type)
            elif after.default is None:
                yield Breach("parameters", name, "no_default", None, after.type)
        elif before.type != after.type:
            yield Breach("parameters", name, "type", before.type, after.type)


def _tensor_breaches(side: str, old: Tensors, new: Tensors) -> Iterator[Breach]:
    """Tensors have no default that could stand in for them, so both levels hold them alike."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before is None or after is None:
            yield Breach(side, name, "added" if before is None else "missing", before and before.dtype, after and after.dtype)
            continue
        if before.dtype != after.dtype:
            yield Breach(side, name, "dtype", before.dtype, after.dtype)
        if before.dimensions is None or after.dimensions is None:
            continue
        if len(before.dimensions) != len(after.dimensions):
            yield Breach(side, name, "rank", len(before.dimensions), len(after.dimensions))
        elif before.declared:
            for position, (promised, found) in enumerate(zip(before.dimensions, after.dimensions, strict=True)):
                # A name that only the model gives to a dimension without one is no promise, and breaks none.
                if promised != found and (after.declared or promised != UNNAMED):
                    yield Breach(side, name, "dimension", promised or None, found or None, position)


def _added_up(old: Tensors | None, new: Tensors | None) -> Tensors | None:
    if old is None or new is None:
        return new if old is None else old
    return {name: old[name] if name in old and old[name].declared and not one.declared else one for name, one in new.items()}


def _word(value: Any, nothing: str) -> str:
    return nothing if value is None else str(value)
