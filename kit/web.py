"""The HTTP side of a service: a FastAPI application with problem+json, request ids, access policies, pages and body limits.

A route declares who may call it by taking `Annotated[Principal, requires(Access.READ)]`; one that does not fails start-up.
Hot paths are raw ASGI beside it (`kit.http`); they declare themselves as `RawOperation`, so that the document and the check know them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from structlog import get_logger

from kit import http
from kit.context import IdempotencyClaim, acting_for, idempotency_claim, request_id
from kit.db import Database
from kit.db.idempotency import StoredAnswer, find_answer, store_answer
from kit.errors import Internal, Invalid, MethodNotAllowed, NotFound, Problem, Unprocessable
from kit.identity import PRINCIPAL_HEADER, REQUEST_ID_HEADER, Access, Kind, Principal, PrincipalSeal, authorize

log = get_logger(__name__)

#: JSON bodies of the management API; uploads are streams and have their own limit.
MAX_JSON_BYTES = 1 << 20
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 200

Item = TypeVar("Item")


class Model(BaseModel):
    """Base of request and response models: unknown fields are an error, never silently dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Model, Generic[Item]):
    """One page of a list. `next_page_token` is null on the last page."""

    items: list[Item]
    next_page_token: str | None = None


def encode_page_token(*key: str | int) -> str:
    """Return an opaque token for the key of the last item of a page."""
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_page_token(token: str | None, *, kinds: tuple[type, ...]) -> tuple[Any, ...] | None:
    """Return the key inside a token, or None without one. Raises `Invalid` for a token that was not made by `encode_page_token`."""
    if not token:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except ValueError as error:
        raise Invalid("page_token is not one that this API gave out") from error
    if not isinstance(key, list) or len(key) != len(kinds) or not all(_is_key(part, kind) for part, kind in zip(key, kinds, strict=True)):
        raise Invalid("page_token is not one that this API gave out")
    return tuple(key)


def _is_key(part: Any, kind: type) -> bool:
    """Whether a part of a token is of its kind, and a database can take it: 64-bit integers, text that can be encoded."""
    if isinstance(part, int) and not -(1 << 63) <= part < 1 << 63:
        return False
    return type(part) is kind and not (isinstance(part, str) and any("\ud800" <= character <= "\udfff" for character in part))


@dataclass(frozen=True, slots=True)
class PageQuery:
    """`page_size` and `page_token` as asked for; take it with `Annotated[PageQuery, Depends(page_query)]`."""

    size: int
    token: str | None


async def page_query(page_size: int = DEFAULT_PAGE_SIZE, page_token: str | None = None) -> PageQuery:
    """Read the paging parameters; a size over the maximum is lowered to it. Raises `Invalid` for sizes below 1."""
    if page_size < 1:
        raise Invalid("page_size must be at least 1", errors=[{"field": "page_size", "code": "TOO_SMALL", "detail": "at least 1"}])
    return PageQuery(min(page_size, MAX_PAGE_SIZE), page_token)


class _Requires:
    """The dependency behind `requires`: opens the sealed principal and checks the policy."""

    def __init__(self, access: Access) -> None:
        self.access = access

    async def __call__(self, request: Request) -> Principal:
        seal: PrincipalSeal = request.app.state.seal
        principal = seal.open(http.header(request.scope, PRINCIPAL_HEADER))
        authorize(principal, self.access)
        return principal


def requires(access: Access) -> Any:
    """Declare who may call a route and receive the caller: `caller: Annotated[Principal, requires(Access.PUBLISH)]`."""
    return Depends(_Requires(access))


@dataclass(frozen=True, slots=True)
class RawOperation:
    """One operation of a raw ASGI application, for the policy check and the OpenAPI document.

    `document` holds OpenAPI members (`requestBody`, `parameters`, `responses`).
    """

    method: str
    path: str
    access: Access
    operation_id: str
    summary: str
    tag: str
    document: dict[str, Any] = field(default_factory=dict)


def create_api(
    title: str, routers: Sequence[APIRouter], *, seal: PrincipalSeal, database: Database | None = None, raw: Sequence[RawOperation] = ()
) -> FastAPI:
    """Return the application of one service. `database` keeps idempotent answers.

    Raises `PolicyMissing` when a route declares no access policy.
    """
    app = FastAPI(
        title=title,
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        generate_unique_id_function=_operation_id,
        separate_input_output_schemas=False,
    )
    app.state.seal = seal
    for router in routers:
        app.include_router(router)
    _answer_problems(app)
    policies = _policies(app)
    app.state.openapi_document = _document(app, policies, raw)

    async def openapi_document(_caller: Annotated[Principal, requires(Access.SERVICE)]) -> Response:
        return Response(json.dumps(app.state.openapi_document), media_type="application/json")

    app.add_api_route("/internal/openapi.json", openapi_document, include_in_schema=False)
    app.add_middleware(_Edge, seal=seal, database=database)
    return app


class PolicyMissing(Exception):
    """A route declares no access policy; the service does not start."""


def _operation_id(route: APIRoute) -> str:
    return route.name


def _policies(app: FastAPI) -> dict[tuple[str, str], Access]:
    """Return the access of every operation. Raises `PolicyMissing`."""
    policies: dict[tuple[str, str], Access] = {}
    for context in iter_route_contexts(app.routes):
        path = context.path_format or ""
        dependant = getattr(context, "dependant", None)
        found = (
            [dependency.call.access for dependency in dependant.dependencies if isinstance(dependency.call, _Requires)] if dependant else []
        )
        if len(found) != 1:
            raise PolicyMissing(
                f"{sorted(context.methods or ())} {path} declares {len(found)} access policies; exactly one is needed (kit.web.requires)"
            )
        for method in context.methods or ():
            policies[method.lower(), path] = found[0]
    return policies


