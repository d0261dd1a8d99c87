"""Stored answers of requests that carried an `Idempotency-Key`; the claim itself is written by `Transaction`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select, update

from kit.clock import Clock
from kit.context import IdempotencyClaim
from kit.db import Database
from kit.db.system import IDEMPOTENCY
from kit.errors import Conflict, Unprocessable

#: Answers are kept this long, as Stripe does.
KEPT_FOR = timedelta(hours=24)


class IdempotencyKeyReused(Unprocessable):
    """The `Idempotency-Key` was used for another request."""

    code = "IDEMPOTENCY_KEY_REUSED"


class IdempotencyAnswerGone(Conflict):
    """The request took effect once; its answer is not kept (a secret shown once, or the server died before storing it)."""

    code = "IDEMPOTENCY_ANSWER_GONE"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What was answered the first time."""

    status: int
    content_type: str
    body: bytes


async def find_answer(database: Database, claim: IdempotencyClaim) -> StoredAnswer | None:
    """Return the stored answer, or None when the key is new.

    Raises `IdempotencyKeyReused` for another request under the key, `IdempotencyAnswerGone` when the effect is there but not the answer.
    """
    table = IDEMPOTENCY
    async with database.read() as reader:
        row = await reader.first(select(table).where(table.c.caller == claim.caller, table.c.key == claim.key))
    if row is None:
        return None
    if row.request_hash != claim.request_hash:
        raise IdempotencyKeyReused("this Idempotency-Key was sent with another request; use a new key for a new request")
    if row.status is None or row.body is None:
        raise IdempotencyAnswerGone("the first request with this key took effect, but its answer is not kept; read the resource")
    return StoredAnswer(row.status, row.content_type or "", row.body)


async def store_answer(database: Database, claim: IdempotencyClaim, answer: StoredAnswer) -> None:
    """Remember the answer of a claim whose effect is committed; a claim that had no effect is left alone."""
    table = IDEMPOTENCY
    async with database.begin() as tx:
        await tx.execute(
            update(table)
            .where(table.c.caller == claim.caller, table.c.key == claim.key)
            .values(status=answer.status, content_type=answer.content_type, body=answer.body)
        )


async def forget_answers(database: Database, clock: Clock) -> int:
    """Delete answers older than `KEPT_FOR`; returns how many."""
    async with database.begin() as tx:
        result = await tx.execute(delete(IDEMPOTENCY).where(IDEMPOTENCY.c.created_at < clock.now() - KEPT_FOR))
    return result.rowcount
