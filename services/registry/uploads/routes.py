"""HTTP of uploads. A part's body is a stream of bytes and never as a whole in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from kit import http
from kit.identity import Access, Principal
from kit.web import requires
from services.registry.uploads.domain import Upload, read_digest, read_offset
from services.registry.uploads.schemas import Completion, NewUpload, UploadedFile, UploadView
from services.registry.uploads.service import UploadService

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"])

_PART_BODY = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


async def _service(request: Request) -> UploadService:
    service: UploadService = request.app.state.uploads
    return service


Service = Annotated[UploadService, Depends(_service)]
Publisher = Annotated[Principal, requires(Access.PUBLISH)]


@router.post("", status_code=201)
async def create_upload(caller: Publisher, service: Service, body: NewUpload, response: Response) -> UploadView:
    """Begin an upload. Send parts of at most `part_size_max` bytes, in order, then complete it."""
    upload = await service.create(caller.tenant, size=body.size, sha256=body.sha256, filename=body.filename, by=caller.id)
    _show_offset(response, upload)
    return UploadView.of(upload, service.limits.part_bytes)


@router.get("/{upload_id}")
async def get_upload(caller: Publisher, service: Service, upload_id: str, response: Response) -> UploadView:
    """Read where an upload stands."""
    upload = await service.find(caller.tenant, upload_id)
    _show_offset(response, upload)
    return UploadView.of(upload, service.limits.part_bytes)


@router.head("/{upload_id}", status_code=204)
async def head_upload(caller: Publisher, service: Service, upload_id: str, response: Response) -> None:
    """Ask where an upload stands: `Upload-Offset` of `Upload-Length`."""
    _show_offset(response, await service.find(caller.tenant, upload_id))


@router.put("/{upload_id}", openapi_extra=_PART_BODY)
async def put_upload_part(
    *,
    caller: Publisher,
    service: Service,
    upload_id: str,
    request: Request,
    response: Response,
    upload_offset: Annotated[str | None, Header()] = None,
    content_digest: Annotated[str | None, Header()] = None,
    content_length: Annotated[int | None, Header(include_in_schema=False)] = None,
) -> UploadView:
    """Send one part: `Upload-Offset` says where it begins, `Content-Digest` what it is. The answer says that it is durable."""
    upload = await service.add_part(
        caller.tenant,
        upload_id,
        offset=read_offset(upload_offset),
        sha256=read_digest(content_digest),
        announced=content_length,
        chunks=_chunks(request.receive),
    )
    _show_offset(response, upload)
    return UploadView.of(upload, service.limits.part_bytes)


@router.post("/{upload_id}:complete")
async def complete_upload(caller: Publisher, service: Service, upload_id: str, body: Completion) -> UploadedFile:
    """Join the parts and check the digest of the whole. The file can be declared in a version afterwards."""
    upload = await service.complete(caller.tenant, upload_id, sha256=body.sha256)
    return UploadedFile(sha256=body.sha256, size=upload.size)


async def _chunks(receive: http.Receive) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises `ClientGone` when the sender leaves in the middle: nothing of the part is kept then."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise http.ClientGone
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


def _show_offset(response: Response, upload: Upload) -> None:
    response.headers["upload-offset"] = str(upload.received)
    response.headers["upload-length"] = str(upload.size)
    response.headers["cache-control"] = "no-store"