def _document(app: FastAPI, policies: dict[tuple[str, str], Access], raw: Sequence[RawOperation]) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's routes and the raw ones, each with its access policy and the problem answer."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operation in raw:
        document.setdefault("paths", {}).setdefault(operation.path, {})[operation.method.lower()] = {
            "operationId": operation.operation_id,
            "summary": operation.summary,
            "tags": [operation.tag],
            **operation.document,
        }
        policies[operation.method.lower(), operation.path] = operation.access
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM_SCHEMA
    problem = {
        "description": "A problem (RFC 9457)",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, operations in document.get("paths", {}).items():
        for method, operation_document in operations.items():
            access = policies[method, path]
            operation_document["x-latebind-access"] = access.value
            operation_document["security"] = [] if access is Access.PUBLIC else [{"bearer": []}]
            operation_document.setdefault("responses", {})["default"] = problem
            operation_document["responses"].pop("422", None)
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return document


_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable name, docs/errors.md"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {name: {"type": "string"} for name in ("field", "code", "detail")}},
        },
    },
}


def _answer_problems(app: FastAPI) -> None:
    def render(problem: Problem) -> Response:
        headers = {name.decode(): value.decode() for name, value in http.problem_headers(problem)}
        return Response(http.problem_body(problem), status_code=problem.status, headers=headers)

    async def on_problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return render(error)

    async def on_validation(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = [
            {"field": ".".join(str(part) for part in one["loc"][1:]), "code": str(one["type"]).upper(), "detail": str(one["msg"])}
            for one in error.errors()[:50]
        ]
        where = ", ".join(one["field"] or "body" for one in errors[:5])
        return render(Unprocessable(f"the request is malformed at: {where}", errors=errors))

    async def on_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return render(MethodNotAllowed("this path does not take this method"))
        if error.status_code == 404:
            return render(NotFound("there is nothing at this path"))
        return render(Unprocessable(str(error.detail)))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)


class _Edge:
    """Pure ASGI around FastAPI: request id, JSON limits, idempotent answers, and a 500 that tells nothing but its request id."""

    def __init__(self, app: http.ASGIApp, *, seal: PrincipalSeal, database: Database | None) -> None:
        self._app = app
        self._seal = seal
        self._database = database

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id.set((http.header(scope, REQUEST_ID_HEADER) or b"").decode("ascii", "replace"))
        started = False

        async def watched(message: http.Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            caller = self._seal.open(http.header(scope, PRINCIPAL_HEADER))
            with acting_for(caller.visible_rows):
                await self._handle(scope, receive, watched)
        except http.ClientGone:
            return
        except Problem as problem:
            await http.send_problem(send, problem)
        except Exception:
            log.exception("request failed", method=scope["method"], path=scope["path"])
            if started:
                raise
            await http.send_problem(send, Internal("a fault of ours; the server's log has it under this request id"))

    async def _handle(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        content_type = (http.header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
        # A command without a body has no content type either, and is to be done once all the same.
        bare_command = not content_type and http.header(scope, b"idempotency-key") is not None
        if content_type != b"application/json" and not content_type.endswith(b"+json") and not bare_command:
            await self._app(scope, receive, send)
            return
        body = await http.read_body(scope, receive, max_bytes=MAX_JSON_BYTES)
        http.check_json_depth(body)
        claim = self._claim(scope, body)
        if claim is None or self._database is None:
            await self._app(scope, _replay(body, receive), send)
            return
        await self._once(self._database, claim, scope, _replay(body, receive), send)

    def _claim(self, scope: http.Scope, body: bytes) -> IdempotencyClaim | None:
        key = http.header(scope, b"idempotency-key")
        if key is None or scope["method"] != "POST":
            return None
        if not 1 <= len(key) <= 200:
            raise Invalid("Idempotency-Key must have 1 to 200 characters")
        principal = self._seal.open(http.header(scope, PRINCIPAL_HEADER))
        if principal.kind is Kind.NOBODY:
            return None
        digest = hashlib.sha256(
            b"\n".join((scope["method"].encode(), scope["path"].encode(), scope.get("query_string", b""), body))
        ).hexdigest()
        return IdempotencyClaim(f"{principal.account or principal.kind}/{principal.id}", key.decode("latin-1"), digest)

    async def _once(self, database: Database, claim: IdempotencyClaim, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Replay the stored answer, or handle the request and store what it answered before it is sent."""
        stored = await find_answer(database, claim)
        if stored is not None:
            headers = [(b"content-type", stored.content_type.encode()), (b"idempotency-replayed", b"true")]
            await http.send_bytes(send, stored.status, stored.body, headers)
            return
        messages: list[http.Message] = []

        async def keep(message: http.Message) -> None:
            messages.append(message)

        token = idempotency_claim.set(claim)
        try:
            await self._app(scope, receive, keep)
        finally:
            idempotency_claim.reset(token)
        start = messages[0]
        sent = {bytes(name).lower(): bytes(value) for name, value in start["headers"]}
        if start["status"] < 400 and b"no-store" not in sent.get(b"cache-control", b""):
            body = b"".join(message.get("body", b"") for message in messages[1:])
            await store_answer(database, claim, StoredAnswer(start["status"], sent.get(b"content-type", b"").decode(), body))
        for message in messages:
            await send(message)


def _replay(body: bytes, receive: http.Receive) -> http.Receive:
    """Return a receive channel that gives the body that was read already, then what the real one gives."""
    given = False

    async def replayed() -> http.Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
