"""Request and response models of the catalogue."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated

from pydantic import Base64Bytes, Field

from kit.web import Model
from services.registry.catalogue.domain import Entry, Source
from services.registry.schemas import Slug


class SourceKey(Model):
    """A key whose signatures are believed: raw Ed25519 public key in base64, named by its SHA-256."""

    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    public_key: Base64Bytes


class NewSource(Model):
    """A source to add: `file:/folder`, `http://…` or `https://…` with a `catalogue.json` in it."""

    location: Annotated[str, Field(max_length=1000)]
    public_keys: Annotated[list[SourceKey], Field(min_length=1, max_length=32)]


class SourceView(Model):
    """A source. `problem` says why it could not be fetched lately."""

    id: str
    location: str
    title: str
    public_keys: list[dict[str, str]]
    created_at: datetime
    fetched_at: datetime | None
    problem: str | None

    @classmethod
    def of(cls, source: Source) -> SourceView:
        """Show a source."""
        keys = [{"key_id": key_id, "public_key": base64.b64encode(key).decode()} for key_id, key in source.public_keys.items()]
        return cls(
            id=source.source_id,
            location=source.location,
            title=source.title,
            public_keys=keys,
            created_at=source.created_at,
            fetched_at=source.fetched_at,
            problem=source.problem,
        )


class EntryView(Model):
    """A model that can be taken over. `packages` are the digests of its variants, in order of preference."""

    id: str
    name: str
    title: str
    description: str
    license: str
    labels: dict[str, str]
    packages: list[str]

    @classmethod
    def of(cls, entry: Entry) -> EntryView:
        """Show an entry."""
        return cls(
            id=entry.entry_id,
            name=entry.name,
            title=entry.title,
            description=entry.description,
            license=entry.license,
            labels=entry.labels,
            packages=[package.digest for package in entry.packages],
        )


class Take(Model):
    """Under which id to take the model over; left out: the origin's."""

    model_id: Slug | None = None
