"""Answers devices from memory: no statement to a database is sent here.

An unchanged device gets 304 without evaluating anything; a package that stays gets 304 after evaluating; a new answer is signed and
stands in the event log before it leaves. What is decided is decided by `binding.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import msgspec
from xxhash import xxh3_64_hexdigest

from kit.clock import Clock, rfc3339
from kit.errors import Problem
from kit.eventlog import EventLog
from kit.http import check_json_depth
from kit.ids import new_id
from kit.signing import DerivedSigner
from services.deployer import events
from services.deployer.binding import Bound, Reason, Refusal, Served, decide
from services.deployer.errors import (
    CollectionNotFound,
    ContextInvalid,
    InstallMismatch,
    NoCompatiblePackage,
    NoMatch,
    NonceInvalid,
    Starting,
)
from services.deployer.facts import ContextProblem, context_of, facts_of
from services.deployer.sightings import Sightings
from services.deployer.snapshot import Snapshot

ASSIGNMENT_TYPE = "application/vnd.latebind.assignment+json"
#: Refusals that are remembered, so that a device asking again and again does not fill the log.
MAX_REFUSALS = 50_000
_DIGEST_PREFIX = 16
_SHORTEST_NONCE, _LONGEST_NONCE = 16, 64

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_Headers = list[tuple[bytes, bytes]]


class Resolver:
    """Says which package a device gets. One per process; not for use from other threads."""

    def __init__(
        self,
        snapshot: Snapshot,
        sightings: Sightings,
        *,
        eventlog: EventLog,
        signer: DerivedSigner,
        clock: Clock,
        poll_after_s: int,
        poll_spread_s: int,
        assignment_lifetime_s: int,
    ) -> None:
        self._snapshot, self._sightings = snapshot, sightings
        self._eventlog, self._signer, self._clock = eventlog, signer, clock
        self._poll = {"after_s": poll_after_s, "spread_s": poll_spread_s}
        self._poll_header = (b"latebind-poll", f"after={poll_after_s}; spread={poll_spread_s}".encode())
        self._assignment_lifetime = timedelta(seconds=assignment_lifetime_s)
        self._refusals: dict[tuple[str, str, str], tuple[str, str, Problem]] = {}
        self._counter = 0

    def count_from(self, microseconds: int) -> None:
        """Let assignment counters start above what an earlier process may have given out."""
        self._counter = max(self._counter, microseconds)

    async def resolve(
        self,
        account: str,
        install_id: str,
        collection: str,
        *,
        body: bytes,
        country: bytes | None,
        etag: bytes | None,
        nonce: bytes | None,
    ) -> tuple[int, bytes, _Headers]:
        """Return status, body and headers of the answer.

        Raises `CollectionNotFound`, `Starting`, `ContextInvalid`, `InstallMismatch`, `NonceInvalid`, `NoMatch`,
        `NoCompatiblePackage`, and `LogFull` when the answer cannot be recorded.
        """
        now = self._clock.now()
        live = self._snapshot.find(account, collection)
        if live is None:
            raise self._unknown()
        bound = live.at(now.timestamp())
        asked = xxh3_64_hexdigest(b"%b\0%b\0%b" % (install_id.encode(), country or b"", body))
        state = f"{bound.epoch}.{asked}"
        known = b"" if etag is None else etag.strip().removeprefix(b"W/")
        if known.startswith(b'"%b.' % state.encode()):
            self._sightings.seen(account, install_id, now)
            return 304, b"", [(b"etag", known), self._poll_header]
        refused = self._refusals.get((account, install_id, collection))
        if refused is not None and refused[0] == state:
            self._sightings.seen(account, install_id, now)
            raise refused[2]
        facts = _facts(body, install_id, country)
        answer = decide(bound, facts, install_id)
        if isinstance(answer, Refusal):
            raise await self._refuse(account, install_id, collection, bound=bound, state=state, facts=facts, answer=answer, now=now)
        tag = f'"{state}.{answer.package.digest[:_DIGEST_PREFIX]}"'.encode()
        if known.endswith(b'.%b"' % answer.package.digest[:_DIGEST_PREFIX].encode()):
            self._sightings.told(account, install_id, now, facts)
            return 304, b"", [(b"etag", tag), self._poll_header]
        headers = [(b"content-type", b"application/json"), (b"etag", tag), (b"cache-control", b"private, no-cache")]
        document = self._document(bound, answer)
        text = _nonce(nonce)
        await self._record(account, install_id, collection, bound=bound, facts=facts, document=document, now=now)
        document["assignment"] = self._assign(account, install_id, collection, bound=bound, answer=answer, nonce=text, now=now)
        return 200, _encode(document), headers

    def _unknown(self) -> Problem:
        if not self._snapshot.complete:
            return Starting("the rules are still being loaded; ask again in a moment")
        return CollectionNotFound("there is no such collection, or none of its revisions is published", poll=self._poll)

    def _document(self, bound: Bound, answer: Served) -> dict[str, Any]:
        package = answer.package
        return {
            "decision_id": new_id("d", self._clock),
            "revision": bound.revision,
            "reason": answer.reason.value,
            "rule_id": answer.rule_id,
            "package": {
                "digest": package.digest,
                "model_id": package.model_id,
                "version": package.version,
                "variant": package.variant,
                "size": package.size,
                "manifest_url": f"/v1/device/packages/{package.digest}/manifest",
                "signature_url": f"/v1/device/packages/{package.digest}/signature",
            },
            "poll": self._poll,
        }

    async def _refuse(
        self,
        account: str,
        install_id: str,
        collection: str,
        *,
        bound: Bound,
        state: str,
        facts: dict[str, dict[str, Any]],
        answer: Refusal,
        now: datetime,
    ) -> Problem:
        """Record a refusal and return the problem to raise. The same question gets the same answer again without a record."""
        document: dict[str, Any] = {
            "decision_id": new_id("d", self._clock),
            "revision": bound.revision,
            "reason": answer.reason.value,
            "rule_id": None,
            "package": None,
            "poll": self._poll,
        }
        problem: Problem
        extra = {name: document[name] for name in ("decision_id", "revision", "reason", "poll")}
        if answer.reason is Reason.NO_COMPATIBLE_PACKAGE:
            document["packages"] = [asdict(one) for one in answer.packages]
            text = "nothing that the rules have for this device can run on it; `packages` says why"
            problem = NoCompatiblePackage(text, packages=document["packages"], **extra)
        else:
            problem = NoMatch("no rule of the collection serves this device, and it has no default", **extra)
        await self._record(account, install_id, collection, bound=bound, facts=facts, document=document, now=now)
        if len(self._refusals) >= MAX_REFUSALS:
            self._refusals.clear()
        self._refusals[account, install_id, collection] = (state, document["decision_id"], problem)
        return problem

    async def _record(
        self,
        account: str,
        install_id: str,
        collection: str,
        *,
        bound: Bound,
        facts: dict[str, dict[str, Any]],
        document: dict[str, Any],
        now: datetime,
    ) -> None:
        message = events.decision_made(
            decision_id=document["decision_id"],
            account=account,
            collection=collection,
            revision=bound.revision,
            install_id=install_id,
            decided_at=now,
            context=_encode(context_of(facts)),
            answer=_encode(document),
        )
        await self._eventlog.append(events.DECISION_MADE, [message])

    def _assign(
        self, account: str, install_id: str, collection: str, *, bound: Bound, answer: Served, nonce: str, now: datetime
    ) -> dict[str, Any]:
        """Sign who gets what. The counter rises with every assignment, also when the clock stands still or goes back."""
        self._counter = max(self._counter + 1, int(now.timestamp() * 1_000_000))
        payload = {
            "type": "latebind-assignment-v1",
            "account": account,
            "install_id": install_id,
            "collection": collection,
            "revision": bound.revision,
            "package": answer.package.digest,
            "counter": self._counter,
            "nonce": nonce,
            "issued_at": rfc3339(now),
            "expires_at": rfc3339(now + self._assignment_lifetime),
        }
        return dict(self._signer.sign(account, ASSIGNMENT_TYPE, _encode(payload)))


def _facts(body: bytes, install_id: str, country: bytes | None) -> dict[str, dict[str, Any]]:
    try:
        check_json_depth(body)
        context = _decode(body)
        facts = facts_of(context, None if country is None else country.decode("ascii", "replace"))
    except ContextProblem as problem:
        raise ContextInvalid(str(problem)) from problem
    except Problem as problem:
        raise ContextInvalid(problem.detail) from problem
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ContextInvalid("the device context is not valid JSON in UTF-8") from error
    if context.get("install_id") != install_id:
        raise InstallMismatch("`install_id` of the device context is not the install that the token belongs to")
    return facts


def _nonce(nonce: bytes | None) -> str:
    if nonce is None or not _SHORTEST_NONCE <= len(nonce) <= _LONGEST_NONCE or not all(0x21 <= byte <= 0x7E for byte in nonce):
        raise NonceInvalid("send a new `Latebind-Nonce` of 16 to 64 printable ASCII characters with each request")
    return nonce.decode("ascii")
