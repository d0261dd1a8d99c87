"""What became of every sample: the senders' history against the rows of ClickHouse and the dead letters of Kafka.

It asks the servers through their own drivers and not through ours, which are part of what is examined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import zstandard
from aiokafka import AIOKafkaConsumer
from clickhouse_driver import Client
from numpy.typing import NDArray

from deploy.chaos.batches import Batch
from deploy.chaos.history import History, Known
from latebind_proto.events_pb2 import TelemetryReceived

_SLICES = 32
#: Rows of one batch as columns: series, place, phase, value, weight.
Rows = tuple[NDArray[Any], ...]
Failures = tuple[tuple[int, int, str, int], ...]


@dataclass
class Verdict:
    """What was found. Numbers are samples unless they say batches; everything from `lost` on must be empty or 0."""

    sent: int = 0
    acked: int = 0
    stored: int = 0
    unknown_batches: int = 0
    unknown_batches_stored: int = 0
    dead_letters: int = 0
    #: Of acknowledged good batches: not there. Of acknowledged poisoned ones: no dead letter (in batches).
    lost: int = 0
    #: The same identity more than once in what readers see.
    doubled: int = 0
    #: Whole batches with other values than were sent, in part, under another install, or where they must not be.
    wrong: list[str] = field(default_factory=list)
    #: Answers of analytics that differ from what the stored batches must give.
    answers: list[str] = field(default_factory=list)
    questions: int = 0

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        return not (self.lost or self.doubled or self.wrong or self.answers) and self.questions > 0

    def summary(self) -> Mapping[str, Any]:
        """As JSON takes it; long lists are cut."""
        return {name: value[:20] if isinstance(value, list) else value for name, value in asdict(self).items()}


def clickhouse(url: str) -> Client:
    """A connection to the database of a `clickhouse://` URL of ours."""
    parts = urlsplit(url)
    return Client(parts.hostname, port=parts.port or 9000, user=parts.username or "default", database=parts.path.strip("/"))


def stored_samples(client: Client, account: str) -> Iterator[tuple[bytes, set[int], Rows]]:
    """Yield every batch of the account with its installs and its rows as readers see them, in order of identity."""
    for number in range(_SLICES):
        columns = client.execute(
            "SELECT batch_hi, batch_lo, install, series, idx, phase, value_us, weight FROM samples FINAL"
            f" WHERE account = '{account}' AND batch_lo % {_SLICES} = {number} ORDER BY batch_hi, batch_lo, series, idx",
            columnar=True,
        )
        if not columns:
            continue
        high, low, install = (np.asarray(columns[place], np.uint64) for place in range(3))
        rows = tuple(np.asarray(column) for column in columns[3:])
        starts = np.flatnonzero(np.r_[True, (np.diff(high) != 0) | (np.diff(low) != 0)])
        for start, end in zip(starts, np.r_[starts[1:], len(high)], strict=True):
            name = int(high[start]).to_bytes(8) + int(low[start]).to_bytes(8)
            yield name, set(install[start:end].tolist()), tuple(column[start:end] for column in rows)


def stored_failures(client: Client, account: str) -> dict[bytes, Failures]:
    """Return the failures of every batch as readers see them, in order of their place."""
    found: dict[bytes, Failures] = {}
    where = f"WHERE account = '{account}' ORDER BY batch_hi, batch_lo, idx"
    rows = client.execute(f"SELECT batch_hi, batch_lo, idx, phase, code, count FROM failures FINAL {where}")
    for high, low, *failure in rows:
        name = high.to_bytes(8) + low.to_bytes(8)
        found[name] = (*found.get(name, ()), tuple(failure))
    return found


async def dead_letters(eventlog_url: str) -> dict[bytes, str]:
    """Return batch id -> reason of every dead letter. A letter that was written twice has one event id, and counts once."""
    parts = urlsplit(eventlog_url)
    topic = parse_qs(parts.query).get("prefix", [""])[0] + "telemetry.rejected"
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=parts.netloc, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    letters: dict[str, tuple[bytes, str]] = {}
    try:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    headers = {name: value.decode() for name, value in record.headers}
                    letters[headers["event-id"]] = (_batch_id(record.value), headers["reason"])
    finally:
        await consumer.stop()
    return dict(letters.values())


def _batch_id(value: bytes) -> bytes:
    envelope = TelemetryReceived.FromString(value)
    body = envelope.body
    if envelope.encoding == "protobuf+zstd":
        body = zstandard.ZstdDecompressor().decompress(body, max_output_size=8 << 20)
    return bytes(body[2:18])


def judge(history: History, client: Client, account: str, letters: Mapping[bytes, str]) -> tuple[Verdict, list[Batch]]:
    """Compare sample by sample. Returns the verdict, and the batches that are stored: what analytics must count."""
    verdict = Verdict(sent=history.samples, dead_letters=len(letters))
    failures = stored_failures(client, account)
    installs: dict[int, int] = {}
    stored: dict[bytes, Batch] = {}
    for name, seen, rows in stored_samples(client, account):
        batch = history.batches.get(name)
        if batch is None:
            verdict.wrong.append(f"{name.hex()}: nobody sent it")
            continue
        stored[name] = batch
        verdict.stored += _compare(verdict, history.known[name], batch, rows, failures.get(name, ()))
        if len(seen) != 1 or installs.setdefault(batch.device, min(seen)) != min(seen):
            verdict.wrong.append(f"{name.hex()}: counted under another install")
    if len(set(installs.values())) != len(installs):
        verdict.wrong.append("two installs are counted as one")
    for name, batch in history.batches.items():
        _account_for(verdict, history.known[name], batch, is_stored=name in stored, letter=letters.get(name))
    verdict.wrong += [f"{name.hex()}: a dead letter that nobody sent" for name in letters.keys() - history.batches.keys()]
    return verdict, list(stored.values())


def _compare(verdict: Verdict, known: Known, batch: Batch, rows: Rows, failures: Failures) -> int:
    """Compare what is stored of a batch with what was sent; returns how many of its samples are there."""
    series, place = rows[0].astype(np.int64), rows[1].astype(np.int64)
    identity, times = np.unique((series << 32) | place, return_counts=True)
    verdict.doubled += int((times - 1).sum())
    expected = (
        np.concatenate([np.full(len(one.values), number) for number, one in enumerate(batch.series)]),
        np.concatenate([np.arange(len(one.values)) for one in batch.series]),
        np.concatenate([np.full(len(one.values), one.phase) for one in batch.series]),
        np.concatenate([one.values for one in batch.series]),
        np.concatenate([one.weights for one in batch.series]),
    )
    missing = batch.size - len(identity)
    if missing > 0 and known is Known.ACKED:
        verdict.lost += missing
    elif missing > 0:
        verdict.wrong.append(f"{batch.id.hex()}: half of it is stored")
    elif len(identity) == len(series) and not all(
        np.allclose(ours, theirs, rtol=1e-6) for ours, theirs in zip(expected, rows, strict=True)
    ):
        verdict.wrong.append(f"{batch.id.hex()}: stored with other values than it was sent with")
    sent_failures = tuple((number, one.phase, one.code, 1) for number, one in enumerate(batch.failures))
    if failures != sent_failures:
        verdict.wrong.append(f"{batch.id.hex()}: failures {failures} instead of {sent_failures}")
    return len(identity)


def _account_for(verdict: Verdict, known: Known, batch: Batch, *, is_stored: bool, letter: str | None) -> None:
    """Hold one batch of the history against the places where it must be and must not be."""
    if batch.poison:
        if is_stored:
            verdict.wrong.append(f"{batch.id.hex()}: poisoned ({batch.poison}) and counted all the same")
        if known is Known.ACKED and letter is None:
            verdict.lost += 1
            verdict.wrong.append(f"{batch.id.hex()}: poisoned, acknowledged, and no dead letter")
        if letter is not None and letter != batch.poison:
            verdict.wrong.append(f"{batch.id.hex()}: rejected for {letter} instead of {batch.poison}")
        return
    if letter is not None:
        verdict.wrong.append(f"{batch.id.hex()}: good, and a dead letter ({letter})")
    if known is Known.ACKED:
        verdict.acked += batch.size
        if not is_stored:
            verdict.lost += batch.size
    elif known is Known.UNKNOWN:
        verdict.unknown_batches += 1
        verdict.unknown_batches_stored += is_stored
    else:
        verdict.wrong.append(f"{batch.id.hex()}: good, and refused by the edge")
