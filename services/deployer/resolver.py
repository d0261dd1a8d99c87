"""Answers devices from memory: no statement to a database is sent here.

An unchanged device gets 304 without evaluating anything; a package that stays gets 304 after evaluating; a new answer is signed and
stands in the event log before it leaves. What is decided is decided by `binding.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from kit.clock import Clock, rfc3339
from kit.errors import Problem
from kit.eventlog import EventLog
from kit.identity import COUNTRY_HEADER
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
    Outdated,
    Starting,
)
from services.deployer.facts import ContextProblem, context_of, facts_of
from services.deployer.sightings import Sightings
from services.deployer.snapshot import Snapshot

ASSIGNMENT_TYPE = "application/vnd.latebind.assignment+json"
#: Refusals that are remembered, so that a device asking again and again does not fill the log.
MAX_REFUSALS = 50_000
#: What the device last accepted of this collection, as it stood in the assignment.
COUNTER_HEADER = b"latebind-counter"
#: Where an ETag, "position-epoch.asked.package", holds the position of the rules and the hash of what was asked.
_POSITION, _DASH, _ASKED = slice(1, 14), slice(14, 15), slice(32, 48)
_HIGHEST = 1 << 52
_SHORTEST_NONCE, _LONGEST_NONCE = 16, 64

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_Headers = list[tuple[bytes, bytes]]


class Behind(NamedTuple):
    """The snapshot may be older than what the device has seen: it must catch up before it answers. `seen` is the device's position."""

    account: str
    collection: str
    seen: int


