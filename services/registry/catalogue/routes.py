"""HTTP of the catalogue."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from kit.identity import Access, Principal
from kit.web import Page, PageQuery, decode_page_token, page_query, requires
from services.registry.catalogue.schemas import EntryView, NewSource, SourceView, Take
from services.registry.catalogue.service import CatalogueService
from services.registry.schemas import page_of
from services.registry.versions.schemas import Committed

router = APIRouter(prefix="/v1/catalogue", tags=["Catalogue"])


async def _service(request: Request) -> CatalogueService:
    service: CatalogueService = request.app.state.catalogue
    return service


Service = Annotated[CatalogueService, Depends(_service)]
Paging = Annotated[PageQuery, Depends(page_query)]
Operator = Annotated[Principal, requires(Access.OPERATOR)]
Reader = Annotated[Principal, requires(Access.READ)]


@router.post("/sources", status_code=201)
async def add_catalogue_source(caller: Operator, service: Service, body: NewSource) -> SourceView:
    """Name a place with a catalogue, and the keys whose signatures are believed there. Its index is fetched at once."""
    keys = {key.key_id: key.public_key for key in body.public_keys}
    return SourceView.of(await service.add_source(body.location, keys, by=caller.id))


@router.get("/sources")
async def list_catalogue_sources(_caller: Operator, service: Service, page: Paging) -> Page[SourceView]:
    """List the sources."""
    after = decode_page_token(page.token, kinds=(str,))
    part = await service.list_sources(after=after[0] if after else "", size=page.size)
    return page_of(part, SourceView.of, lambda source: (source.source_id,))


@router.delete("/sources/{source_id}", status_code=204)
async def delete_catalogue_source(_caller: Operator, service: Service, source_id: str) -> None:
    """Forget a source. What accounts took over from it stays."""
    await service.delete_source(source_id)


@router.get("")
async def list_catalogue(
    _caller: Reader, service: Service, page: Paging, search: Annotated[str, Query(max_length=200)] = ""
) -> Page[EntryView]:
    """List the models that can be taken over, by name. `search` looks into name, title and description."""
    key = decode_page_token(page.token, kinds=(str, str))
    part = await service.list_entries(search=search, after=(key[0], key[1]) if key else None, size=page.size)
    return page_of(part, EntryView.of, lambda entry: (entry.name, entry.source_id))


@router.get("/{entry_id}")
async def get_catalogue_entry(_caller: Reader, service: Service, entry_id: str) -> EntryView:
    """Read an entry."""
    return EntryView.of((await service.find(entry_id))[1])


@router.post("/{entry_id}:take", status_code=202)
async def take_catalogue_entry(
    caller: Annotated[Principal, requires(Access.PUBLISH)], service: Service, entry_id: str, body: Take | None = None
) -> Committed:
    """Take a model over: verify it, copy its files, and commit it as a version of this account, which packages and signs it anew."""
    return Committed.of(await service.take(caller.tenant, entry_id, model_id=body.model_id if body else None, by=caller.id))
