"""The evaluating resolve as one would write it with FastAPI: `python -m bench._fastapi_twin PORT DOCUMENTS KEY_FILE`.

Pydantic reads the context, one async dependency opens the principal, the same rules decide, the answer is the same 304.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic import BaseModel

from bench._rules import bound, catalogue
from kit.identity import Kind, Principal, PrincipalSeal
from services.deployer.binding import Served, decide
from services.deployer.facts import facts_of


class App(BaseModel):
    """Section app."""

    id: str | None = None
    version: str | None = None


class Sdk(BaseModel):
    """Section sdk."""

    name: str | None = None
    version: str | None = None


class Device(BaseModel):
    """Section device."""

    model: str | None = None
    manufacturer: str | None = None
    soc: str | None = None
    abi: str | None = None
    ram_mb: int | None = None
    accelerators: list[str] = []


class System(BaseModel):
    """Section os."""

    name: str | None = None
    version: str | None = None
    api_level: int | None = None


class Runtime(BaseModel):
    """One runtime."""

    engine: str
    version: str | None = None
    max_ir: int | None = None
    max_opset: int | None = None


class Context(BaseModel):
    """The device context."""

    install_id: str
    app: App
    sdk: Sdk
    device: Device
    os: System
    locale: str | None = None
    country: str | None = None
    groups: list[str] = []
    runtimes: list[Runtime] = []
    attributes: dict[str, str | float | bool | list[str]] = {}
    installed: list[dict[str, str]] = []


def create(documents: dict[str, Any], secret: bytes) -> FastAPI:
    """Return the twin over the same documents."""
    found = catalogue()
    rules = {name: bound(content, found, collection=name) for name, content in documents.items()}
    seal = PrincipalSeal(secret)
    app = FastAPI()

    async def caller(request: Request) -> Principal:
        header = request.headers.get("latebind-principal")
        principal = seal.open(None if header is None else header.encode())
        assert principal.kind is Kind.DEVICE
        return principal

    @app.post("/v1/device/collections/{collection}:resolve")
    async def resolve(
        collection: str,
        context: Context,
        who: Annotated[Principal, Depends(caller)],
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        answer = decide(rules[collection], facts_of(context.model_dump()), who.id)
        assert isinstance(answer, Served)
        tag = f'"{rules[collection].epoch}.{"0" * 16}.{answer.package.digest[:16]}"'
        return Response(status_code=304, headers={"etag": tag, "latebind-poll": "after=3600; spread=600"})

    return app


if __name__ == "__main__":
    uvicorn.run(
        create(json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]).read_bytes()),
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
    )
