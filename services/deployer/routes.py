"""HTTP of the deployer's management API: in, one call, out. What devices call is `device.py`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Request, Response

from kit.identity import Access, Principal
from kit.web import Page, PageQuery, decode_page_token, encode_page_token, page_query, requires
from services.deployer.bundles import BundleService, WantedCollection, WantedModel
from services.deployer.domain import collection_etag, draft_etag
from services.deployer.errors import ContextInvalid
from services.deployer.fleet import FleetService
from services.deployer.schemas import (
    BundleAnswer,
    BundleRequest,
    CollectionChange,
    CollectionCreate,
    CollectionView,
    DecisionView,
    DeviceDetail,
    DeviceView,
    ExplainAnswer,
    ExplainRequest,
    FindingView,
    LintAnswer,
    LintRequest,
    PublishAnswer,
    PublishRequest,
    RevertRequest,
    RevisionDetail,
    RevisionView,
    SimulateAnswer,
    SimulateRequest,
)
from services.deployer.service import CollectionService

collections_router = APIRouter(prefix="/v1/collections", tags=["collections"])
devices_router = APIRouter(prefix="/v1", tags=["devices"])
bundles_router = APIRouter(prefix="/v1/bundles", tags=["collections"])

Reader = Annotated[Principal, requires(Access.READ)]
Publisher = Annotated[Principal, requires(Access.PUBLISH)]
Paging = Annotated[PageQuery, Depends(page_query)]
IfMatch = Annotated[str | None, Header()]
_NEWEST = 2**31 - 1


def _collections(request: Request) -> CollectionService:
    service: CollectionService = request.app.state.collections
    return service


def _fleet(request: Request) -> FleetService:
    service: FleetService = request.app.state.fleet
    return service


@collections_router.post("", status_code=201)
async def create_collection(request: Request, caller: Publisher, body: CollectionCreate) -> CollectionView:
    """Make a collection. Its id goes into the app; its draft is empty."""
    made = await _collections(request).create(caller.tenant, name=body.name, description=body.description, by=caller.id)
    return CollectionView.of(made)


@collections_router.get("")
async def list_collections(request: Request, caller: Reader, paging: Paging) -> Page[CollectionView]:
    """List collections by id."""
    key = decode_page_token(paging.token, kinds=(str,))
    found = await _collections(request).page(caller.tenant, after=key[0] if key else "", limit=paging.size + 1)
    token = encode_page_token(found[paging.size - 1].id) if len(found) > paging.size else None
    return Page(items=[CollectionView.of(one) for one in found[: paging.size]], next_page_token=token)


@collections_router.get("/{collection}")
async def get_collection(request: Request, response: Response, caller: Reader, collection: str) -> CollectionView:
    """Show one collection, with its `ETag`."""
    found = await _collections(request).get(caller.tenant, collection)
    response.headers["etag"] = collection_etag(found)
    return CollectionView.of(found)


@collections_router.patch("/{collection}")
async def change_collection(
    request: Request, response: Response, *, caller: Publisher, collection: str, body: CollectionChange, if_match: IfMatch = None
) -> CollectionView:
    """Change name or description. With `If-Match` only while it still is in that state."""
    changed = await _collections(request).rename(caller.tenant, collection, name=body.name, description=body.description, if_match=if_match)
    response.headers["etag"] = collection_etag(changed)
    return CollectionView.of(changed)


@collections_router.get("/{collection}/draft")
async def get_draft(request: Request, response: Response, caller: Reader, collection: str) -> dict[str, Any]:
    """Return the draft's rules document, with its `ETag`."""
    draft = await _collections(request).draft(caller.tenant, collection)
    response.headers["etag"] = draft_etag(draft.number)
    return draft.document


