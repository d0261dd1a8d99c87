"""HTTP of devices' identity (docs/wire.md). No credential but what the body proves."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from kit.identity import Access, Principal
from kit.web import requires
from services.registry.accounts.enrolment.schemas import ChallengeView, Enrolment, TokenKeys, TokenRequest, TokenView, TrustedKey
from services.registry.accounts.enrolment.service import EnrolmentService

router = APIRouter(prefix="/v1/device", tags=["For devices"])
internal = APIRouter(prefix="/internal", include_in_schema=False)


async def _service(request: Request) -> EnrolmentService:
    service: EnrolmentService = request.app.state.enrolment
    return service


Service = Annotated[EnrolmentService, Depends(_service)]
Anyone = Annotated[Principal, requires(Access.PUBLIC)]


@router.post("/challenge")
async def create_challenge(_caller: Anyone, service: Service, response: Response) -> ChallengeView:
    """Ask for a nonce to sign."""
    nonce, expires_at = service.challenge()
    response.headers["cache-control"] = "no-store"
    return ChallengeView(nonce=nonce, expires_at=expires_at)


@router.post("/enroll", status_code=201)
async def enroll_device(_caller: Anyone, service: Service, body: Enrolment, response: Response) -> TokenView:
    """Enrol an install with an enrolment key and proof of possession of its own key pair."""
    answer = await service.enrol(
        account=body.account,
        enrolment_key=body.enrolment_key,
        install_id=body.install_id,
        public_key=body.public_key,
        nonce=body.nonce,
        signature=body.signature,
    )
    response.headers["cache-control"] = "no-store"
    return TokenView.of(answer)


@router.post("/token")
async def renew_device_token(_caller: Anyone, service: Service, body: TokenRequest, response: Response) -> TokenView:
    """Renew the token of an enrolled install."""
    answer = await service.renew(account=body.account, install_id=body.install_id, nonce=body.nonce, signature=body.signature)
    response.headers["cache-control"] = "no-store"
    return TokenView.of(answer)


@internal.get("/device-tokens:renewable", status_code=204)
async def can_renew_device_tokens(_caller: Annotated[Principal, requires(Access.SERVICE)], service: Service) -> None:
    """Say whether devices can renew their tokens now: 204, or 503 while the database is down. The gateway then bears with expired ones."""
    await service.check_renewable()


@internal.get("/device-token-keys")
async def list_device_token_keys(_caller: Annotated[Principal, requires(Access.SERVICE)], service: Service) -> TokenKeys:
    """Return the public keys that verify device tokens; the gateway checks tokens itself."""
    return TokenKeys(keys=[TrustedKey.of(key_id, public_key) for key_id, public_key in service.token_keys().items()])
