"""What belongs to the request or record being handled: set once at the edge of a process, read by logs and the outbox."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

#: The request id; empty outside a request.
request_id: ContextVar[str] = ContextVar("request_id", default="")


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """The caller's `Idempotency-Key`, with who sent it and the SHA-256 of method, path and body."""

    caller: str
    key: str
    request_hash: str


#: Set while a request with an `Idempotency-Key` is handled; the first write transaction takes it in (`kit.db`).
idempotency_claim: ContextVar[IdempotencyClaim | None] = ContextVar("idempotency_claim", default=None)
