"""HTTP of accounts and keys. Answers that hold a secret are never stored: `Cache-Control: no-store`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from kit.errors import Invalid
from kit.identity import Access, Kind, Principal
from kit.web import Page, PageQuery, decode_page_token, page_query, requires
from services.registry.accounts.errors import AccountNotFound
from services.registry.accounts.schemas import (
    AccountOnce,
    AccountView,
    ApiKeyOnce,
    ApiKeyView,
    CredentialText,
    EnrolmentKeyOnce,
    EnrolmentKeyView,
    NewAccount,
    NewApiKey,
    NewEnrolmentKey,
    PrincipalView,
    SigningKeyView,
    WhoAmI,
)
from services.registry.accounts.service import AccountService
from services.registry.schemas import page_of

router = APIRouter(prefix="/v1", tags=["Accounts and keys"])
internal = APIRouter(prefix="/internal", include_in_schema=False)


async def _service(request: Request) -> AccountService:
    service: AccountService = request.app.state.accounts
    return service


Service = Annotated[AccountService, Depends(_service)]
Paging = Annotated[PageQuery, Depends(page_query)]
OperatorOrAdmin = Annotated[Principal, requires(Access.OPERATOR_OR_ADMIN)]


def _account_of(caller: Principal, named: str | None) -> str:
    """Return the account that a call is about: an admin's own, or the one that the operator names."""
    if caller.kind is Kind.OPERATOR:
        if named is None:
            raise Invalid("say which account", errors=[{"field": "account", "code": "MISSING", "detail": "an operator names the account"}])
        return named
    if named is not None and named != caller.tenant:
        raise AccountNotFound("there is no such account")
    return caller.tenant


def _position(page: PageQuery) -> int:
    key = decode_page_token(page.token, kinds=(int,))
    return key[0] if key else 0


@router.post("/accounts", status_code=201)
async def create_account(
    caller: Annotated[Principal, requires(Access.OPERATOR)], service: Service, body: NewAccount, response: Response
) -> AccountOnce:
    """Create an account. The answer holds its first admin key, shown this once."""
    account, key, secret = await service.create_account(body.account, title=body.title, by=caller.id)
    response.headers["cache-control"] = "no-store"
    return AccountOnce.with_key(account, key, secret)


@router.get("/accounts")
async def list_accounts(_caller: Annotated[Principal, requires(Access.OPERATOR)], service: Service, page: Paging) -> Page[AccountView]:
    """List accounts by name."""
    after = decode_page_token(page.token, kinds=(str,))
    return page_of(
        await service.list_accounts(after=after[0] if after else "", size=page.size), AccountView.of, lambda account: (account.account,)
    )


@router.get("/accounts/{account}")
async def get_account(caller: OperatorOrAdmin, service: Service, account: str) -> AccountView:
    """Read an account: the operator any, an admin the own one."""
    return AccountView.of(await service.find_account(_account_of(caller, account)))


@router.get("/accounts/{account}/signing-keys")
async def list_signing_keys(caller: Annotated[Principal, requires(Access.READ)], service: Service, account: str) -> Page[SigningKeyView]:
    """List the public keys that devices of the own account believe; whoever takes a catalogue of its packages over needs them too."""
    keys = await service.signing_keys(_account_of(caller, account))
    return Page(items=[SigningKeyView.of(key) for key in keys])


@router.get("/whoami")
async def whoami(caller: Annotated[Principal, requires(Access.PUBLIC)]) -> WhoAmI:
    """Say who the credential belongs to; without one, `kind` is `nobody`."""
    return WhoAmI(kind=caller.kind, id=caller.id, account=caller.account, scopes=sorted(caller.scopes))


@router.post("/api-keys", status_code=201)
async def create_api_key(caller: OperatorOrAdmin, service: Service, body: NewApiKey, response: Response) -> ApiKeyOnce:
    """Make an API key. Its text is shown this once."""
    account = _account_of(caller, body.account)
    key, secret = await service.create_api_key(account, name=body.name, scopes=body.scopes, expires_at=body.expires_at, by=caller.id)
    response.headers["cache-control"] = "no-store"
    return ApiKeyOnce.with_secret(key, secret)


@router.get("/api-keys")
async def list_api_keys(caller: OperatorOrAdmin, service: Service, page: Paging, account: str | None = None) -> Page[ApiKeyView]:
    """List API keys in the order they were made, revoked and expired ones too. The operator names the account."""
    keys = await service.list_api_keys(_account_of(caller, account), after=_position(page), size=page.size)
    return page_of(keys, ApiKeyView.of, lambda key: (key.position,))


@router.post("/api-keys/{key_id}:revoke")
async def revoke_api_key(caller: OperatorOrAdmin, service: Service, key_id: str) -> ApiKeyView:
    """Revoke an API key. Repeating it changes nothing. It takes effect within the gateway's credential cache (30 s)."""
    return ApiKeyView.of(await service.revoke_api_key(caller.account, key_id))


@router.post("/enrolment-keys", status_code=201)
async def create_enrolment_key(caller: OperatorOrAdmin, service: Service, body: NewEnrolmentKey, response: Response) -> EnrolmentKeyOnce:
    """Make an enrolment key, with which devices can enrol and do nothing else. Its text is shown this once."""
    account = _account_of(caller, body.account)
    key, secret = await service.create_enrolment_key(account, name=body.name, quota=body.quota, expires_at=body.expires_at, by=caller.id)
    response.headers["cache-control"] = "no-store"
    return EnrolmentKeyOnce.with_secret(key, secret)


@router.get("/enrolment-keys")
async def list_enrolment_keys(
    caller: OperatorOrAdmin, service: Service, page: Paging, account: str | None = None
) -> Page[EnrolmentKeyView]:
    """List enrolment keys in the order they were made. The operator names the account."""
    keys = await service.list_enrolment_keys(_account_of(caller, account), after=_position(page), size=page.size)
    return page_of(keys, EnrolmentKeyView.of, lambda key: (key.position,))


@router.post("/enrolment-keys/{key_id}:revoke")
async def revoke_enrolment_key(caller: OperatorOrAdmin, service: Service, key_id: str) -> EnrolmentKeyView:
    """Revoke an enrolment key. Devices that enrolled with it stay enrolled."""
    return EnrolmentKeyView.of(await service.revoke_enrolment_key(caller.account, key_id))


@internal.post("/credentials:verify")
async def verify_credential(
    _caller: Annotated[Principal, requires(Access.SERVICE)], service: Service, body: CredentialText, response: Response
) -> PrincipalView:
    """Say who a key belongs to. The gateway keeps the answer for at most 30 s."""
    verified = await service.verify(body.key)
    response.headers["cache-control"] = "no-store"
    principal = verified.principal
    return PrincipalView(
        kind=principal.kind,
        id=principal.id,
        account=principal.account,
        scopes=sorted(principal.scopes),
        expires_at=verified.expires_at,
        expires_at_s=verified.expires_at.timestamp() if verified.expires_at else None,
    )
