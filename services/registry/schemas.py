"""Request and response models of models and aliases, and the page that every list of the registry answers with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from kit.web import Model as WebModel
from kit.web import Page, encode_page_token
from services.registry.domain import SLUG_PATTERN, Alias, AliasMove, Model, ModelDetails, Slice

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


class ModelChange(WebModel):
    """What to change of a model; what is left out stays. Labels are replaced as a whole."""

    description: Annotated[str, Field(max_length=4000)] | None = None
    labels: Labels | None = None


class ModelSummary(WebModel):
    """A model in a list. `last_version` is the highest number given out, null before the first."""

    model_id: str
    description: str
    labels: dict[str, str]
    last_version: int | None
    created_at: datetime
    created_by: str
    updated_at: datetime

    @classmethod
    def of(cls, model: Model) -> ModelSummary:
        """Show a model."""
        return cls(**_model_fields(model))


class ModelView(ModelSummary):
    """A model. `contract` maps each parameter to its type once a version has bound it (docs/adr/0050), else it is null."""

    aliases: dict[str, int]
    contract: dict[str, str] | None

    @classmethod
    def with_details(cls, details: ModelDetails) -> ModelView:
        """Show a model with its aliases and contract."""
        return cls(**_model_fields(details.model), aliases=details.aliases, contract=details.contract)


def _model_fields(model: Model) -> dict[str, object]:
    names = ("model_id", "description", "labels", "created_at", "created_by", "updated_at")
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
