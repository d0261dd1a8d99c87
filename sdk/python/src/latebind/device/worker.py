"""A handle's own thread, and the reactive chains that hand their items to it.

Chains share the thread: items run one after the other in the order they came, and each result goes back to the chain it came from. What a
subscriber does with a result happens on this thread too; `ops.observe_on` moves it elsewhere. It knows nothing of models: what runs is a
function.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from reactivex import Observable
from reactivex.abc import DisposableBase, ObserverBase, SchedulerBase
from reactivex.disposable import CompositeDisposable, Disposable

from latebind.errors import Closed

log = logging.getLogger("latebind")

MAX_WAITING = 1024
_NOTHING = object()


class Worker:
    """One thread and its queue. The thread starts with the first task."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task. Waits while too many are queued, unless it is called on the worker's thread. Raises Closed."""
        with self._changed:
            while len(self._tasks) >= MAX_WAITING and not self._closed and not self._is_own_thread():
                self._changed.wait()
            if self._closed:
                raise Closed("the handle is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._tasks.append(task)
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more tasks and finish those that are queued. On the worker's own thread it does not wait for that."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and not self._is_own_thread():
            thread.join()

    def _is_own_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._tasks and not self._closed:
                    self._changed.wait()
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                self._changed.notify_all()
            try:
                task()
            except Exception:
                # A subscriber raised. Its chain is closed by ReactiveX; the other chains go on.
                log.exception("a subscriber of %s raised", self._name)


class Chain:
    """One subscription of one pipeline that passes through a handle."""

    def __init__(self, observer: ObserverBase[Any], infer: Callable[[Any], Any], worker: Worker, *, keep_latest: bool) -> None:
        self._observer = observer
        self._infer = infer
        self._worker = worker
        self._keep_latest = keep_latest
        self._latest: Any = _NOTHING
        self._lock = threading.Lock()
        self._done = False
        self.source = Disposable()

    def on_next(self, item: Any) -> None:
        """An item came in: queue it, or let it take the place of the one that still waits."""
        if not self._keep_latest:
            self._submit(lambda: self._run(item))
            return
        with self._lock:
            is_queued = self._latest is not _NOTHING
            self._latest = item
        if not is_queued:
            self._submit(self._run_latest)

    def on_error(self, error: Exception) -> None:
        """The source failed: after what is queued, the chain fails too."""
        self._submit(lambda: self.fail(error))

    def on_completed(self) -> None:
        """The source is at its end: after what is queued, so is the chain."""
        self._submit(self._complete)

    def stop(self) -> None:
        """Nobody listens any more."""
        self._done = True

    def fail(self, error: Exception) -> None:
        """End the chain with an error; other chains do not notice."""
        if not self._done:
            self._done = True
            self._observer.on_error(error)

    def _submit(self, task: Callable[[], None]) -> None:
        if self._done:
            return
        try:
            self._worker.submit(task)
        except Closed as error:
            self.fail(error)

    def _complete(self) -> None:
        if not self._done:
            self._done = True
            self._observer.on_completed()

    def _run_latest(self) -> None:
        with self._lock:
            item, self._latest = self._latest, _NOTHING
        self._run(item)

    def _run(self, item: Any) -> None:
        if self._done:
            return
        try:
            result = self._infer(item)
        except Exception as error:
            self.fail(error)
            return
        self._observer.on_next(result)


class Chains:
    """All chains of one handle."""

    def __init__(self, infer: Callable[[Any], Any], worker: Worker) -> None:
        self._infer = infer
        self._worker = worker
        self._lock = threading.Lock()
        self._live: set[Chain] = set()

    def operator(self, *, keep_latest: bool) -> Callable[[Observable[Any]], Observable[Any]]:
        """One stage of a pipeline: each item of the source is run, and its result comes out."""

        def stage(source: Observable[Any]) -> Observable[Any]:
            def subscribe(observer: ObserverBase[Any], scheduler: SchedulerBase | None = None) -> DisposableBase:
                chain = Chain(observer, self._infer, self._worker, keep_latest=keep_latest)
                with self._lock:
                    self._live.add(chain)
                subscription = source.subscribe(chain.on_next, chain.on_error, chain.on_completed, scheduler=scheduler)
                return CompositeDisposable(Disposable(lambda: self._forget(chain)), subscription)

            return Observable(subscribe)

        return stage

    def fail(self, error: Exception) -> None:
        """End every chain that is still open."""
        with self._lock:
            chains = list(self._live)
        for chain in chains:
            try:
                chain.fail(error)
            except Exception as raised:
                # Whoever does not listen for errors raises them again (ReactiveX's default); closing goes on.
                log.debug("a chain without an error handler ended: %s", raised)

    def _forget(self, chain: Chain) -> None:
        chain.stop()
        with self._lock:
            self._live.discard(chain)
