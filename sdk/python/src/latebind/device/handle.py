"""What an app holds: a model that runs, that may be exchanged for another one between two runs, and that tells which one made a result.

The handle decides nothing about packages. It runs what `updater.py` gives it, keeps the package that ran before until the new one has
answered once, and tells the updater how the first runs went.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Protocol, Self

from reactivex import Observable
from reactivex.subject import Subject

from latebind.device.info import Inference, ModelInfo
from latebind.device.runtime import LoadedModel
from latebind.device.telemetry import RunSource, Telemetry
from latebind.device.worker import Chains, Worker
from latebind.errors import Closed, DeviceError, InferenceFailed, InvalidInput
from latebind_proto.telemetry_pb2 import FAILURE_PHASE_RUN

log = logging.getLogger("latebind")


@dataclass(frozen=True, slots=True)
class Update:
    """The handle runs another package: `switched` to what the server assigned, or `returned` to the one before."""

    kind: str
    info: ModelInfo
    previous: ModelInfo | None


class HandleListener(Protocol):
    """Hears how new packages do.

    `on_trying` and `on_tried` are called while the handle is locked, so they must not use it; the others are called without a lock.
    """

    def on_trying(self, digest: str) -> None:
        """A package that has never answered is about to be run."""
        ...

    def on_tried(self, digest: str) -> None:
        """That run has failed, and the process is still there."""
        ...

    def on_proven(self, digest: str) -> None:
        """A new package has answered for the first time."""
        ...

    def on_broken(self, digest: str, error: DeviceError) -> None:
        """A new package has failed its first runs."""
        ...

    def on_closed(self, handle: Handle) -> None:
        """The handle needs no more updates."""
        ...


class _Active:
    """A loaded model with what running it needs at hand."""

    __slots__ = ("failures", "info", "is_new", "model", "ring", "run", "source")

    def __init__(self, model: LoadedModel, telemetry: Telemetry, lock: threading.Lock, *, is_new: bool) -> None:
        self.model = model
        self.info = model.info
        self.run = model.engine_model.run
        self.source = source_of(model.info)
        self.ring = telemetry.ring(self.source, lock)
        self.is_new = is_new
        self.failures = 0

    def close(self) -> None:
        self.ring.fold()
        self.model.close()


class Handle:
    """A running model. Made by `Manager`; may be used from several threads and in several reactive chains at once.

    Runs exclude each other. Results are `Inference`: a dict of output arrays that also carries the `info` of the model that made them.
    """

    def __init__(self, *, model: LoadedModel, telemetry: Telemetry, listener: HandleListener, is_new: bool, probation_runs: int) -> None:
        """`is_new`: the package has not answered yet. After `probation_runs` failures in a row it counts as broken."""
        self._lock = threading.Lock()
        self._telemetry = telemetry
        self._listener = listener
        self._probation_runs = probation_runs
        self._active: _Active | None = _Active(model, telemetry, self._lock, is_new=is_new)
        self._fallback: _Active | None = None
        self._info = model.info
        self._worker = Worker(f"latebind-run-{model.info.collection}")
        self._chains = Chains(self.run, self._worker)
        self._updates: Subject[Update] = Subject()

    # --- what apps use ----------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """The model that runs now. A result may be older: decode it with its own `info`."""
        return self._info

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameter values of the model that runs now, by name."""
        return self._info.params

    @property
    def updates(self) -> Observable[Update]:
        """Tells of every switch, after it happened; ends when the handle is closed."""
        return self._updates

    def load_hyper_param_file(self, name: str) -> bytes:
        """A file parameter, or an auxiliary file by its path, of the model that runs now. Raises UnknownParameter, CacheDamaged."""
        return self._info.load_hyper_param_file(name)

    def run(self, inputs: Any) -> Inference:
        """Run once, on the calling thread: a mapping of input name to array, or the array itself when the model has one input.

        Raises InvalidInput, InferenceFailed, Closed.
        """
        failure: Exception | None = None
        with self._lock:
            active = self._active
            if active is None:
                raise Closed("the handle is closed")
            if active.is_new:
                self._listener.on_trying(active.info.package)
            start = perf_counter_ns()
            try:
                outputs = active.run(inputs)
            except BaseException as error:
                if active.is_new:
                    self._listener.on_tried(active.info.package)
                if isinstance(error, InvalidInput) or not isinstance(error, Exception):
                    raise
                failure = error
            else:
                end = perf_counter_ns()
                ring = active.ring
                index = ring.count
                ring.starts[index] = start
                ring.ends[index] = end
                ring.count = index + 1
                if index >= ring.last:
                    ring.fold()
                result = Inference(outputs)
                result.info = active.info
                result.latency_us = (end - start) // 1000
                if not active.is_new:
                    return result
                self._prove(active)
        if failure is not None:
            return self._recover(active, inputs, failure)
        self._listener.on_proven(active.info.package)
        return result

    def run_inference(self, *, keep_latest: bool = False) -> Callable[[Observable[Any]], Observable[Inference]]:
        """One stage of a ReactiveX pipeline: every item (as for `run`) goes in, its `Inference` comes out, in order.

        The model runs on the handle's own thread, and subscribers hear the results there. A failed run ends its own chain with the error.
        With `keep_latest` an item that still waits is replaced by the next one (for cameras); without it every item is run, and a source
        that is more than 1,024 items ahead has to wait.
        """
        return self._chains.operator(keep_latest=keep_latest)

    def close(self) -> None:
        """Finish what is queued, end the chains, release the model. Further runs raise Closed."""
        self._worker.close()
        self._chains.fail(Closed("the handle is closed"))
        with self._lock:
            active, fallback = self._active, self._fallback
            self._active = self._fallback = None
            for entry in (active, fallback):
                if entry is not None:
                    entry.close()
        if active is not None:
            self._updates.on_completed()
            self._listener.on_closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- what the updater uses --------------------------------------------------------------------------------------------------

    def switch(self, model: LoadedModel, *, kind: str = "switched") -> None:
        """Run another package from the next run on. The handle takes the model over, also when it is closed by now."""
        returned = kind == "returned"
        with self._lock:
            old = self._active
            if old is None:
                model.close()
                return
            self._active = _Active(model, self._telemetry, self._lock, is_new=not returned)
            self._info = model.info
            old.ring.fold()
            # The one to return to: what was kept, as long as what ran has not answered; else what ran. After a return there is none.
            kept = self._fallback if old.is_new and self._fallback is not None else old
            for entry in (old, self._fallback):
                if entry is not None and (returned or entry is not kept):
                    entry.close()
            self._fallback = None if returned else kept
        self._tell(Update(kind, model.info, old.info))

    def _prove(self, active: _Active) -> None:
        """The new package has answered: the one before is released. The lock is held."""
        active.is_new = False
        if self._fallback is not None:
            self._fallback.close()
            self._fallback = None

    def _recover(self, active: _Active, inputs: Any, failure: Exception) -> Inference:
        """A run failed. While a package is new, the one before it answers in its place; after too many failures it takes over for good."""
        error = failure if isinstance(failure, DeviceError) else InferenceFailed(f"the model failed to run: {failure}")
        self._telemetry.fail(active.source, FAILURE_PHASE_RUN, error.code, error.detail)
        result: Inference | None = None
        broken: _Active | None = None
        with self._lock:
            fallback = self._fallback if active is self._active else None
            if fallback is not None:
                result = self._run_fallback(fallback, inputs)
            # An input on which both fail says nothing about the new package.
            if active is self._active and active.is_new and (fallback is None or result is not None):
                active.failures += 1
                if active.failures == self._probation_runs:
                    broken = active
            if broken is not None and fallback is not None:
                self._active, self._fallback = fallback, None
                self._info = fallback.info
                broken.close()
        if broken is not None:
            self._listener.on_broken(broken.info.package, error)
            if fallback is not None:
                self._tell(Update("returned", fallback.info, broken.info))
        if result is not None:
            return result
        raise error from failure

    @staticmethod
    def _run_fallback(fallback: _Active, inputs: Any) -> Inference | None:
        start = perf_counter_ns()
        try:
            result = Inference(fallback.run(inputs))
        except Exception as error:
            log.debug("the package before fails on this input too: %s", error)
            return None
        end = perf_counter_ns()
        fallback.ring.record(start, end)
        result.info = fallback.info
        result.latency_us = (end - start) // 1000
        return result

    def _tell(self, update: Update) -> None:
        try:
            self._updates.on_next(update)
        except Exception:
            # A subscriber of the updates must not stop the update.
            log.exception("a subscriber of handle.updates raised")


def source_of(info: ModelInfo) -> RunSource:
    """Whose measurements these are."""
    return RunSource(
        collection=info.collection,
        model_id=info.model_id,
        version=info.version,
        variant=info.variant,
        package=info.package,
        engine=info.engine,
        engine_version=info.engine_version,
    )
