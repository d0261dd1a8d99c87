"""Request and response models of models and aliases, and the page that every list of the registry answers with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from kit.web import Model as WebModel
from kit.web import Page, encode_page_token
from services.registry.domain import SLUG_PATTERN, Alias, AliasMove, Model, ModelDetails, Slice
from services.registry.versions.contract import Contract, ContractLevel, Tensors

Item = TypeVar("Item")
Shown = TypeVar("Shown")

Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
Why = Annotated[str, Field(max_length=500)]

_MAX_LABELS = 64


def page_of(part: Slice[Item], show: Callable[[Item], Shown], key: Callable[[Item], tuple[str | int, ...]]) -> Page[Shown]:
    """Return one page; `key` gives what the token of the next page continues behind."""
    token = encode_page_token(*key(part.items[-1])) if part.more else None
    return Page(items=[show(item) for item in part.items], next_page_token=token)


def _bounded(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > _MAX_LABELS:
        raise ValueError(f"at most {_MAX_LABELS} labels")
    return labels


Labels = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=63)], Annotated[str, Field(max_length=255)]], AfterValidator(_bounded)
]


class NewModel(WebModel):
    """A model to create."""

    model_id: Slug
    description: Annotated[str, Field(max_length=4000)] = ""
    labels: Labels = Field(default_factory=dict)
    contract_level: ContractLevel = ContractLevel.FROZEN


class ModelChange(WebModel):
    """What to change of a model; what is left out stays. Labels are replaced as a whole."""

    description: Annotated[str, Field(max_length=4000)] | None = None
    labels: Labels | None = None
    contract_level: ContractLevel | None = None


class ModelSummary(WebModel):
    """A model in a list. `last_version` is the highest number given out, null before the first."""

    model_id: str
    description: str
    labels: dict[str, str]
    last_version: int | None
    contract_level: ContractLevel
    created_at: datetime
    created_by: str
    updated_at: datetime

    @classmethod
    def of(cls, model: Model) -> ModelSummary:
        """Show a model."""
        return cls(**_model_fields(model))


class ContractTensor(WebModel):
    """What an input or output promises. `rank` null: it is not known. `dimensions`: position to name, of those that have one."""

    name: str
    dtype: str
    rank: int | None
    dimensions: dict[str, str]


class ContractTensors(WebModel):
    """What inputs and outputs promise; null: no version has declared them, and no model has been read yet."""

    inputs: list[ContractTensor] | None
    outputs: list[ContractTensor] | None

    @classmethod
    def of(cls, contract: Contract) -> ContractTensors:
        """Show a contract's tensors."""
        return cls(inputs=_contract_tensors(contract.inputs), outputs=_contract_tensors(contract.outputs))


def _contract_tensors(side: Tensors | None) -> list[ContractTensor] | None:
    if side is None:
        return None
    shown = []
    for name, one in side.items():
        named = {str(place): symbol for place, symbol in enumerate(one.dimensions or ()) if symbol and one.declared}
        rank = None if one.dimensions is None else len(one.dimensions)
        shown.append(ContractTensor(name=name, dtype=one.dtype, rank=rank, dimensions=named))
    return shown


class ModelView(ModelSummary):
    """A model. `contract` maps each parameter to its type once a version has bound it (docs/contract.md), else it is null.

    `contract_defaults` are the values that stand in where an older version lacks a parameter; `contract_tensors` what inputs and outputs
    promise, as far as it is known. `contract_set_at`, `contract_set_by`: who chose the level, and when; null: nobody.
    """

    aliases: dict[str, int]
    contract: dict[str, str] | None
    contract_defaults: dict[str, Any]
    contract_tensors: ContractTensors | None
    contract_set_at: datetime | None
    contract_set_by: str | None

    @classmethod
    def with_details(cls, details: ModelDetails) -> ModelView:
        """Show a model with its aliases and contract."""
        contract, model = details.contract, details.model
        return cls(
            **_model_fields(model),
            aliases=details.aliases,
            contract=None if contract is None else {name: one.type for name, one in contract.params.items()},
            contract_defaults={}
            if contract is None
            else {name: one.default for name, one in contract.params.items() if one.default is not None},
            contract_tensors=None if contract is None else ContractTensors.of(contract),
            contract_set_at=model.contract_set_at,
            contract_set_by=model.contract_set_by,
        )


def _model_fields(model: Model) -> dict[str, object]:
    names = ("model_id", "description", "labels", "contract_level", "created_at", "created_by", "updated_at")
    return {**{name: getattr(model, name) for name in names}, "last_version": model.last_version or None}


class AliasTarget(WebModel):
    """Where to point an alias, and why; the history keeps both."""

    version: Annotated[int, Field(ge=1, le=2_147_483_647, strict=True)]
    why: Why = ""


class AliasView(WebModel):
    """An alias and its last move."""

    model_id: str
    name: str
    version: int
    moved_at: datetime
    moved_by: str
    why: str

    @classmethod
    def of(cls, alias: Alias) -> AliasView:
        """Show an alias."""
        return cls(**{name: getattr(alias, name) for name in cls.model_fields})


class AliasMoveView(WebModel):
    """One line of the history: who (`moved_by`, a key's id), when, from, to (null: none), why."""

    name: str
    from_version: int | None
    to_version: int | None
    moved_at: datetime
    moved_by: str
    why: str

    @classmethod
    def of(cls, move: AliasMove) -> AliasMoveView:
        """Show a move."""
        return cls(**{name: getattr(move, name) for name in cls.model_fields})
