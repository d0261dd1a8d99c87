"""What belongs to the request or record being handled: set once at the edge of a process, read by logs and the outbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

#: The request id; empty outside a request.
request_id: ContextVar[str] = ContextVar("request_id", default="")

#: The open span as a W3C `traceparent`; empty while traces are off (`kit.tracing`).
traceparent: ContextVar[str] = ContextVar("traceparent", default="")


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """The caller's `Idempotency-Key`, with who sent it and the SHA-256 of method, path and body."""

    caller: str
    key: str
    request_hash: str


#: Set while a request with an `Idempotency-Key` is handled; the first write transaction takes it in (`kit.db`).
idempotency_claim: ContextVar[IdempotencyClaim | None] = ContextVar("idempotency_claim", default=None)

#: What `account_scope` holds where work is not done for one account: workers, operators, the gateway's own questions.
EVERY_ACCOUNT = "*"

#: Whose rows the database may show and change: an account, "" for none, or `EVERY_ACCOUNT`. Every request sets it from its sealed
#: principal (`kit.web`, the device applications); outside a request there is no caller to protect anybody from.
account_scope: ContextVar[str] = ContextVar("account_scope", default=EVERY_ACCOUNT)

#: Set by work that only the holder of a lease may do (`kit.db.lease`): asked at the start of every write transaction, it raises when the
#: lease was lost.
write_fence: ContextVar[Callable[[Any], Awaitable[None]] | None] = ContextVar("write_fence", default=None)


@contextmanager
def acting_for(account: str) -> Iterator[None]:
    """Limit the database to the rows of one account, `EVERY_ACCOUNT`, or "" (none), inside the block."""
    token = account_scope.set(account)
    try:
        yield
    finally:
        account_scope.reset(token)
