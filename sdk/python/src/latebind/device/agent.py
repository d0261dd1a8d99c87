"""One device of one account, without threads: identity, cache, updates, measurements, all driven by calls.

`Manager` gives it threads; `latebind simulate-fleet` drives hundreds by hand. Everything that belongs to the machine (facts, clock,
engines, network, randomness) is an argument.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latebind import __version__
from latebind._transport import HttpTransport, Transport
from latebind.device.api import DeviceApi
from latebind.device.cache import PackageCache
from latebind.device.clock import Clock, SystemClock
from latebind.device.config import check_name
from latebind.device.context import detect_context, telemetry_facts
from latebind.device.decision import PollOutcome
from latebind.device.engines import Engine, find_engines
from latebind.device.handle import Handle
from latebind.device.identity import IdentityFile
from latebind.device.options import DeviceOptions
from latebind.device.parts import DeviceParts
from latebind.device.sender import Reports, Sender, SendOutcome
from latebind.device.spool import Spool
from latebind.device.state import PackageRef
from latebind.device.telemetry import RunSource, Telemetry
from latebind.device.updater import CollectionUpdater
from latebind.device.verify import Trust
from latebind.errors import LatebindError
from latebind_proto.telemetry_pb2 import FailurePhase, Phase


class DeviceAgent:
    """A device as the server sees it. Its files lie under `<cache_dir>/<account>`.

    - `server`: the gateway's address, such as `https://models.example.com`.
    - `enrolment_key`: needed for the first contact only.
    - `trust`: the account's public keys, brought along by the app (docs/interop.md); without them those count that enrolment names.
    - `context`: what the device says of itself (PRODUCT section 5, without what the SDK adds); None means what this machine looks like.
    - `transport`, `clock`, `engines`, `rng`, `options`: None means the real ones. A transport that is passed in is not closed here.
    - `wake`: called when `reconcile` has something to do.

    Raises ValueError for an account that is no name, DiskFull, LatebindError (`IDENTITY_DAMAGED`).
    """

    def __init__(
        self,
        *,
        server: str,
        account: str,
        cache_dir: Path | str,
        enrolment_key: str | None = None,
        trust: Trust | None = None,
        context: Mapping[str, Any] | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        engines: Mapping[str, Engine] | None = None,
        rng: random.Random | None = None,
        options: DeviceOptions | None = None,
        wake: Callable[[str], None] | None = None,
    ) -> None:
        self.account = check_name(account, "account")
        root = Path(cache_dir) / account
        (root / "state").mkdir(parents=True, exist_ok=True)
        options = options or DeviceOptions()
        clock = clock or SystemClock()
        facts = dict(context) if context is not None else detect_context()
        self._own_transport: HttpTransport | None = None
        if transport is None:
            transport = self._own_transport = HttpTransport()
        identity_file = IdentityFile(root / "identity.json", account)
        self._api = DeviceApi(
            server=server,
            transport=transport,
            identity=identity_file.load(),
            identity_file=identity_file,
            enrolment_key=enrolment_key,
            clock=clock,
        )
        if trust is not None:
            self._api.give_trust(trust)
        self._batches = Spool(root / "telemetry", max_bytes=options.telemetry_bytes)
        self._events = Spool(root / "reports", max_bytes=options.report_bytes)
        facts_message = telemetry_facts(facts, sdk_version=__version__)
        self.telemetry = Telemetry(spool=self._batches, facts=facts_message, clock=clock, detail_per_minute=options.detail_per_minute)
        self._sender = Sender(api=self._api, batches=self._batches, reports=self._events)
        self._parts = DeviceParts(
            account=account,
            server=server,
            api=self._api,
            cache=PackageCache(root, clock=clock, limits=options.download, reserve_bytes=options.reserve_bytes),
            states=root / "state",
            engines=find_engines() if engines is None else engines,
            facts=facts,
            sdk_version=__version__,
            clock=clock,
            random=rng or random.SystemRandom(),
            telemetry=self.telemetry,
            reports=Reports(self._events, clock),
            options=options,
        )
        self._wake = wake or (lambda collection: None)
        self._updaters: dict[str, CollectionUpdater] = {}

    @property
    def install_id(self) -> str:
        """The random id of this install."""
        return self._api.identity.install_id

    def enrol(self) -> str:
        """Enrol if that has not happened yet; the install id. Raises NotEnrolled, ServerError, ServerUnreachable."""
        return self._api.enrol().install_id

    def updater(self, collection: str) -> CollectionUpdater:
        """What keeps a collection up to date; made when first asked for."""
        updater = self._updaters.get(collection)
        if updater is None:
            check_name(collection, "collection")
            updater = CollectionUpdater(self._parts, collection, wake=lambda: self._wake(collection))
            updater = self._updaters.setdefault(collection, updater)
        return updater

    def open(self, collection: str) -> Handle:
        """A running model of a collection, from the cache or the server. Raises as `CollectionUpdater.open_handle`."""
        return self.updater(collection).open_handle()

    def take_bundle(self, collection: str, path: Path | str) -> PollOutcome:
        """Install what a bundle file has for a collection, as `poll_once` does what the server assigns. Failures are in the outcome."""
        return self.updater(collection).take_bundle(Path(path))

    def poll_once(self, collection: str) -> PollOutcome:
        """One check for an update of a collection, with all that follows. Failures are in the outcome."""
        return self.updater(collection).poll_once()

    def current(self, collection: str) -> PackageRef | None:
        """The package that is installed for a collection."""
        return self.updater(collection).state.current

    def record(self, collection: str, phase: Phase.ValueType, latency_us: int, *, at_ms: int | None = None) -> None:
        """A measurement of the current package that was made elsewhere, or simulated. Raises LatebindError when nothing is installed."""
        self.telemetry.record(self._source(collection), phase, latency_us, at_ms=at_ms)

    def fail(self, collection: str, phase: FailurePhase.ValueType, code: str, detail: str = "") -> None:
        """A failure of the current package that happened elsewhere, or is simulated. Raises LatebindError when nothing is installed."""
        self.telemetry.fail(self._source(collection), phase, code, detail)

    def report(self, collection: str, state: str, *, package: str | None, code: str | None = None, detail: str = "") -> None:
        """An update state of docs/wire.md. Raises DiskFull."""
        decision_id = self.updater(collection).state.decision_id
        self._parts.reports.add(collection, state, package=package, code=code, detail=detail, decision_id=decision_id)

    def flush(self) -> int:
        """Write what was measured to the buffer on disk; the number of measurements and failures."""
        return self.telemetry.flush()

    def send(self, *, timeout_s: float | None = None) -> SendOutcome:
        """Send what is buffered. Failures are in the outcome."""
        return self._sender.send(timeout_s=timeout_s)

    def close(self, *, send: bool = True) -> None:
        """Close the handles, write what was measured to disk, send it if that is quick, release all files."""
        for updater in self._updaters.values():
            for handle in updater.handles:
                handle.close()
        self.flush()
        timeout_s = self._parts.options.close_timeout_s
        if send and timeout_s > 0 and self._api.identity.enrolled and (self._batches.peek() or self._events.peek()):
            self._sender.send(timeout_s=timeout_s)
        self._batches.close()
        self._events.close()
        if self._own_transport is not None:
            self._own_transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _source(self, collection: str) -> RunSource:
        ref = self.current(collection)
        if ref is None:
            raise LatebindError(f"nothing of the collection {collection!r} is installed", code="NOT_INSTALLED")
        return self._parts.source(collection, ref)
