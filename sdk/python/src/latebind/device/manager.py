"""What an app starts with: owns the threads, the memory and the files of all models that it runs, and releases them.

A thread per collection checks for updates, a thread per account sends measurements, and each handle has its own to run on. What they do is
in `agent.py` and below.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reactivex import Observable
from reactivex.abc import DisposableBase, ObserverBase, SchedulerBase
from reactivex.disposable import Disposable

from latebind._retry import Backoff, is_retryable
from latebind._transport import HttpTransport, NoTransport, Stream, Transport
from latebind.device.agent import DeviceAgent
from latebind.device.clock import Clock, SystemClock
from latebind.device.config import ModelConfig
from latebind.device.context import detect_context, merge_context
from latebind.device.decision import PollOutcome
from latebind.device.engines import Engine, find_engines
from latebind.device.handle import Handle
from latebind.device.manifest import loads_strictly
from latebind.device.options import DeviceOptions
from latebind.device.verify import parse_given_trust
from latebind.errors import Closed, ConnectionLost, DownloadFailed, LatebindError, ServerError, ServerUnreachable

log = logging.getLogger("latebind")

# How long `close` waits for a check or a download that is under way.
STOP_TIMEOUT_S = 10.0
FIRST_FLUSH_S = 5.0


class Manager:
    """Opens models and keeps them up to date, until it is closed. Use it as a context manager.

    - `server`: the gateway's address; None: this device has no network, and lives on bundles.
    - `bundle`: a file with packages (docs/interop.md): what it has for a collection is installed when that is opened, unless it is older.
    - `trust`: the account's public keys, or a file with them: what bundles are checked against, and kept instead of enrolment's.
    - `enrolment_key`: for the first contact; a mapping of account to key when several accounts are used.
    - `cache_dir`: where identity, packages and buffers lie; None means `latebind` in the user's data folder. Processes may share it.
    - `context`: what the app knows better than the SDK can find out (PRODUCT section 5): `app`, `device`, `os`, `locale`, `country`,
      `groups`, `attributes`; merged over what was found, and None removes a fact.
    - `background`: without it nothing happens by itself; call `check_for_updates` and `flush`.
    - `transport`, `clock`, `engines`, `rng`, `options`: None means the real ones.
    """

    def __init__(
        self,
        *,
        server: str | None = None,
        bundle: Path | str | None = None,
        trust: Mapping[str, Any] | Path | str | None = None,
        enrolment_key: str | Mapping[str, str] | None = None,
        cache_dir: Path | str | None = None,
        context: Mapping[str, Any] | None = None,
        background: bool = True,
        transport: Transport | None = None,
        clock: Clock | None = None,
        engines: Mapping[str, Engine] | None = None,
        rng: random.Random | None = None,
        options: DeviceOptions | None = None,
    ) -> None:
        self._server = server or ""
        self._bundle = bundle
        self._trust = trust if trust is None or isinstance(trust, Mapping) else loads_strictly(Path(trust).read_bytes())
        self._enrolment_key = enrolment_key
        self._cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._context = merge_context(detect_context(), context)
        self._background = background
        self._stopping = threading.Event()
        self._own_transport: HttpTransport | None = None
        if server is None:
            transport = NoTransport()
        elif transport is None:
            transport = self._own_transport = HttpTransport()
        self._transport = _StoppableTransport(transport, self._stopping)
        self._clock = clock or SystemClock()
        self._engines = find_engines() if engines is None else engines
        self._random = rng or random.SystemRandom()
        self._options = options or DeviceOptions()
        self._lock = threading.Lock()
        self._agents: dict[str, DeviceAgent] = {}
        self._bundled: set[str] = set()
        self._loops: dict[tuple[str, str], _Loop] = {}

    # --- opening models -----------------------------------------------------------------------------------------------------------

    def create_handle(self, config: ModelConfig) -> Observable[Handle]:
        """Exactly one handle (or an error) per subscription, delivered on a thread of its own.

        The handle stays open when the subscription ends; close it, or the manager. The errors are those of `open_blocking`.
        """

        def subscribe(observer: ObserverBase[Handle], scheduler: SchedulerBase | None = None) -> DisposableBase:
            gone = threading.Event()

            def deliver(handle: Handle) -> None:
                if gone.is_set():
                    handle.close()
                else:
                    observer.on_next(handle)
                    observer.on_completed()

            self._open_on_a_thread(config, deliver, observer.on_error)
            return Disposable(gone.set)

        return Observable(subscribe)

    async def open(self, config: ModelConfig) -> Handle:
        """A running model, without ReactiveX and without blocking the event loop. Raises as `open_blocking`."""
        future: concurrent.futures.Future[Handle] = concurrent.futures.Future()
        self._open_on_a_thread(config, future.set_result, future.set_exception)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(_close_result)
            raise

    def open_blocking(self, config: ModelConfig) -> Handle:
        """A running model, from the cache if there is one, else from the server. The calling thread waits.

        Raises what is wrong with the bundle when nothing is installed; FirstStartOffline, NotEnrolled,
        NoMatch, NoCompatiblePackage, CollectionNotFound and other ServerErrors, PackageRefused,
        VerificationFailed, LoadFailed, EngineMissing, DiskFull, Closed.
        """
        agent = self._agent(config.account)
        backoff = Backoff(self._random, self._options.retry_base_s, self._options.retry_cap_s)
        while True:
            if self._stopping.is_set():
                raise Closed("the manager is closed")
            try:
                if self._bundle is not None and config.collection not in self._bundled:
                    self._take_bundle(agent, config.collection, self._bundle)
                handle = agent.open(config.collection)
                break
            except LatebindError as error:
                if not _may_help_to_retry(error) or backoff.failures + 1 >= self._options.open_attempts:
                    raise
                self._stopping.wait(backoff.failed(getattr(error, "retry_after_s", None)))
        self._start_loops(agent, config.collection)
        if self._stopping.is_set():
            handle.close()
            raise Closed("the manager is closed")
        return handle

    # --- by hand ------------------------------------------------------------------------------------------------------------------

    def check_for_updates(self, config: ModelConfig) -> PollOutcome:
        """Check now, with all that follows from it; handles switch before this returns. Failures are in the outcome."""
        return self._agent(config.account).poll_once(config.collection)

    def install_bundle(self, config: ModelConfig, path: Path | str) -> PollOutcome:
        """Install what another bundle has for a collection; handles switch before this returns. Failures are in the outcome."""
        return self._agent(config.account).take_bundle(config.collection, path)

    def flush(self) -> None:
        """Write what was measured to disk, and send what is buffered, as far as the server can be reached."""
        for agent in list(self._agents.values()):
            agent.flush()
            agent.send()

    def close(self) -> None:
        """Stop the threads, close the handles, keep (and if possible send) what was measured, release memory and files."""
        with self._lock:
            if self._stopping.is_set():
                return
            self._stopping.set()
            loops, agents = list(self._loops.values()), list(self._agents.values())
        for loop in loops:
            loop.stop()
        for loop in loops:
            loop.join(STOP_TIMEOUT_S)
        for agent in agents:
            agent.close()
        if self._own_transport is not None:
            self._own_transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------------------------

    def _open_on_a_thread(self, config: ModelConfig, deliver: Callable[[Handle], None], fail: Callable[[Exception], None]) -> None:
        def work() -> None:
            try:
                handle = self.open_blocking(config)
            except Exception as error:
                fail(error)
            else:
                deliver(handle)

        threading.Thread(target=work, name=f"latebind-open-{config.collection}", daemon=True).start()

    def _take_bundle(self, agent: DeviceAgent, collection: str, path: Path | str) -> None:
        """Install from the bundle that the app came with. When it cannot be used, what is installed goes on; with nothing, it is raised."""
        outcome = agent.take_bundle(collection, path)
        if outcome.error is not None and agent.current(collection) is None:
            raise outcome.error
        self._bundled.add(collection)

    def _agent(self, account: str) -> DeviceAgent:
        with self._lock:
            if self._stopping.is_set():
                raise Closed("the manager is closed")
            agent = self._agents.get(account)
            if agent is None:
                key = self._enrolment_key
                agent = self._agents[account] = DeviceAgent(
                    server=self._server,
                    account=account,
                    cache_dir=self._cache_dir,
                    enrolment_key=key.get(account) if isinstance(key, Mapping) else key,
                    trust=None if self._trust is None else parse_given_trust(self._trust, account),
                    context=self._context,
                    transport=self._transport,
                    clock=self._clock,
                    engines=self._engines,
                    rng=self._random,
                    options=self._options,
                    wake=lambda collection: self._wake(account, collection),
                )
            return agent

    def _wake(self, account: str, collection: str) -> None:
        loop = self._loops.get((account, collection))
        if loop is not None:
            loop.wake()

    def _start_loops(self, agent: DeviceAgent, collection: str) -> None:
        if not self._background:
            return
        with self._lock:
            if self._stopping.is_set():
                return
            for name, make in (("", self._sending), (collection, self._updating)):
                if (agent.account, name) not in self._loops:
                    loop = _Loop(f"latebind-{'update-' + name if name else 'send'}", make(agent, collection))
                    self._loops[agent.account, name] = loop
                    loop.start()

    def _updating(self, agent: DeviceAgent, collection: str) -> Callable[[bool], float]:
        """The steps of an update thread: check the files once, then ask as the server advises; bring handles in line when woken."""
        updater = agent.updater(collection)
        due_at: float | None = None

        def step(woken: bool) -> float:
            nonlocal due_at
            now = self._clock.monotonic()
            if due_at is None:
                from_cache = updater.last_outcome is None
                updater.check_files()
                due_at = now + (self._random.uniform(0.0, self._options.start_spread_s) if from_cache else updater.next_delay())
            elif woken:
                updater.reconcile()
            elif now >= due_at:
                updater.poll_once()
                due_at = self._clock.monotonic() + updater.next_delay()
            return max(due_at - self._clock.monotonic(), 0.0)

        return step

    def _sending(self, agent: DeviceAgent, collection: str) -> Callable[[bool], float]:
        """The steps of a sending thread: to disk at every interval, to the server when it is likely to answer."""
        interval = self._options.flush_interval_s
        backoff = Backoff(self._random, self._options.retry_base_s, self._options.retry_cap_s)
        send_at: float | None = None

        def step(woken: bool) -> float:
            nonlocal send_at
            if send_at is None:
                # The first measurements of a start (load and first run) are not kept back for a whole interval.
                send_at = self._clock.monotonic()
                return self._random.uniform(0.2, 1.0) * min(FIRST_FLUSH_S, interval)
            agent.flush()
            if self._clock.monotonic() >= send_at:
                outcome = agent.send()
                if outcome.error is None:
                    backoff.succeeded()
                else:
                    send_at = self._clock.monotonic() + backoff.failed(outcome.retry_after_s)
            return self._random.uniform(0.9, 1.1) * interval

        return step


class _Loop(threading.Thread):
    """A thread that takes a step, waits as long as the step says or until it is woken, and so on."""

    def __init__(self, name: str, step: Callable[[bool], float]) -> None:
        super().__init__(name=name, daemon=True)
        self._step = step
        self._changed = threading.Condition()
        self._woken = False
        self._stopped = False

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> None:
        if threading.current_thread() is not self:
            super().join(timeout)

    def run(self) -> None:
        woken = False
        while not self._stopped:
            try:
                delay = self._step(woken)
            except Exception:
                # A mistake of ours must not end the updates for good.
                log.exception("%s failed", self.name)
                delay = 60.0
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._stopped, delay)
                woken, self._woken = self._woken, False


class _StoppableTransport:
    """Breaks downloads off when the manager closes; single requests still go through, so that the last measurements can be sent."""

    def __init__(self, transport: Transport, stopping: threading.Event) -> None:
        self._transport = transport
        self._stopping = stopping
        self.send = transport.send
        self.close = transport.close

    @contextmanager
    def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Iterator[Stream]:
        if self._stopping.is_set():
            raise ServerUnreachable("the manager is closing")
        with self._transport.stream(method, url, headers=headers, timeout_s=timeout_s) as stream:
            yield _StoppableStream(stream, self._stopping)


class _StoppableStream:
    def __init__(self, stream: Stream, stopping: threading.Event) -> None:
        self._stream = stream
        self._stopping = stopping
        self.status = stream.status
        self.headers = stream.headers

    def pieces(self) -> Iterator[bytes]:
        for piece in self._stream.pieces():
            if self._stopping.is_set():
                raise ServerUnreachable("the manager is closing")
            yield piece


def default_cache_dir() -> Path:
    """`latebind` in the user's data folder (XDG Base Directory Specification): the identity in it must outlive a cleaned cache."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "latebind"


def _close_result(future: concurrent.futures.Future[Handle]) -> None:
    """Nobody waits for this handle any more."""
    if future.exception() is None:
        future.result().close()


def _may_help_to_retry(error: LatebindError) -> bool:
    if isinstance(error, ServerError):
        return is_retryable(error.status)
    return isinstance(error, DownloadFailed) or isinstance(error.__cause__, ConnectionLost) or error.code == "TRUST_INVALID"
