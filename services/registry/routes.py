"""HTTP of models and aliases."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from kit.identity import Access, Principal
from kit.web import Page, PageQuery, decode_page_token, page_query, requires
from services.registry.domain import entity_tag
from services.registry.schemas import (
    AliasMoveView,
    AliasTarget,
    AliasView,
    ModelChange,
    ModelSummary,
    ModelView,
    NewModel,
    Slug,
    page_of,
)
from services.registry.service import ModelService

router = APIRouter(prefix="/v1/models", tags=["Models"])


async def _service(request: Request) -> ModelService:
    service: ModelService = request.app.state.models
    return service


Service = Annotated[ModelService, Depends(_service)]
Paging = Annotated[PageQuery, Depends(page_query)]
Reader = Annotated[Principal, requires(Access.READ)]
Publisher = Annotated[Principal, requires(Access.PUBLISH)]
IfMatch = Annotated[str | None, Header()]


@router.post("", status_code=201)
async def create_model(caller: Publisher, service: Service, body: NewModel, response: Response) -> ModelView:
    """Create a model. Its contract is bound by its first version that is committed; `contract_level` says what later ones may change."""
    details = await service.create(
        caller.tenant, body.model_id, description=body.description, labels=body.labels, level=body.contract_level, by=caller.id
    )
    response.headers["etag"] = entity_tag(details.model.revision)
    return ModelView.with_details(details)


@router.get("")
async def list_models(
    caller: Reader, service: Service, page: Paging, search: Annotated[str, Query(max_length=200)] = ""
) -> Page[ModelSummary]:
    """List models by id. `search` looks into id, description and labels, without regard to case."""
    after = decode_page_token(page.token, kinds=(str,))
    part = await service.list(caller.tenant, search=search, after=after[0] if after else "", size=page.size)
    return page_of(part, ModelSummary.of, lambda model: (model.model_id,))


@router.get("/{model_id}")
async def get_model(caller: Reader, service: Service, model_id: str, response: Response) -> ModelView:
    """Read a model with its aliases and its parameter contract."""
    details = await service.find(caller.tenant, model_id)
    response.headers["etag"] = entity_tag(details.model.revision)
    return ModelView.with_details(details)


@router.patch("/{model_id}")
async def change_model(
    *, caller: Publisher, service: Service, model_id: str, body: ModelChange, response: Response, if_match: IfMatch = None
) -> ModelView:
    """Change a model's description, labels or contract level. Who set the level, and when, is kept."""
    details = await service.change(
        caller.tenant,
        model_id,
        description=body.description,
        labels=body.labels,
        level=body.contract_level,
        if_match=if_match,
        by=caller.id,
    )
    response.headers["etag"] = entity_tag(details.model.revision)
    return ModelView.with_details(details)


@router.get("/{model_id}/aliases")
async def list_aliases(caller: Reader, service: Service, model_id: str, page: Paging) -> Page[AliasView]:
    """List a model's aliases by name."""
    after = decode_page_token(page.token, kinds=(str,))
    part = await service.list_aliases(caller.tenant, model_id, after=after[0] if after else "", size=page.size)
    return page_of(part, AliasView.of, lambda alias: (alias.name,))


@router.get("/{model_id}/aliases/{name}")
async def get_alias(caller: Reader, service: Service, model_id: str, name: str, response: Response) -> AliasView:
    """Read an alias and its last move."""
    alias = await service.find_alias(caller.tenant, model_id, name)
    response.headers["etag"] = entity_tag(alias.revision)
    return AliasView.of(alias)


@router.put("/{model_id}/aliases/{name}")
async def put_alias(
    *, caller: Publisher, service: Service, model_id: str, name: Slug, body: AliasTarget, response: Response, if_match: IfMatch = None
) -> AliasView:
    """Point an alias at a ready version; 201 when the alias is new. The move is recorded for good."""
    alias, is_new = await service.put_alias(
        caller.tenant, model_id, name, version=body.version, why=body.why, if_match=if_match, by=caller.id
    )
    response.status_code = 201 if is_new else 200
    response.headers["etag"] = entity_tag(alias.revision)
    return AliasView.of(alias)


@router.delete("/{model_id}/aliases/{name}", status_code=204)
async def delete_alias(
    *,
    caller: Publisher,
    service: Service,
    model_id: str,
    name: str,
    why: Annotated[str, Query(max_length=500)] = "",
    if_match: IfMatch = None,
) -> None:
    """Remove an alias. Its history stays."""
    await service.delete_alias(caller.tenant, model_id, name, why=why, if_match=if_match, by=caller.id)


@router.get("/{model_id}/aliases/{name}/history")
async def list_alias_moves(caller: Reader, service: Service, model_id: str, name: str, page: Paging) -> Page[AliasMoveView]:
    """List an alias's moves, newest first: who, when, from, to, why."""
    before = decode_page_token(page.token, kinds=(int,))
    part = await service.alias_history(caller.tenant, model_id, name, before=before[0] if before else None, size=page.size)
    return page_of(part, AliasMoveView.of, lambda move: (move.position,))