class Question(NamedTuple):
    """A request that needs an answer of its own: what was asked, of which rules, and what they decide."""

    account: str
    install_id: str
    collection: str
    bound: Bound
    state: bytes
    facts: dict[str, dict[str, Any]]
    answer: Served | Refusal
    now: datetime
    seen: int


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
        self._refusals: dict[tuple[str, str, str], tuple[bytes, Problem]] = {}

    def ask(  # noqa: PLR0917 - keywords would cost here
        self, account: str, install_id: str, collection: str, body: bytes, headers: Mapping[bytes, bytes], caught_up: bool = False
    ) -> _Headers | Question | Behind:
        """Return the headers of a 304, or what `answer` needs for anything else. Waits for nothing: this is the steady path.

        `Behind` is returned unless the caller has `caught_up` already. Raises `CollectionNotFound`, `Starting`, `Outdated`,
        `ContextInvalid`, `InstallMismatch`, and a refusal that was recorded before.
        """
        now = self._clock.now()
        live = self._snapshot.find(account, collection)
        bound = None if live is None else live.at(now)
        country, etag = headers.get(COUNTRY_HEADER), headers.get(b"if-none-match")
        who = install_id.encode() if country is None else b"%b %b" % (install_id.encode(), country)
        asked = xxh3_64_hexdigest(body, xxh3_64_intdigest(who)).encode()
        if bound is not None and etag is not None and etag[_ASKED] == asked and etag.startswith(bound.tag):
            self._sightings.seen(account, install_id, now)
            return [(b"etag", etag), self._poll_header]
        if not self._snapshot.complete:
            raise Starting("the rules are still being loaded; ask again in a moment")
        seen = max(_position(etag), _counter(headers.get(COUNTER_HEADER)))
        if not caught_up and (
            now > self._snapshot.fresh_until
            or (0 if bound is None else bound.position) < seen
            or (bound is None and self._snapshot.awaits(account, collection))
        ):
            return Behind(account, collection, seen)
        if bound is None:
            raise self._unknown(is_known=live is not None)
        state = bound.tag + asked
        refused = self._refusals.get((account, install_id, collection))
        if refused is not None and refused[0] == state:
            self._sightings.seen(account, install_id, now)
            raise refused[1]
        facts = _facts(body, install_id, country)
        answer = decide(bound, facts, install_id)
        if type(answer) is Served and etag is not None and etag.endswith(answer.ending):
            self._sightings.told(account, install_id, now, body, country)
            return [(b"etag", state + answer.ending), self._poll_header]
        return Question(account, install_id, collection, bound, state, facts, answer, now, seen)

    async def answer(self, question: Question, nonce: bytes | None) -> tuple[bytes, _Headers]:
        """Return body and headers of a 200, after its record is in the event log.

        Raises `NonceInvalid`, `NoMatch`, `NoCompatiblePackage`, and `LogFull` when the answer cannot be recorded.
        """
        answer = question.answer
        if isinstance(answer, Refusal):
            raise await self._refuse(question, answer)
        text = _nonce(nonce)
        document = self._document(question, answer)
        await self._record(question, document)
        document["assignment"] = self._assign(question, answer, text)
        headers = [
            (b"content-type", b"application/json"),
            (b"etag", question.state + answer.ending),
            (b"cache-control", b"private, no-cache"),
        ]
        return _encode(document), headers

    def _unknown(self, *, is_known: bool) -> Problem:
        if is_known:
            return Outdated("newer rules are on their way to this server; ask again in a moment")
        return CollectionNotFound("there is no such collection, or none of its revisions is published", poll=self._poll)

    def _document(self, question: Question, answer: Served) -> dict[str, Any]:
        package = answer.package
        return {
            "decision_id": new_id("d", self._clock),
            "revision": question.bound.revision,
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

    async def _refuse(self, question: Question, answer: Refusal) -> Problem:
        """Record a refusal and return the problem to raise. The same question gets the same answer again without a record."""
        document: dict[str, Any] = {
            "decision_id": new_id("d", self._clock),
            "revision": question.bound.revision,
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
        await self._record(question, document)
        if len(self._refusals) >= MAX_REFUSALS:
            self._refusals.clear()
        self._refusals[question.account, question.install_id, question.collection] = (question.state, problem)
        return problem

    async def _record(self, question: Question, document: dict[str, Any]) -> None:
        message = events.decision_made(
            decision_id=document["decision_id"],
            account=question.account,
            collection=question.collection,
            revision=question.bound.revision,
            install_id=question.install_id,
            decided_at=question.now,
            context=_encode(context_of(question.facts)),
            answer=_encode(document),
        )
        await self._eventlog.append(events.DECISION_MADE, [message])

    def _assign(self, question: Question, answer: Served, nonce: str) -> dict[str, Any]:
        """Sign who gets what. The counter is the position of the rules: the same in every process, higher with each change, never lower.

        A device that has seen a higher one although the tables have none (they were restored from a backup) keeps its own.
        """
        payload = {
            "type": "latebind-assignment-v1",
            "account": question.account,
            "install_id": question.install_id,
            "collection": question.collection,
            "revision": question.bound.revision,
            "package": answer.package.digest,
            "counter": max(question.bound.position, question.seen),
            "nonce": nonce,
            "issued_at": rfc3339(question.now),
            "expires_at": rfc3339(question.now + self._assignment_lifetime),
        }
        return dict(self._signer.sign(question.account, ASSIGNMENT_TYPE, _encode(payload)))


def _facts(body: bytes, install_id: str, country: bytes | None) -> dict[str, dict[str, Any]]:
    try:
        facts = read_facts(body, country)
    except ContextProblem as problem:
        raise ContextInvalid(str(problem)) from problem
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ContextInvalid("the device context is not valid JSON in UTF-8") from error
    if facts[""].get("install_id") != install_id:
        raise InstallMismatch("`install_id` of the device context is not the install that the token belongs to")
    return facts


def read_facts(body: bytes, country: bytes | None) -> dict[str, dict[str, Any]]:
    """Return the facts of a request's body and the country that a trusted proxy named.

    The decoder itself stops at about a thousand levels (`RecursionError`), and nothing here follows values deeper than two.
    """
    return facts_of(_decode(body), None if country is None else country.decode("ascii", "replace"))


def _position(etag: bytes | None) -> int:
    """Return the position that an ETag of ours names, 0 for any other."""
    if etag is None or etag[_DASH] != b"-":
        return 0
    try:
        return int(etag[_POSITION], 16)
    except ValueError:
        return 0


def _counter(header: bytes | None) -> int:
    """Return the counter that a device names, 0 for what cannot be one."""
    if header is None or not header.isdigit() or len(header) > 16:
        return 0
    counter = int(header)
    return counter if counter < _HIGHEST else 0


def _nonce(nonce: bytes | None) -> str:
    if nonce is None or not _SHORTEST_NONCE <= len(nonce) <= _LONGEST_NONCE or not all(0x21 <= byte <= 0x7E for byte in nonce):
        raise NonceInvalid("send a new `Latebind-Nonce` of 16 to 64 printable ASCII characters with each request")
    return nonce.decode("ascii")
