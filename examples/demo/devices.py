"""The real devices: apps on the Edge SDK that know an account and two collections, and run whatever is bound to them on real input.

Each has its own manager, as on its own machine, and counts for itself what it ran.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import latebind
from examples.demo.models import chord, file_input, file_kind, notes_heard
from latebind.cli._kinds import Kind
from latebind.device.engines import find_engines
from latebind.device.options import DeviceOptions

APP = {"id": "org.latebind.demo", "version": "1.0.0"}
CHORDS = ((440.0, 554.37, 659.26), (261.63, 329.63, 392.0), (220.0,), (293.66, 369.99, 440.0))
PERIOD_S = 2.0


@dataclass
class Ran:
    """Runs of one package on one device: latencies of the steady ones, in microseconds, and how many were first ones."""

    package: str
    model_id: str
    version: int
    variant: str
    first: int = 0
    steady_us: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Access:
    """Where the devices enrol, and what they use."""

    server: str
    account: str
    enrolment_key: str
    files: str
    notes: str


class RealDevice:
    """One device of a kind, on a thread of its own until it is stopped."""

    def __init__(self, kind: Kind, number: int, access: Access, folder: Path, samples: list[Path]) -> None:
        self.kind = kind
        self.name = f"{kind.name}/{number}"
        self.ran: dict[str, Ran] = {}
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []
        self.refused: dict[str, str] = {}
        self.switched: list[tuple[str, str]] = []
        self.said: list[str] = []
        self._access = access
        self._samples = samples
        self._number = number
        self._stop = threading.Event()
        self._ready = threading.Event()
        # The kind says which engines there are; the machine says which versions of them.
        engines = {name: engine for name, engine in find_engines().items() if any(one["engine"] == name for one in kind.runtimes)}
        self._manager = latebind.Manager(
            server=access.server,
            enrolment_key=access.enrolment_key,
            cache_dir=folder / self.name.replace("/", "-"),
            context={**kind.context, "app": APP, "groups": list(kind.groups), "attributes": {"kind": kind.name, "simulated": False}},
            engines=engines,
            options=DeviceOptions(threads=1, flush_interval_s=2.0),
        )
        self._thread = threading.Thread(target=self._live, name=self.name)

    @property
    def inferences(self) -> int:
        """Runs that gave a result."""
        return sum(ran.first + len(ran.steady_us) for ran in self.ran.values())

    def start(self) -> None:
        """Begin to live."""
        self._thread.start()

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Wait until every model has answered once, or was refused."""
        return self._ready.wait(timeout_s)

    def ask_to_stop(self) -> None:
        """Do nothing more after the run that is under way."""
        self._stop.set()

    def stop(self) -> None:
        """End, and send everything that was measured."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._manager.close()

    def _live(self) -> None:
        jobs: list[Callable[[int], None]] = []
        for collection, use in ((self._access.files, self._look_at_a_file), (self._access.notes, self._listen)):
            handle = self._open(collection)
            if handle is not None:
                jobs.append(lambda turn, handle=handle, use=use: self._count(handle, use, turn))  # type: ignore[misc]
        turn = 0
        while not self._stop.is_set():
            began = time.monotonic()
            for job in jobs:
                job(turn)
            turn += 1
            self._ready.set()
            self._stop.wait(max(0.0, PERIOD_S - (time.monotonic() - began)))

    def _open(self, collection: str) -> latebind.Handle | None:
        try:
            handle = self._manager.open_blocking(latebind.ModelConfig(self._access.account, collection))
        except latebind.LatebindError as error:
            self.refused[collection] = error.code
            return None
        handle.updates.subscribe(lambda update: self.switched.append((_words(update.previous), _words(update.info))))
        return handle

    def _count(self, handle: latebind.Handle, use: Callable[[latebind.Handle, int], tuple[latebind.Inference, str]], turn: int) -> None:
        try:
            result, said = use(handle, turn)
        except Exception as error:
            self.failed.append(f"{type(error).__name__}: {error}")
            return
        info = result.info
        ran = self.ran.setdefault(info.package, Ran(info.package, info.model_id, info.version, info.variant))
        if ran.first:
            ran.steady_us.append(result.latency_us)
        else:
            ran.first = 1
        self.answers[said] += 1
        if turn < 2:
            self.said.append(said)

    def _look_at_a_file(self, handle: latebind.Handle, turn: int) -> tuple[latebind.Inference, str]:
        path = self._samples[(turn + self._number) % len(self._samples)]
        result = handle.run(file_input(path.read_bytes(), handle.info))
        return result, f"{path.name} is {file_kind(result)}"

    def _listen(self, handle: latebind.Handle, turn: int) -> tuple[latebind.Inference, str]:
        result = handle.run(chord(CHORDS[(turn + self._number) % len(CHORDS)], handle.info))
        return result, f"hears {' '.join(notes_heard(result))}"


def _words(info: Any) -> str:
    return f"{info.model_id} v{info.version} {info.variant}"
