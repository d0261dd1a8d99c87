"""Keeps one collection of one device up to date: asks, fetches, verifies, tests, switches, returns, reports.

It does the I/O around `decision.py` and has no thread of its own: `poll_once` is one check, called by the manager's thread, by hand, or by
a simulated fleet. Whatever fails, what runs goes on.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from latebind._retry import Backoff
from latebind.device import decision
from latebind.device.api import Answer, PollAdvice
from latebind.device.bundle import Bundle
from latebind.device.cache import PackageSource
from latebind.device.context import full_context
from latebind.device.decision import PollOutcome, PollResult, Resolved, Step
from latebind.device.engines import choose_engine, describe_engines
from latebind.device.handle import Handle
from latebind.device.loader import Loader
from latebind.device.manifest import Manifest
from latebind.device.parts import DeviceParts
from latebind.device.runtime import LoadedModel
from latebind.device.state import CollectionState, PackageRef, Refusal, StateFile, kept_packages
from latebind.device.verify import Expected, Trust, effective_now, verify_assignment
from latebind.device.voice import Voice
from latebind.errors import (
    DeviceError,
    FirstStartOffline,
    LatebindError,
    PackageRefused,
    ResponseInvalid,
    ServerUnreachable,
    VerificationFailed,
)

log = logging.getLogger("latebind")


class CollectionUpdater:
    """One collection on one device. Checks exclude each other; handles may be used meanwhile."""

    def __init__(self, parts: DeviceParts, collection: str, *, wake: Callable[[], None]) -> None:
        """`wake` is called when `reconcile` has something to do."""
        self._parts = parts
        self._collection = collection
        self._wake = wake
        self._lock = threading.RLock()
        self._state = StateFile(parts.states / f"{collection}.json", account=parts.account, collection=collection)
        self._loader = Loader(parts, collection, self._state)
        self._handles: list[Handle] = []
        self._voice = Voice(parts, collection, self._state)
        self._trying: set[str] = set()
        self._backoff = Backoff(parts.random, parts.options.retry_base_s, parts.options.retry_cap_s)
        self.last_outcome: PollOutcome | None = None

    @property
    def state(self) -> CollectionState:
        """What is remembered of the collection."""
        return self._state.value

    @property
    def handles(self) -> list[Handle]:
        """The open handles."""
        return list(self._handles)

    # --- opening ----------------------------------------------------------------------------------------------------------------

    def open_handle(self) -> Handle:
        """A running model: from the cache if there is one, else from the server.

        Raises FirstStartOffline, PackageRefused, ServerError (NoMatch, NoCompatiblePackage, …), and what installing and loading raise.
        """
        with self._lock:
            model = self._open_installed()
            if model is None:
                outcome, model = self._poll(want_model=True)
                if model is None:
                    raise self._why_nothing(outcome) from outcome.error
            # A model opened from the cache may be one that has not proved itself before the process ended.
            handle = Handle(
                model=model,
                telemetry=self._parts.telemetry,
                listener=self,
                is_new=not self.state.proved,
                probation_runs=self._parts.options.probation_runs,
            )
            self._handles.append(handle)
            self._voice.tell("running", model.digest)
            return handle

    def _open_installed(self) -> LoadedModel | None:
        """The current package, or the one before when the current one cannot be used; None when neither can."""
        state = self.state
        if state.current is None or self._parts.api.identity.trust is None:
            return None
        if not state.proved and state.is_deadly(state.current.digest):
            self._return(state.current.digest, decision.crash_loop())
        while (ref := self.state.current) is not None:
            try:
                return self._loader.load_warily(ref, test=self.state.tested_on != self._parts.machine)
            except (DeviceError, OSError) as error:
                failure = decision.as_error(error)
                self._voice.failed(ref, failure)
                if not self._return(ref.digest, failure):
                    return None
        return None

    def _why_nothing(self, outcome: PollOutcome) -> LatebindError:
        error = outcome.error or PackageRefused(f"nothing of {self._collection} is installed")
        if isinstance(error, ServerUnreachable):
            where = f"the server {self._parts.server} cannot be reached"
            return FirstStartOffline(f"nothing of the collection {self._collection!r} is installed yet, and {where}: {error}")
        return error

    # --- checking for updates -----------------------------------------------------------------------------------------------------

    def poll_once(self) -> PollOutcome:
        """One check, with all that follows from it. Never raises LatebindError: failures are in the outcome."""
        with self._lock:
            self.reconcile()
            outcome, model = self._poll(want_model=False)
            if model is not None:
                model.close()
            return outcome

    def take_bundle(self, path: Path) -> PollOutcome:
        """Do with what a bundle assigns as `poll_once` does with what the server assigns. Failures are in the outcome.

        One that is older than the last assignment or bundle that was accepted changes nothing.
        """
        with self._lock:
            try:
                outcome = self._take_bundle(path)
            except (LatebindError, OSError) as failure:
                outcome = self._outcome(PollResult.FAILED, error=decision.as_error(failure))
                log.warning("%s: the bundle is not used: %s", self._collection, outcome.error)
            self.last_outcome = outcome
            return outcome

    def _take_bundle(self, path: Path) -> PollOutcome:
        trust = self._parts.api.identity.trust
        if trust is None:
            raise VerificationFailed("no keys to trust are known: enrol once, or bring them (docs/interop.md)", code="TRUST_INVALID")
        with Bundle(path, account=self._parts.account, trust=trust) as bundle:
            assignment = bundle.assignment(self._collection, self._parts.engines)
            if assignment.counter < self.state.counter:
                return self._unchanged_or_kept(self.state.assigned)
            if assignment.package != self.state.assigned:
                self._voice.forget()
            self._state.update(lambda state: state.accepted(assignment, etag=None, decision_id=None))
            ref = PackageRef.of(assignment.package, bundle.manifests[assignment.package])
            return self._act(ref, trust, want_model=False, source=bundle)[0]

    def next_delay(self) -> float:
        """Seconds until the next check makes sense: as the server advised, or with growing pauses after failures."""
        outcome, state = self.last_outcome, self.state
        if outcome is not None and outcome.result is PollResult.FAILED:
            return self._backoff.failed(getattr(outcome.error, "retry_after_s", None))
        self._backoff.succeeded()
        advice = None if state.poll_after_s is None else PollAdvice(state.poll_after_s, state.poll_spread_s or 0.0)
        return decision.poll_delay(advice, self._parts.options, self._parts.random)

    def reconcile(self) -> None:
        """Bring handles that run another package than the current one (after a return) back in line, from the cache."""
        with self._lock:
            current = self.state.current
            if current is None:
                return
            for handle in self.handles:
                if handle.info.package == current.digest:
                    continue
                try:
                    handle.switch(self._loader.load(current, test=False), kind="returned")
                except (DeviceError, OSError) as error:
                    self._voice.failed(current, decision.as_error(error))
                else:
                    self._voice.tell("running", current.digest)

    def check_files(self) -> None:
        """SHA-256 of all files of the current package. What is damaged is removed, and fetched again at the next check."""
        with self._lock:
            current, trust = self.state.current, self._parts.api.identity.trust
            if current is None or trust is None or not self._parts.options.install_files:
                return
            try:
                package = self._parts.cache.open(current.digest, account=self._parts.account, trust=trust)
                self._parts.cache.verify_fully(current.digest, package.manifest)
            except (DeviceError, OSError) as error:
                self._voice.failed(current, decision.as_error(error))

    def _poll(self, *, want_model: bool) -> tuple[PollOutcome, LoadedModel | None]:
        try:
            outcome, model = self._ask(want_model=want_model)
        except LatebindError as error:
            outcome, model = self._outcome(PollResult.FAILED, error=error), None
        except OSError as error:
            outcome, model = self._outcome(PollResult.FAILED, error=decision.as_error(error)), None
        if outcome.error is not None:
            log.info("%s: %s: %s", self._collection, outcome.result, outcome.error)
        self.last_outcome = outcome
        return outcome, model

    def _ask(self, *, want_model: bool) -> tuple[PollOutcome, LoadedModel | None]:
        parts, state = self._parts, self.state
        nonce = secrets.token_urlsafe(24)
        try:
            trust = parts.api.enrol().trust
            assert trust is not None
            now = effective_now(parts.clock.now(), state.newest_signed)
            etag = decision.etag_to_send(state, now=now, machine=parts.machine, is_installed=self._is_installed(state.current))
            context = full_context(
                parts.facts,
                install_id=parts.api.identity.install_id,
                sdk_version=parts.sdk_version,
                runtimes=describe_engines(parts.engines.values()),
                # Of every collection: the server counts the bytes that a device still has to fetch by the files it has.
                installed=sorted(kept_packages(parts.states) | state.kept),
            )
            answer = parts.api.resolve(self._collection, context, nonce=nonce, etag=etag, counter=state.counter)
        except LatebindError as error:
            self._voice.refused(error)
            raise
        self._note_advice(answer, asked_with=etag)
        if answer.refusal is not None:
            self._voice.refused(answer.refusal)
            return self._outcome(PollResult.REFUSED, error=answer.refusal), None
        if answer.body is None:
            return self._unchanged_or_kept(state.assigned), None
        resolved = decision.parse_resolved(answer.body)
        self._accept(resolved, answer, nonce=nonce, now=now, trust=trust)
        outcome, model = self._act(resolved.package, trust, want_model=want_model)
        return replace(outcome, reason=resolved.reason, rule_id=resolved.rule_id, decision_id=resolved.decision_id), model

    def _accept(self, resolved: Resolved, answer: Answer, *, nonce: str, now: float, trust: Trust) -> None:
        """Check the assignment and remember it. Nothing is remembered of one that fails."""
        parts = self._parts
        expected = Expected(
            parts.account, parts.api.identity.install_id, self._collection, nonce, resolved.package.digest, last_counter=self.state.counter
        )
        try:
            assignment = verify_assignment(resolved.assignment, expected, trust=trust, now=now)
        except VerificationFailed as error:
            self._voice.failed(resolved.package, error)
            raise
        if assignment.package != self.state.assigned:
            self._voice.forget()
        self._state.update(
            lambda state: decision.advised(state, answer.poll).accepted(assignment, etag=answer.etag, decision_id=resolved.decision_id)
        )

    def _act(
        self, assigned: PackageRef, trust: Trust, *, want_model: bool, source: PackageSource | None = None
    ) -> tuple[PollOutcome, LoadedModel | None]:
        state, digest = self.state, assigned.digest
        step = decision.next_step(state, digest, machine=self._parts.machine, is_installed=self._is_installed(state.current))
        if step is Step.INSTALL:
            self._voice.tell("assigned", digest)
            return self._install(assigned, trust, want_model=want_model, source=source or self._parts.api)
        outcome = self._unchanged_or_kept(digest)
        if step is Step.NOTHING and want_model and state.current is not None:
            return outcome, self._loader.load(state.current, test=True)
        return outcome, None

    # --- installing ---------------------------------------------------------------------------------------------------------------

    def _install(
        self, assigned: PackageRef, trust: Trust, *, want_model: bool, source: PackageSource
    ) -> tuple[PollOutcome, LoadedModel | None]:
        digest, received = assigned.digest, 0
        try:
            manifest = self._parts.cache.fetch_manifest(digest, source=source, account=self._parts.account, trust=trust)
            choose_engine(self._parts.engines, manifest)
            if self._parts.options.install_files:
                received = self._fetch_files(digest, manifest, source)
            self._voice.tell("verified", digest)
            model = self._bring_up(PackageRef.of(digest, manifest), want_model=want_model)
        except (LatebindError, OSError) as failure:
            error = decision.as_error(failure)
            self._voice.failed(assigned, error)
            refusal = decision.refusal_of(self.state, digest, error, machine=self._parts.machine)
            if refusal is not None:
                self._state.update_if_possible(lambda state: state.failed(digest, refusal))
            return self._outcome(PollResult.FAILED, error=error, received=received), None
        self._collect()
        return self._outcome(PollResult.SWITCHED, received=received), model

    def _fetch_files(self, digest: str, manifest: Manifest, source: PackageSource) -> int:
        if self._parts.cache.is_installed(digest):
            return 0
        self._voice.tell("downloading", digest)
        received = self._parts.cache.install(digest, manifest, source=source, keep=self.state.kept | kept_packages(self._parts.states))
        self._voice.tell("downloaded", digest)
        return received

    def _bring_up(self, ref: PackageRef, *, want_model: bool) -> LoadedModel | None:
        """Load and test the package, remember it as the current one, and switch the handles: in this order, so that a full disk or a bad
        model leaves everything as it was. The model for a new handle comes back if one is wanted."""
        if not self._parts.options.install_files:
            self._state.update(lambda state: state.switched(ref, tested_on=self._parts.machine).proven(ref.digest))
            self._voice.tell("running", ref.digest)
            return None
        handles = [handle for handle in self.handles if handle.info.package != ref.digest]
        if self.state.is_deadly(ref.digest):
            raise decision.crash_loop()
        models = [self._loader.load_warily(ref, test=True)]
        try:
            while len(models) < len(handles) + want_model:
                models.append(self._loader.load(ref, test=False))
            self._state.update(lambda state: state.switched(ref, tested_on=self._parts.machine))
        except BaseException:
            for model in models:
                model.close()
            raise
        for handle in handles:
            handle.switch(models.pop())
        if handles:
            self._voice.tell("running", ref.digest)
        if want_model:
            return models.pop()
        for model in models:
            model.close()
        return None

    def _collect(self) -> None:
        try:
            self._parts.cache.collect(kept_packages(self._parts.states) | self.state.kept)
        except OSError as error:
            log.warning("the cache could not be tidied: %s", error)

    # --- what handles say (HandleListener) ------------------------------------------------------------------------------------------

    def on_trying(self, digest: str) -> None:
        """See `HandleListener.on_trying`."""
        if digest not in self._trying:
            self._trying.add(digest)
            self._state.update_if_possible(lambda state: state.began(digest))

    def on_tried(self, digest: str) -> None:
        """See `HandleListener.on_tried`."""
        self._trying.discard(digest)
        self._state.update_if_possible(lambda state: state.survived(digest))

    def on_proven(self, digest: str) -> None:
        """See `HandleListener.on_proven`."""
        self._trying.discard(digest)
        self._state.update_if_possible(lambda state: state.proven(digest))

    def on_broken(self, digest: str, error: DeviceError) -> None:
        """See `HandleListener.on_broken`."""
        if self._return(digest, error):
            self._wake()
        else:
            self._voice.tell("failed", digest, error)

    def on_closed(self, handle: Handle) -> None:
        """See `HandleListener.on_closed`."""
        if handle in self._handles:
            self._handles.remove(handle)

    def _return(self, digest: str, error: LatebindError) -> bool:
        """Make the previous package the current one again; whether there was one to return to."""
        refusal = Refusal(error.code, error.detail, 1, self._parts.machine, final=not decision.is_transient(error))
        changed = self._state.update_if_possible(lambda state: state.returned(digest, refusal))
        if changed is None or changed.current is None or changed.current.digest == digest:
            return False
        # The state `returned` names the package that runs from now on, as `running` does; the one that failed has an event of its own.
        self._voice.tell("failed", digest, error)
        self._voice.tell("returned", changed.current.digest, error)
        return True

    # --- small helpers ------------------------------------------------------------------------------------------------------------

    def _is_installed(self, ref: PackageRef | None) -> bool:
        return ref is not None and (not self._parts.options.install_files or self._parts.cache.is_installed(ref.digest))

    def _unchanged_or_kept(self, assigned: str | None) -> PollOutcome:
        refusal = self.state.refusal(assigned, machine=self._parts.machine) if assigned is not None else None
        if refusal is None:
            return self._outcome(PollResult.UNCHANGED)
        error = PackageRefused(f"the assigned package {str(assigned)[:12]} has failed on this device: {refusal.detail}", code=refusal.code)
        return self._outcome(PollResult.KEPT, error=error)

    def _outcome(self, result: PollResult, *, error: LatebindError | None = None, received: int = 0) -> PollOutcome:
        state = self.state
        return PollOutcome(result, state.current, error, received, revision=state.revision, decision_id=state.decision_id)

    def _note_advice(self, answer: Answer, *, asked_with: str | None) -> None:
        """Keep the advice of an answer without an assignment, and the ETag of a 304. (A 200 counts only once it is verified.)"""
        if answer.status == 304 and asked_with is None:
            raise ResponseInvalid("the server answered 304 to a question without an ETag")
        if answer.status != 200:
            etag = answer.etag if answer.status == 304 else None
            self._state.update_if_possible(lambda state: replace(decision.advised(state, answer.poll), etag=etag or state.etag))
