"""Models and aliases as values, and what the rooms share: one slice of a list, and entity tags. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from kit.errors import PreconditionFailed
from services.registry.versions.contract import Contract, ContractLevel

#: Slugs of models and names of aliases; a dot, an underscore and a dash may stand inside.
SLUG_PATTERN = r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$"

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Slice(Generic[Item]):
    """One page of a list as the store gives it; `more` says whether another follows."""

    items: Sequence[Item]
    more: bool

    @classmethod
    def cut(cls, items: Sequence[Item], size: int) -> Slice[Item]:
        """Return the first `size` of up to `size + 1` items that were read to learn whether there are more."""
        return cls(items[:size], len(items) > size)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of an account. `revision` rises with every change; `last_version` is the highest number given out, 0 for none.

    `contract_set_at`, `contract_set_by`: when its level was last chosen, and by whom; None: never, so it is `frozen`.
    """

    account: str
    model_id: str
    description: str
    labels: dict[str, str]
    created_at: datetime
    created_by: str
    updated_at: datetime
    revision: int
    last_version: int
    contract_level: ContractLevel = ContractLevel.FROZEN
    contract_set_at: datetime | None = None
    contract_set_by: str | None = None


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """A model, its aliases (name to version) and what shows its contract (None: no version has bound one)."""

    model: Model
    aliases: dict[str, int] = field(default_factory=dict)
    contract: Contract | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name on a model, and its last move."""

    model_id: str
    name: str
    version: int
    revision: int
    moved_at: datetime
    moved_by: str
    why: str


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One line of an alias's history. None: there was no version before, or the alias was removed. `position` orders the history."""

    position: int
    name: str
    from_version: int | None
    to_version: int | None
    moved_at: datetime
    moved_by: str
    why: str


def entity_tag(revision: int) -> str:
    """Return the ETag of a revision (RFC 9110, section 8.8.3)."""
    return f'"{revision}"'


def check_match(if_match: str | None, revision: int | None) -> None:
    """Hold an update against its `If-Match`; without one it passes. `revision` None: the resource does not exist.

    Raises `PreconditionFailed` (RFC 9110, section 13.1.1; weak tags never match).
    """
    if if_match is None:
        return
    if if_match.strip() == "*":
        if revision is None:
            raise PreconditionFailed("If-Match asks for an existing resource, and there is none yet")
        return
    tags = {tag.strip() for tag in if_match.split(",")}
    if revision is None or entity_tag(revision) not in tags:
        raise PreconditionFailed("somebody changed this in between: read it again, then repeat the change with the new ETag")
