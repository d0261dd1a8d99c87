"""What the senders and the nemesis did, as they saw it: JSON lines on disk and the batches in memory.

It is the one witness the checker believes: nothing in here comes from the system under test but the status of an answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from deploy.chaos.batches import Batch


class Known(StrEnum):
    """What a sender knows about a batch."""

    #: Answered with 202: it must be counted, once (a poisoned one: be a dead letter).
    ACKED = "acked"
    #: Sent, and no answer said what became of it: it may be counted, once, whole.
    UNKNOWN = "unknown"
    #: Answered with a refusal that is for good: it must not be anywhere.
    REFUSED = "refused"


class History:
    """`with History(path) as history:` keeps `batches` (by id) and what is known of each; every line has the seconds since the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: dict[bytes, Batch] = {}
        self.known: dict[bytes, Known] = {}
        #: Answers by status, and connections that broke (`lost`), over all attempts.
        self.answers: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w")
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def made(self, batch: Batch) -> None:
        """Write a batch down, each sample with its place and value, before it is sent for the first time."""
        self.batches[batch.id] = batch
        self.known[batch.id] = Known.UNKNOWN
        series = [{"phase": one.phase, "values": one.values.tolist(), "weights": one.weights.tolist()} for one in batch.series]
        self.write("made", batch=batch.id.hex(), device=batch.device, poison=batch.poison, series=series)

    def answered(self, batch: Batch, answer: str) -> None:
        """Note what came of an attempt: a status, or `lost` when there was no answer."""
        self.answers[answer] += 1
        if answer == "202":
            self.known[batch.id] = Known.ACKED
        elif answer in {"400", "413"} and self.known[batch.id] is Known.UNKNOWN:
            self.known[batch.id] = Known.REFUSED
        self.write("answer", batch=batch.id.hex(), answer=answer)

    def killed(self, target: str) -> None:
        """Note a kill -9."""
        self.kills[target] += 1
        self.write("kill", target=target)

    def write(self, what: str, **more: Any) -> None:
        """Append a line."""
        line = json.dumps({"at_s": round(time.monotonic() - self._began, 3), "what": what, **more}, separators=(",", ":"))
        with self._lock:
            self._file.write(line + "\n")

    @property
    def totals(self) -> Mapping[str, Any]:
        """Batches, poisoned ones among them, answers and kills, as JSON takes it."""
        poisoned = sum(bool(batch.poison) for batch in self.batches.values())
        return {"batches": len(self.batches), "poisoned": poisoned, "answers": dict(self.answers), "kills": dict(self.kills)}

    @property
    def samples(self) -> int:
        """Samples made so far, sketch buckets counted as one each, poisoned batches left out."""
        return sum(batch.size for batch in self.batches.values() if not batch.poison)
