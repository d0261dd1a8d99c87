"""HTTP of versions and packages."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from kit.identity import Access, Principal
from kit.web import Page, PageQuery, decode_page_token, page_query, requires
from services.registry.domain import entity_tag
from services.registry.schemas import page_of
from services.registry.versions.comparison_schemas import ComparisonView
from services.registry.versions.domain import VersionState
from services.registry.versions.schemas import (
    Archive,
    Committed,
    Declaration,
    DeclarationChange,
    PackageWhole,
    VersionSummary,
    VersionView,
)
from services.registry.versions.service import VersionService

router = APIRouter(prefix="/v1", tags=["Models"])


async def _service(request: Request) -> VersionService:
    service: VersionService = request.app.state.versions
    return service


Service = Annotated[VersionService, Depends(_service)]
Reader = Annotated[Principal, requires(Access.READ)]
Publisher = Annotated[Principal, requires(Access.PUBLISH)]
IfMatch = Annotated[str | None, Header()]
#: Numbers beyond the database's integers name no version.
Number = Annotated[int, Path(ge=1, le=2_147_483_647)]
OtherNumber = Annotated[int, Query(ge=1, le=2_147_483_647)]


@router.post("/models/{model_id}/versions", status_code=201)
async def create_version(caller: Publisher, service: Service, model_id: str, body: Declaration, response: Response) -> VersionView:
    """Make a draft from a declaration. Every file that it names must be uploaded already."""
    version = await service.create(caller.tenant, model_id, body.as_stored(), by=caller.id)
    response.headers["etag"] = entity_tag(version.revision)
    return VersionView.whole(version)


@router.get("/models/{model_id}/versions")
async def list_versions(
    caller: Reader, service: Service, model_id: str, page: Annotated[PageQuery, Depends(page_query)], state: VersionState | None = None
) -> Page[VersionSummary]:
    """List versions, newest first."""
    before = decode_page_token(page.token, kinds=(int,))
    part = await service.list(caller.tenant, model_id, state=state, before=before[0] if before else None, size=page.size)
    return page_of(part, VersionSummary.of, lambda entry: (entry[0].version,))


@router.post("/models/{model_id}/versions/{version}:commit", status_code=202)
async def commit_version(caller: Publisher, service: Service, model_id: str, version: Number, if_match: IfMatch = None) -> Committed:
    """Close a draft and have it packaged. Its parameters must keep the model's contract. Repeating it orders nothing twice."""
    return Committed.of(await service.commit(caller.tenant, model_id, version, if_match=if_match, by=caller.id))


@router.post("/models/{model_id}/versions/{version}:archive")
async def archive_version(
    *,
    caller: Publisher,
    service: Service,
    model_id: str,
    version: Number,
    response: Response,
    body: Archive | None = None,
    if_match: IfMatch = None,
) -> VersionView:
    """Take a version out of service, or give up a draft. Refused while an alias points at it, unless `force` removes the alias too."""
    how = body or Archive()
    archived = await service.archive(caller.tenant, model_id, version, force=how.force, why=how.why, if_match=if_match, by=caller.id)
    response.headers["etag"] = entity_tag(archived.revision)
    return VersionView.whole(*await service.find(caller.tenant, model_id, version))


@router.get("/models/{model_id}/versions/{version}:compare")
async def compare_versions(caller: Reader, service: Service, model_id: str, version: Number, to: OtherNumber) -> ComparisonView:
    """Say what differs between two versions: parameters, tensors, engines, operators, files, sizes. Differences come first."""
    return ComparisonView.of(model_id, version, to, await service.compare(caller.tenant, model_id, version, to))


@router.get("/models/{model_id}/versions/{version}")
async def get_version(caller: Reader, service: Service, model_id: str, version: Number, response: Response) -> VersionView:
    """Read a version with its declaration and packages."""
    found, packages = await service.find(caller.tenant, model_id, version)
    response.headers["etag"] = entity_tag(found.revision)
    return VersionView.whole(found, packages)


@router.patch("/models/{model_id}/versions/{version}")
async def change_version(
    *,
    caller: Publisher,
    service: Service,
    model_id: str,
    version: Number,
    body: DeclarationChange,
    response: Response,
    if_match: IfMatch = None,
) -> VersionView:
    """Replace members of a draft's declaration. A committed version never changes."""
    changed = await service.change(caller.tenant, model_id, version, body.as_changes(), if_match=if_match)
    response.headers["etag"] = entity_tag(changed.revision)
    return VersionView.whole(changed)


@router.get("/models/{model_id}/versions/{version}/packages")
async def list_version_packages(caller: Reader, service: Service, model_id: str, version: Number) -> Page[PackageWhole]:
    """Read a version's packages whole: manifest, signature, files. There are at most 32, in order of preference, on one page."""
    packages = await service.packages(caller.tenant, model_id, version)
    return Page(items=[PackageWhole.of(package) for package in packages])


@router.get("/packages/{digest}/files/{path:path}", status_code=307, response_class=Response)
async def get_package_file(caller: Reader, service: Service, digest: str, path: str) -> Response:
    """Redirect to one file of a package; the link needs no credential and expires."""
    link = await service.file_link(caller.tenant, digest, path)
    return Response(status_code=307, headers={"location": link, "cache-control": "no-store"})
