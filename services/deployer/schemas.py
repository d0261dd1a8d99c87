"""Bodies and answers of the management API."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, Field

from kit.web import Model
from services.deployer.bundles import SignedBundle
from services.deployer.domain import Collection, Decision, Device, DeviceEvent, DeviceState, Revision
from services.deployer.fleet import Simulation
from services.deployer.lint import Finding
from services.deployer.service import Explained, Publication, answer_document
from services.deployer.simulation import Tally


class CollectionCreate(Model):
    """What a new collection is called."""

    name: str = Field(min_length=1, max_length=200)
    description: str = Field("", max_length=4_000)


class CollectionChange(Model):
    """New texts; what is left out stays."""

    name: str | None = Field(None, min_length=1, max_length=200)
    description: str | None = Field(None, max_length=4_000)


class CollectionView(Model):
    """A collection. `id` is what an app names; `revision` is the published one."""

    id: str
    name: str
    description: str
    revision: int | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, one: Collection) -> CollectionView:
        """Show a collection."""
        return cls(
            id=one.id,
            name=one.name,
            description=one.description,
            revision=one.revision,
            created_at=one.created_at,
            updated_at=one.updated_at,
        )


class RevisionView(Model):
    """A revision without its document."""

    collection: str
    revision: int
    digest: str
    published_at: datetime
    published_by: str
    note: str
    reverted_to: int | None

    @classmethod
    def of(cls, one: Revision) -> RevisionView:
        """Show a revision."""
        return cls(**_revision(one))


class RevisionDetail(RevisionView):
    """A revision with its document."""

    document: dict[str, Any]

    @classmethod
    def of(cls, one: Revision) -> RevisionDetail:
        """Show a revision."""
        return cls(**_revision(one), document=one.document)


def _revision(one: Revision) -> dict[str, Any]:
    names = ("collection", "revision", "digest", "published_at", "published_by", "note", "reverted_to")
    return {name: getattr(one, name) for name in names}


class FindingView(Model):
    """One thing that is odd about the rules. Warnings and notices never stop a publish."""

    code: str
    severity: str
    rule_id: str | None
    other_rule_id: str | None
    detail: str

    @classmethod
    def of(cls, one: Finding) -> FindingView:
        """Show a finding."""
        return cls(**one.document())


class LintRequest(Model):
    """A document to look at; without one it is the draft."""

    rules: dict[str, Any] | None = None


class LintAnswer(Model):
    """What is odd."""

    findings: list[FindingView]


class PublishRequest(Model):
    """`validate_only` checks everything and changes nothing."""

    validate_only: bool = False
    note: str = Field("", max_length=2_000)


class RevertRequest(PublishRequest):
    """The revision whose document is published again."""

    revision: int = Field(ge=1)


class PublishAnswer(Model):
    """The new revision (null when only checked), and what is odd about its rules."""

    revision: RevisionView | None
    findings: list[FindingView]

    @classmethod
    def of(cls, one: Publication) -> PublishAnswer:
        """Show what a publish did."""
        made = None if one.revision is None else RevisionView.of(one.revision)
        return cls(revision=made, findings=[FindingView.of(finding) for finding in one.findings])


class ExplainRequest(Model):
    """A device context, or the install id of a device that asked before; for the published rules, another revision or the draft."""

    context: dict[str, Any] | None = None
    install_id: str | None = Field(None, max_length=64)
    revision: int | None = Field(None, ge=1)
    draft: bool = False
    at: AwareDatetime | None = None


class ExplainAnswer(Model):
    """The answer that resolve gives, and per rule in order why it serves or not."""

    collection: str
    revision: int | None
    install_id: str
    at: datetime
    answer: dict[str, Any]
    rules: list[dict[str, Any]]
    default: dict[str, Any] | None

    @classmethod
    def of(cls, collection: str, one: Explained) -> ExplainAnswer:
        """Show an explanation."""
        return cls(
            collection=collection,
            revision=one.revision,
            install_id=one.install_id,
            at=one.at,
            answer=answer_document(one.explanation.answer),
            rules=list(one.explanation.rules),
            default=one.explanation.default,
        )


class BundledCollection(Model):
    """A collection, and contexts of the devices that it is for; a device takes the first package that it can run."""

    collection: str = Field(min_length=1, max_length=64)
    contexts: list[dict[str, Any]] = Field(min_length=1, max_length=32)


class BundledModel(Model):
    """A version of a model: its number, or an alias that points at it."""

    model_id: str = Field(min_length=1, max_length=64)
    version: int | None = Field(None, ge=1, le=2**31 - 1)
    alias: str | None = Field(None, min_length=1, max_length=64)


class BundleRequest(Model):
    """What a bundle is to have (docs/interop.md)."""

    collections: list[BundledCollection] = Field(default_factory=list, max_length=64)
    models: list[BundledModel] = Field(default_factory=list, max_length=64)


class BundledPackage(Model):
    """A package that goes into the bundle."""

    digest: str
    model_id: str
    version: int
    variant: str
    size: int


class BundleAnswer(Model):
    """The signed statement (a DSSE envelope, first in the file), and the packages that it names, in their order."""

    envelope: dict[str, Any]
    packages: list[BundledPackage]

    @classmethod
    def of(cls, signed: SignedBundle) -> BundleAnswer:
        """Show a signed bundle."""
        return cls(
            envelope=signed.envelope,
            packages=[
                BundledPackage(digest=one.digest, model_id=one.model_id, version=one.version, variant=one.variant, size=one.size)
                for one in signed.packages
            ],
        )


class SimulateRequest(Model):
    """A document to try; without one it is the draft."""

    rules: dict[str, Any] | None = None


class MoveSide(Model):
    """What devices have on one side of a move: a package, or the reason why none."""

    digest: str | None
    model_id: str | None
    version: int | None
    variant: str | None
    reason: str | None


class MoveView(Model):
    """Devices that go from one answer to another; `bytes` is what all of them download together."""

    before: MoveSide
    after: MoveSide
    devices: int
    bytes: int
    examples: list[str]


class SimulateAnswer(Model):
    """Counts over `population`. devices = unchanged + moved = served + sum(refused)."""

    population: str
    devices: int
    unchanged: int
    moved: int
    served: int
    refused: dict[str, int]
    served_before: int
    refused_before: dict[str, int]
    bytes_to_download: int
    moves: list[MoveView]

    @classmethod
    def of(cls, one: Simulation) -> SimulateAnswer:
        """Show a simulation, the biggest moves first."""
        tally = one.tally
        moves = sorted(tally.moves.items(), key=lambda item: (-item[1].devices, str(item[0])))
        return cls(
            population=one.population,
            devices=tally.devices,
            unchanged=tally.unchanged,
            moved=tally.moved,
            served=tally.served,
            refused=dict(tally.refused),
            served_before=tally.served_before,
            refused_before=dict(tally.refused_before),
            bytes_to_download=tally.bytes_to_download,
            moves=[
                MoveView(
                    before=_side(tally, before),
                    after=_side(tally, after),
                    devices=move.devices,
                    bytes=move.bytes,
                    examples=move.examples,
                )
                for (before, after), move in moves
            ],
        )


def _side(tally: Tally, side: tuple[str | None, str]) -> MoveSide:
    digest, reason = side
    if digest is None:
        return MoveSide(digest=None, model_id=None, version=None, variant=None, reason=reason)
    package = tally.packages[digest]
    return MoveSide(digest=digest, model_id=package.model_id, version=package.version, variant=package.variant, reason=None)


class DeviceStateView(Model):
    """What a device should run (`wanted`) and says it runs (`running`), by package digest, for one collection."""

    collection: str
    wanted: str | None
    reason: str | None
    decision_id: str | None
    decided_at: datetime | None
    running: str | None
    state: str | None
    code: str | None
    reported_at: datetime | None

    @classmethod
    def of(cls, one: DeviceState) -> DeviceStateView:
        """Show a state."""
        return cls(**{name: getattr(one, name) for name in cls.model_fields})


class DeviceView(Model):
    """One install."""

    install_id: str
    first_seen_at: datetime
    last_seen_at: datetime
    context: dict[str, Any]
    collections: list[DeviceStateView]

    @classmethod
    def of(cls, one: Device) -> DeviceView:
        """Show a device."""
        return cls(**_device(one))


def _device(one: Device) -> dict[str, Any]:
    return {
        "install_id": one.install_id,
        "first_seen_at": one.first_seen_at,
        "last_seen_at": one.last_seen_at,
        "context": one.context,
        "collections": [DeviceStateView.of(state) for state in one.states],
    }


class DeviceEventView(Model):
    """One thing that a device reported."""

    event_id: str
    collection: str
    package: str | None
    state: str
    code: str | None
    detail: str
    at: datetime
    decision_id: str | None
    received_at: datetime

    @classmethod
    def of(cls, one: DeviceEvent) -> DeviceEventView:
        """Show an event."""
        return cls(**{name: getattr(one, name) for name in cls.model_fields})


class DecisionView(Model):
    """One answer to a device, with the context that it was made for."""

    decision_id: str
    collection: str
    revision: int
    install_id: str
    decided_at: datetime
    context: dict[str, Any]
    answer: dict[str, Any]

    @classmethod
    def of(cls, one: Decision) -> DecisionView:
        """Show a decision."""
        return cls(**{name: getattr(one, name) for name in cls.model_fields})


class DeviceDetail(DeviceView):
    """One install with its newest decisions and events, newest first."""

    decisions: list[DecisionView]
    events: list[DeviceEventView]

    @classmethod
    def of_history(cls, one: Device, decisions: list[Decision], events: list[DeviceEvent]) -> DeviceDetail:
        """Show a device with its history."""
        return cls(
            **_device(one),
            decisions=[DecisionView.of(decision) for decision in decisions],
            events=[DeviceEventView.of(event) for event in events],
        )