@collections_router.put("/{collection}/draft")
async def put_draft(
    request: Request,
    response: Response,
    *,
    caller: Publisher,
    collection: str,
    body: Annotated[dict[str, Any], Body(description="A rules document: docs/rules.md")],
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Replace the draft. With `If-Match` only while it still is in that state."""
    draft = await _collections(request).put_draft(caller.tenant, collection, body, by=caller.id, if_match=if_match)
    response.headers["etag"] = draft_etag(draft.number)
    return draft.document


@collections_router.post("/{collection}:lint")
async def lint_collection(request: Request, caller: Reader, collection: str, body: LintRequest | None = None) -> LintAnswer:
    """Say what is odd about the draft or about a document: unreachable, shadowed and overlapping rules."""
    findings = await _collections(request).lint(caller.tenant, collection, body.rules if body else None)
    return LintAnswer(findings=[FindingView.of(one) for one in findings])


@collections_router.post("/{collection}:publish")
async def publish_collection(
    request: Request, caller: Publisher, collection: str, body: PublishRequest | None = None, if_match: IfMatch = None
) -> PublishAnswer:
    """Make the draft the next revision. Devices get its answers from their next request on."""
    wish = body or PublishRequest()
    done = await _collections(request).publish(
        caller.tenant, collection, by=caller.id, note=wish.note, validate_only=wish.validate_only, if_match=if_match
    )
    return PublishAnswer.of(done)


@collections_router.post("/{collection}:revert")
async def revert_collection(request: Request, caller: Publisher, collection: str, body: RevertRequest) -> PublishAnswer:
    """Publish an earlier revision again, as a new one. The draft stays as it is."""
    done = await _collections(request).revert(
        caller.tenant, collection, body.revision, by=caller.id, note=body.note, validate_only=body.validate_only
    )
    return PublishAnswer.of(done)


@collections_router.get("/{collection}/revisions")
async def list_revisions(request: Request, caller: Reader, collection: str, paging: Paging) -> Page[RevisionView]:
    """List revisions, newest first."""
    key = decode_page_token(paging.token, kinds=(int,))
    before = key[0] if key else _NEWEST
    found = await _collections(request).revisions(caller.tenant, collection, before=before, limit=paging.size + 1)
    token = encode_page_token(found[paging.size - 1].revision) if len(found) > paging.size else None
    return Page(items=[RevisionView.of(one) for one in found[: paging.size]], next_page_token=token)


@collections_router.get("/{collection}/revisions/{revision}")
async def get_revision(request: Request, caller: Reader, collection: str, revision: int) -> RevisionDetail:
    """Show one revision with its document."""
    return RevisionDetail.of(await _collections(request).revision(caller.tenant, collection, revision))


@collections_router.post("/{collection}:explain")
async def explain_collection(request: Request, caller: Reader, collection: str, body: ExplainRequest) -> ExplainAnswer:
    """Say what a device gets and, rule by rule, why."""
    if body.context is None and body.install_id is None:
        raise ContextInvalid("send a device context, or the install_id of a device that asked before")
    explained = await _collections(request).explain(
        caller.tenant,
        collection,
        context=body.context,
        install_id=body.install_id,
        revision=body.revision,
        draft=body.draft,
        at=body.at,
    )
    return ExplainAnswer.of(collection, explained)


@bundles_router.post("")
async def sign_bundle(request: Request, caller: Publisher, body: BundleRequest) -> BundleAnswer:
    """Sign what collections and models give now, for devices without network. It counts on every device of the account."""
    service: BundleService = request.app.state.bundles
    collections = [WantedCollection(one.collection, one.contexts) for one in body.collections]
    models = [WantedModel(one.model_id, one.version, one.alias) for one in body.models]
    return BundleAnswer.of(await service.sign(caller.tenant, collections, models))


@collections_router.post("/{collection}:simulate")
async def simulate_collection(request: Request, caller: Reader, collection: str, body: SimulateRequest | None = None) -> SimulateAnswer:
    """Hold the draft, or a document, against every device seen so far: who moves, how many get nothing, bytes to download."""
    return SimulateAnswer.of(await _fleet(request).simulate(caller.tenant, collection, body.rules if body else None))


@devices_router.get("/devices")
async def list_devices(request: Request, caller: Reader, paging: Paging, collection: str | None = None) -> Page[DeviceView]:
    """List devices by install id: all, or those that asked for a collection."""
    key = decode_page_token(paging.token, kinds=(str,))
    found = await _fleet(request).page(caller.tenant, after=key[0] if key else "", limit=paging.size + 1, collection=collection)
    token = encode_page_token(found[paging.size - 1].install_id) if len(found) > paging.size else None
    return Page(items=[DeviceView.of(one) for one in found[: paging.size]], next_page_token=token)


@devices_router.get("/devices/{install_id}")
async def get_device(request: Request, caller: Reader, install_id: str) -> DeviceDetail:
    """Show one device: what it said of itself, what it should run and runs, its newest decisions and events."""
    return DeviceDetail.of_history(*await _fleet(request).get(caller.tenant, install_id))


@devices_router.get("/decisions/{decision_id}")
async def get_decision(request: Request, caller: Reader, decision_id: str) -> DecisionView:
    """Show one decision with the context that it was made for."""
    return DecisionView.of(await _fleet(request).decision(caller.tenant, decision_id))
