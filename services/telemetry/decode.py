"""Records of `telemetry.received` -> columns, or rejects with a reason.

Pure: bytes in, columns out. It bounds what a batch may unpack to, corrects clocks that cannot be right, and leaves out every batch
that cannot be counted. It does not know where the columns go.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import zstandard
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from latebind_proto.events_pb2 import TelemetryReceived
from latebind_proto.telemetry_pb2 import DESCRIPTOR, DeviceFacts, PackageRef, TelemetryBatch
from services.telemetry.errors import Rejected
from services.telemetry.json_batch import read_json
from services.telemetry.rows import BadBatches, Contexts, Fault, Opened, Run, Table, build

MAX_BODY_BYTES = 8 << 20
MAX_SERIES = 1024
MAX_FAILURES = 1024
#: Samples, or buckets of sketches, of one batch.
MAX_VALUES = 1 << 16
#: A chunk is closed when its packed columns have this many bytes: about 100,000 rows.
CHUNK_BYTES = 256 << 10
#: A device's clock is believed when it lies at most this far from ours; else the batch's times are moved so that it was made just now.
PAST_MS = 30 * 86_400_000
FUTURE_MS = 86_400_000
_TEXT = 128
_DETAIL = 256
#: The failure row that holds `dropped_samples`; real failures are numbered from 0.
DROPPED = 0xFFFF_FFFF
_CODE = re.compile(r"[^A-Z0-9_]")
_COUNTRY = re.compile(r"[A-Z]{2}")
#: Larger than any time, smaller than what overflows when offsets are added.
_FAR_MS = 1 << 52


def _columns_class() -> Any:
    """Return `TelemetryBatch` with its number columns left packed, as bytes.

    On the wire a packed `repeated` number and `bytes` are the same, so one class keeps what the other would make into objects.
    It is derived from the generated descriptor, so the two cannot drift apart.
    """
    file = descriptor_pb2.FileDescriptorProto()
    DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "latebind/columns/v1/telemetry.proto", "latebind.columns.v1"
    for message in file.message_type:
        for one in message.field:
            if one.type_name:
                one.type_name = one.type_name.replace(".latebind.v1.", ".latebind.columns.v1.")
            if message.name in {"Samples", "Sketch"} and one.label == one.LABEL_REPEATED:
                one.type, one.label = one.TYPE_BYTES, one.LABEL_OPTIONAL
                one.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("latebind.columns.v1.TelemetryBatch"))


_ColumnsBatch = _columns_class()


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is not counted. `position` is its place in what was given to `decode`."""

    position: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Columns of some records, ready to insert. Tables of one chunk belong to the same records."""

    samples: Table
    failures: Table
    activity: Table


def decode(values: Iterable[bytes], rejects: list[Reject]) -> Iterator[Chunk]:
    """Decode record values, about `CHUNK_BYTES` at a time. The same values always make the same chunks.

    A record that cannot be counted goes to `rejects`, which is complete and in order when the iterator has ended; nothing raises.
    """
    opener, batches, size = _Opener(), list[Opened](), 0
    for position, value in enumerate(values):
        try:
            batch = opener.open(position, value)
        except Rejected as error:
            rejects.append(Reject(position, error.reason, error.detail))
            continue
        except Exception as error:  # one record must never stop all that come behind it
            rejects.append(Reject(position, "FAULT", f"{type(error).__name__}: {error}"[:200]))
            continue
        batches.append(batch)
        size += sum(len(run.latency) for run in batch.runs)
        if size >= CHUNK_BYTES:
            if chunk := _chunk(batches, opener.contexts, rejects):
                yield chunk
            opener, batches, size = _Opener(), [], 0
    if chunk := _chunk(batches, opener.contexts, rejects):
        yield chunk
    rejects.sort(key=lambda reject: reject.position)


def _chunk(batches: list[Opened], contexts: Contexts, rejects: list[Reject]) -> Chunk | None:
    """Build the columns, without the batches that turn out to be bad."""
    while batches:
        try:
            return Chunk(*build(batches, contexts))
        except BadBatches as bad:
            rejects += [Reject(batches[place].position, why.reason, why.detail) for place, why in bad.reasons.items()]
            batches = [batch for place, batch in enumerate(batches) if place not in bad.reasons]
    return None


class _Unusual(Exception):
    """The packed columns do not hold all that the message says."""


def install_hash(account: str, install_id: str) -> int:
    """Return the 64-bit number under which an install is stored; the id itself never reaches the column store."""
    return int.from_bytes(hashlib.blake2b(f"{account}/{install_id}".encode(), digest_size=8).digest())


class _Opener:
    """Reads messages. Keeps what repeats from batch to batch: decompressor, contexts."""

    def __init__(self) -> None:
        self.contexts = Contexts()
        self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_BODY_BYTES)
        self._known: dict[tuple[str, bytes, bytes], int] = {}

    def open(self, position: int, value: bytes) -> Opened:
        """Return the batch inside a record. Raises `Rejected`."""
        try:
            envelope = TelemetryReceived.FromString(value)
        except DecodeError as error:
            raise Rejected("ENVELOPE", "not a TelemetryReceived message") from error
        try:
            body = self._body(envelope.encoding, envelope.body)
            batch = _ColumnsBatch.FromString(body)
            if batch.ByteSize() == len(body):
                with suppress(_Unusual):
                    return self._opened(position, envelope, batch, usual=False)
            # Something was overwritten or is not packed, which is legal but unusual: write the message the usual way first.
            batch = _ColumnsBatch.FromString(TelemetryBatch.FromString(body).SerializeToString())
        except (DecodeError, TypeError, ValueError) as error:
            raise Rejected("MALFORMED", f"not a TelemetryBatch: {type(error).__name__}") from error
        return self._opened(position, envelope, batch, usual=True)

    def _body(self, encoding: str, body: bytes) -> bytes:
        """Return the message as plain protobuf. Raises `Rejected`."""
        if encoding == "protobuf":
            return body
        if encoding == "protobuf+zstd":
            return self._decompress(body)
        if encoding == "json":
            return TelemetryBatch(**read_json(body)).SerializeToString()
        raise Rejected("ENCODING", f"unknown encoding {encoding[:40]!r}")

    def _opened(self, position: int, envelope: TelemetryReceived, batch: Any, *, usual: bool) -> Opened:
        if len(batch.batch_id) != 16:
            raise Rejected("BATCH_ID", "batch_id must have 16 bytes")
        if len(batch.series) > MAX_SERIES or len(batch.failures) > MAX_FAILURES:
            raise Rejected("TOO_MANY", f"at most {MAX_SERIES} series and {MAX_FAILURES} failures")
        received, created = envelope.received_at_ms, batch.created_at_ms
        shift = 0 if received - PAST_MS <= created <= received + FUTURE_MS else received - created
        created += shift
        hi, lo = struct.unpack(">QQ", batch.batch_id)
        where = (envelope.country, batch.facts.SerializeToString())
        context = self._context(*where, None)
        return Opened(
            position,
            envelope.account,
            install_hash(envelope.account, envelope.install_id),
            hi,
            lo,
            # Of two copies the one received first stands: the largest precedence wins.
            0xFFFF_FFFF - max(0, min(received // 1000, 0xFFFF_FFFF)),
            created,
            received - PAST_MS,
            received + FUTURE_MS,
            context,
            self._runs(batch, where, created, shift, usual),
            self._faults(batch, where, created, shift, context),
        )

    def _decompress(self, body: bytes) -> bytes:
        try:
            size = zstandard.get_frame_parameters(body).content_size
            if size not in {zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR} and size > MAX_BODY_BYTES:
                raise Rejected("TOO_LARGE", f"more than {MAX_BODY_BYTES} bytes when decompressed")
            return self._zstd.decompress(body, max_output_size=MAX_BODY_BYTES, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Rejected("COMPRESSION", "not one zstd frame, or one that is too large") from error

    def _runs(self, batch: Any, where: tuple[str, bytes], created: int, shift: int, usual: bool) -> list[Run]:
        """Return the series that hold values. Raises `Rejected`; unless `usual`, `_Unusual` when columns may be elsewhere."""
        runs: list[Run] = []
        size = 0
        for number, series in enumerate(batch.series):
            kind = series.WhichOneof("values")
            if kind is None:
                continue
            phase, package = series.phase, series.package
            if not 1 <= phase <= 3:
                raise Rejected("PHASE", f"phase {phase} of series {number} is unknown")
            if not package.model_id:
                raise Rejected("PACKAGE", f"series {number} names no model")
            if kind == "samples":
                values = series.samples
                at, latency = values.at_delta_ms, values.latency_delta_us
            else:
                values = series.sketch
                at, latency = values.bucket_delta, values.count
            if not (at and latency) and not usual and values.ByteSize():
                # Numbers that were not packed are unknown fields here: their columns look empty, the message does not.
                raise _Unusual
            size += len(latency)
            base = _moved(series.base_ms, shift, created)
            runs.append(Run(self._context(*where, package), number, phase, base, kind == "sketch", at, latency))
        # Every value has at least one byte, and one without a continuation bit.
        if size > MAX_VALUES and sum(len(run.latency.translate(None, _CONTINUED)) for run in runs) > MAX_VALUES:
            raise Rejected("TOO_MANY", f"more than {MAX_VALUES} samples or buckets")
        return runs

    def _faults(self, batch: Any, where: tuple[str, bytes], created: int, shift: int, context: int) -> list[Fault]:
        faults: list[Fault] = []
        for number, failure in enumerate(batch.failures):
            if not 1 <= failure.phase <= 5:
                raise Rejected("PHASE", f"phase {failure.phase} of failure {number} is unknown")
            own = self._context(*where, failure.package) if failure.HasField("package") else context
            code = _CODE.sub("_", failure.code[:64].upper()) or "UNKNOWN"
            at = _moved(failure.at_ms, shift, created)
            faults.append(Fault(own, number, failure.phase, code, _clean(failure.detail, _DETAIL), at, 1))
        if batch.dropped_samples:
            faults.append(Fault(context, DROPPED, 0, "SAMPLES_DROPPED", "", created, batch.dropped_samples))
        return faults

    def _context(self, country: str, facts: bytes, package: Any) -> int:
        key = (country, facts, package.SerializeToString() if package is not None else b"")
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = self.contexts.number(_read_context(*key))
        return number


_CONTINUED = bytes(range(0x80, 0x100))


def _moved(at_ms: int, shift: int, created_ms: int) -> int:
    """Return a time of the device, corrected; one that is not set or absurd is the time the batch was made."""
    return at_ms + shift if at_ms and -_FAR_MS < at_ms + shift < _FAR_MS else created_ms


def _clean(text: str, length: int = _TEXT) -> str:
    return text[:length].replace("\0", "")


def _read_context(country: str, facts_bytes: bytes, package_bytes: bytes) -> tuple[str | int, ...]:
    """Return the values of `rows.CONTEXT`. The trusted edge's country goes before the device's own."""
    facts, package = DeviceFacts.FromString(facts_bytes), PackageRef.FromString(package_bytes)
    place = (country or facts.country).upper()
    return (
        _clean(package.collection),
        _clean(package.model_id),
        package.version,
        _clean(package.variant),
        _clean(package.engine),
        _clean(facts.device_model),
        _clean(facts.soc),
        _clean(facts.abi),
        _clean(facts.os_name),
        _clean(facts.os_version),
        max(0, facts.api_level),
        place if _COUNTRY.fullmatch(place) else "",
        _clean(facts.app_id),
        _clean(facts.app_version),
        _clean(facts.sdk_version),
    )
