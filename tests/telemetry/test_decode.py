"""Decoding against a slow reading of the same messages, and everything that is refused."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.olap import Coded
from latebind_proto.telemetry_pb2 import DeviceFacts, TelemetryBatch
from services.telemetry.decode import DROPPED, MAX_FAILURES, MAX_SERIES, MAX_VALUES, Chunk, Reject, decode, install_hash
from services.telemetry.rows import CONTEXT
from tests.telemetry.factories import NOW_MS, PIXEL, History, batch, envelope, failure, package, random_batch, samples, sketch

DAY_MS = 86_400_000


def decoded(*values: bytes) -> tuple[list[Chunk], list[Reject]]:
    rejects: list[Reject] = []
    return list(decode(values, rejects)), rejects


def rows(chunks: Sequence[Chunk], table: str = "samples") -> list[dict[str, Any]]:
    """The rows of a table as dictionaries of plain values."""
    found: list[dict[str, Any]] = []
    for chunk in chunks:
        columns = {name: plain(column) for name, column in getattr(chunk, table).items()}
        assert len({len(column) for column in columns.values()}) == 1
        found += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return found


def plain(column: Any) -> list[Any]:
    if isinstance(column, Coded):
        return [column.values[code] for code in column.codes]
    return list(column.tolist()) if isinstance(column, np.ndarray) else list(column)


def reasons(*values: bytes) -> list[str]:
    chunks, rejects = decoded(*values)
    assert len(rows(chunks)) == 0
    return [reject.reason for reject in rejects]


def test_a_batch_becomes_one_row_per_sample() -> None:
    sent = batch(samples([1500, 900, 70_000], base_ms=NOW_MS - 5000), batch_id=bytes(range(16)))
    chunks, rejects = decoded(envelope(sent, install="i1", country="fr"))
    assert rejects == []
    found = rows(chunks)
    assert [row["value_us"] for row in found] == [1500.0, 900.0, 70_000.0]
    assert [row["idx"] for row in found] == [0, 1, 2]
    assert found[0] == {
        "account": "acme",
        "install": install_hash("acme", "i1"),
        "batch_hi": 0x0001020304050607,
        "batch_lo": 0x08090A0B0C0D0E0F,
        "supersede": 0xFFFF_FFFF - NOW_MS // 1000,
        "series": 0,
        "idx": 0,
        "day": np.datetime64("2026-11-22").item(),
        "at": np.datetime64("2026-11-22T09:59:55").item(),
        "phase": 3,
        "value_us": 1500.0,
        "weight": 1,
        "collection": "c_1",
        "model": "yolo",
        "version": 7,
        "variant": "onnx-fp32",
        "engine": "onnxruntime",
        "device_model": "Pixel 9",
        "soc": "tensor-g4",
        "abi": "arm64-v8a",
        "os": "android",
        "os_version": "16",
        "api_level": 36,
        "country": "FR",
        "app_id": "com.acme.cam",
        "app_version": "4.2.0",
        "sdk_version": "1.0.0",
    }


def test_failures_and_dropped_samples() -> None:
    sent = batch(failures=[failure(3, "digest mismatch!", of=package(version=9), detail="x" * 300), failure(1, "")], dropped=17)
    chunks, rejects = decoded(envelope(sent))
    assert rejects == []
    found = rows(chunks, "failures")
    assert [(row["idx"], row["phase"], row["code"], row["count"], row["version"]) for row in found] == [
        (0, 3, "DIGEST_MISMATCH_", 1, 9),
        (1, 1, "UNKNOWN", 1, 0),
        (DROPPED, 0, "SAMPLES_DROPPED", 17, 0),
    ]
    assert len(found[0]["detail"]) == 256


def test_a_batch_without_anything_is_a_sign_of_life() -> None:
    chunks, rejects = decoded(envelope(batch()))
    assert rejects == []
    (row,) = rows(chunks, "activity")
    assert (row["model"], row["soc"], str(row["day"])) == ("", "tensor-g4", "2026-11-22")


@pytest.mark.parametrize("seed", range(5))
def test_many_random_batches_equal_a_slow_reading(seed: int) -> None:
    rng = random.Random(seed)
    history = History()
    values = []
    for number in range(40):
        sent = random_batch(rng)
        history.add(f"i{number % 7}", sent)
        values.append(envelope(sent, install=f"i{number % 7}", encoding=rng.choice(["protobuf", "protobuf+zstd"])))
    chunks, rejects = decoded(*values)
    assert rejects == []
    names = {install_hash("acme", f"i{number}"): f"i{number}" for number in range(7)}
    found = [
        (names[row["install"]], seconds(row["at"]), row["phase"], row["value_us"], row["weight"], row["model"]) for row in rows(chunks)
    ]
    told = [
        (run.install, run.at_ms // 1000, run.phase, np.float32(run.value_us).item(), run.weight, run.dims["model"]) for run in history.runs
    ]
    assert sorted(found) == sorted(told)


def seconds(at: datetime) -> int:
    return int(at.replace(tzinfo=UTC).timestamp())


def test_json_says_the_same_as_protobuf() -> None:
    sent = batch(samples([10, 20, 15]), sketch({400: 3, 410: 9}, phase=2), failures=[failure(2, "TIMEOUT", of=package())], dropped=3)
    document = {
        "batch_id": sent.batch_id.hex(),
        "created_at_ms": str(sent.created_at_ms),
        "facts": PIXEL,
        "series": [
            {
                "package": {
                    "collection": "c_1",
                    "model_id": "yolo",
                    "version": 7,
                    "variant": "onnx-fp32",
                    "engine": "onnxruntime",
                    "package_digest": "64" * 32,
                },
                "phase": "PHASE_STEADY",
                "base_ms": sent.series[0].base_ms,
                "samples": {"at_delta_ms": [0, 20, 20], "latency_delta_us": [10, 10, -5]},
            },
            {
                "package": {"collection": "c_1", "model_id": "yolo", "version": 7, "variant": "onnx-fp32", "engine": "onnxruntime"},
                "phase": "PHASE_FIRST",
                "base_ms": sent.series[1].base_ms,
                "sketch": {"span_ms": 60_000, "bucket_delta": [400, 10], "count": [3, 9]},
            },
        ],
        "failures": [
            {
                "package": {"collection": "c_1", "model_id": "yolo", "version": 7, "variant": "onnx-fp32", "engine": "onnxruntime"},
                "phase": "FAILURE_PHASE_DOWNLOAD",
                "code": "TIMEOUT",
                "detail": "",
                "at_ms": sent.failures[0].at_ms,
            }
        ],
        "dropped_samples": 3,
        "something_newer": {"is": "ignored"},
    }
    as_protobuf, _ = decoded(envelope(sent))
    as_json, rejects = decoded(envelope(json.dumps(document).encode(), encoding="json"))
    assert rejects == []
    for table in ("samples", "failures", "activity"):
        assert rows(as_json, table) == rows(as_protobuf, table)


def length_delimited(number: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


@pytest.mark.parametrize(
    "columns",
    [
        b"\x08\x00\x08\x28\x10\x14\x10\x02",  # not packed: one tag per value
        b"\x0a\x01\x00\x0a\x01\x28\x12\x01\x14\x12\x01\x02",  # in two pieces each
        b"\x08\x00\x0a\x01\x28\x12\x02\x14\x02",  # mixed
    ],
)
def test_unusual_but_legal_encodings_are_read_too(columns: bytes) -> None:
    usual = batch(samples([10, 11], at_ms=[NOW_MS - 20, NOW_MS], base_ms=NOW_MS - 20))
    body = TelemetryBatch(batch_id=usual.batch_id, created_at_ms=usual.created_at_ms, facts=DeviceFacts(**PIXEL)).SerializeToString()
    series = usual.series[0]
    head = type(series)(package=series.package, phase=3, base_ms=series.base_ms).SerializeToString()
    whole = head + length_delimited(4, columns)
    body += b"\x22" + bytes([len(whole) & 0x7F | 0x80, len(whole) >> 7]) + whole
    parsed = TelemetryBatch.FromString(body)
    assert list(parsed.series[0].samples.latency_delta_us) == [10, 1]
    found, rejects = decoded(envelope(body))
    assert rejects == []
    assert rows(found) == rows(decoded(envelope(parsed))[0])
    assert [row["value_us"] for row in rows(found)] == [10.0, 11.0]


def broken(change: Callable[[TelemetryBatch], None]) -> bytes:
    sent = batch(samples([10, 20]), sketch({400: 2, 401: 3}), failures=[failure()])
    change(sent)
    return envelope(sent)


def _assign(path: str, value: Any) -> Callable[[TelemetryBatch], None]:
    def change(sent: TelemetryBatch) -> None:
        target: Any = sent
        *steps, last = path.split(".")
        for step in steps:
            target = target[int(step)] if step.isdecimal() else getattr(target, step)
        if isinstance(value, list):
            del getattr(target, last)[:]
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)

    return change


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff\xff\xff", "ENVELOPE"),
        (envelope(b"", encoding="xml"), "ENCODING"),
        (envelope(b""), "BATCH_ID"),
        (envelope(b"\xff" * 40), "MALFORMED"),
        (envelope(b"not zstd", encoding="protobuf+zstd"), "COMPRESSION"),
        (envelope(zstandard.compress(b"x" * 100)[:-3], encoding="protobuf+zstd"), "COMPRESSION"),
        (envelope(zstandard.compress(bytes(20)) + b"more", encoding="protobuf+zstd"), "COMPRESSION"),
        (envelope(zstandard.compress(bytes((8 << 20) + 1)), encoding="protobuf+zstd"), "TOO_LARGE"),
        (
            envelope(zstandard.ZstdCompressor(write_content_size=False).compress(bytes((8 << 20) + 1)), encoding="protobuf+zstd"),
            "COMPRESSION",
        ),
        (envelope(b"{", encoding="json"), "MALFORMED"),
        (envelope(b"[" * 100_000, encoding="json"), "MALFORMED"),
        (envelope(b'{"batch_id": "zz"}', encoding="json"), "MALFORMED"),
        (envelope(b'{"batch_id": "00ff", "series": [{"phase": 3}]}', encoding="json"), "MALFORMED"),
        (envelope(b'{"batch_id": "00ff", "created_at_ms": 1e400}', encoding="json"), "MALFORMED"),
        (envelope(b'{"created_at_ms": 99999999999999999999}', encoding="json"), "MALFORMED"),
        (envelope(b'{"series": [{"samples": {}, "sketch": {}}]}', encoding="json"), "MALFORMED"),
        (broken(_assign("batch_id", b"short")), "BATCH_ID"),
        (broken(_assign("series.0.phase", 0)), "PHASE"),
        (broken(_assign("series.0.phase", 9)), "PHASE"),
        (broken(_assign("failures.0.phase", 6)), "PHASE"),
        (broken(_assign("series.1.package.model_id", "")), "PACKAGE"),
        (broken(_assign("series.0.samples.at_delta_ms", [0])), "COLUMNS"),
        (broken(_assign("series.0.samples.at_delta_ms", [])), "COLUMNS"),
        (broken(_assign("series.0.samples.latency_delta_us", [10, -11])), "LATENCY"),
        (broken(_assign("series.0.samples.latency_delta_us", [(1 << 31) - 1] * 2)), None),
        (broken(_assign("series.1.sketch.bucket_delta", [400, 0])), "SKETCH"),
        (broken(_assign("series.1.sketch.bucket_delta", [400, -1])), "SKETCH"),
        (broken(_assign("series.1.sketch.bucket_delta", [400, 1001])), "SKETCH"),
        (broken(_assign("series.1.sketch.count", [1])), "COLUMNS"),
        (envelope(batch(*[samples([1])] * (MAX_SERIES + 1))), "TOO_MANY"),
        (envelope(batch(failures=[failure()] * (MAX_FAILURES + 1))), "TOO_MANY"),
        (envelope(batch(samples([1] * MAX_VALUES), samples([1]))), "TOO_MANY"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_a_reason(value: bytes, reason: str | None) -> None:
    good = envelope(batch(samples([5])), install="good")
    chunks, rejects = decoded(good, value, good)
    assert [(reject.position, reject.reason) for reject in rejects] == ([(1, reason)] if reason else [])
    if reason:
        assert {row["install"] for row in rows(chunks)} == {install_hash("acme", "good")}
        assert len(rows(chunks)) == 2
        assert rows(chunks, "failures") == []


def test_columns_that_are_no_varints_are_refused() -> None:
    sent = batch(samples([10, 20]))
    body = sent.SerializeToString()
    # The last byte of the last column gets its continuation bit: the message still parses as bytes, the column does not end.
    assert reasons(envelope(body[:-1] + bytes([body[-1] | 0x80]))) == ["MALFORMED"]


@pytest.mark.parametrize(
    ("created", "base", "expected"),
    [
        (NOW_MS - 1000, NOW_MS - 61_000, NOW_MS - 61_000),  # a good clock
        (NOW_MS + 3_600_000, NOW_MS + 3_500_000, NOW_MS + 3_500_000),  # an hour ahead is believed
        (NOW_MS - 29 * DAY_MS, NOW_MS - 29 * DAY_MS, NOW_MS - 29 * DAY_MS),  # offline for a month
        (NOW_MS + 3650 * DAY_MS, NOW_MS + 3650 * DAY_MS - 60_000, NOW_MS - 60_000),  # ten years ahead: moved
        (5_000_000, 4_000_000, NOW_MS - 1_000_000),  # 1970: moved
        (0, 0, NOW_MS),  # no clock at all
        (NOW_MS - 1000, NOW_MS - 400 * DAY_MS, NOW_MS - 1000),  # a sample older than can be: the time of its batch
        (NOW_MS - 1000, 1 << 60, NOW_MS - 1000),
        (-(1 << 62), -(1 << 62), NOW_MS),
    ],
)
def test_clocks_that_cannot_be_right_are_corrected(created: int, base: int, expected: int) -> None:
    sent = batch(samples([7], base_ms=base), failures=[failure(at_ms=base)], created_ms=created)
    chunks, rejects = decoded(envelope(sent))
    assert rejects == []
    for table in ("samples", "failures"):
        (row,) = rows(chunks, table)
        assert row["at"] == np.datetime64(expected // 1000, "s").item()
        assert row["day"] == np.datetime64(expected // DAY_MS, "D").item()


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 31), (1 << 31) - 1))
@settings(max_examples=200)
def test_no_clock_makes_a_day_outside_the_window(created: int, base: int, offset: int) -> None:
    sent = batch(samples([7], base_ms=base, at_ms=[base]), created_ms=created)
    sent.series[0].samples.at_delta_ms[0] = offset
    chunks, rejects = decoded(envelope(sent))
    assert rejects == []
    (row,) = rows(chunks)
    assert NOW_MS - 30 * DAY_MS - 1000 <= np.datetime64(row["at"]).astype("datetime64[ms]").astype(int) <= NOW_MS + DAY_MS


@pytest.mark.parametrize(
    ("edge", "facts", "expected"),
    [("FR", "DE", "FR"), ("", "de", "DE"), ("", "", ""), ("", "Germany", ""), ("XX1", "DE", ""), ("", "D\0", "")],
)
def test_the_trusted_country_goes_first(edge: str, facts: str, expected: str) -> None:
    chunks, _ = decoded(envelope(batch(samples([1]), facts={**PIXEL, "country": facts}), country=edge))
    assert rows(chunks)[0]["country"] == expected


def test_text_is_bounded_and_unknown_numbers_are_zero() -> None:
    facts = {**dict.fromkeys(("device_model", "soc", "os_name", "app_version"), "x" * 1000 + "\0"), "api_level": -5}
    chunks, _ = decoded(envelope(batch(samples([1], of=package(model="m" * 500)), facts=facts)))
    row = rows(chunks)[0]
    assert all(len(row[name]) <= 128 for name, kind in CONTEXT.items() if kind is str)
    assert row["api_level"] == 0


def test_the_same_records_always_make_the_same_chunks() -> None:
    rng = random.Random(3)
    values = [
        envelope(batch(samples([rng.randint(1, 99_999) for _ in range(5000)]), batch_id=uuid.UUID(int=number).bytes))
        for number in range(80)
    ]
    values[17] = b"poison"
    first, rejects = decoded(*values)
    again, _ = decoded(*values)
    assert len(first) > 1
    assert [reject.position for reject in rejects] == [17]
    assert sum(len(chunk.samples["idx"]) for chunk in first) == 79 * 5000
    for left, right in zip(first, again, strict=True):
        assert rows([left], "activity") == rows([right], "activity")
        assert np.array_equal(left.samples["value_us"], right.samples["value_us"])
        assert np.array_equal(left.samples["batch_lo"], right.samples["batch_lo"])


@given(st.binary(max_size=300), st.sampled_from(["protobuf", "protobuf+zstd", "json"]))
@settings(max_examples=300)
def test_any_bytes_are_counted_or_refused(body: bytes, encoding: str) -> None:
    chunks, rejects = decoded(envelope(body, encoding=encoding))
    assert len(rejects) + len(chunks) == 1
    assert not any(reject.reason == "FAULT" for reject in rejects)


@given(st.data())
@settings(max_examples=200)
def test_flipped_bytes_of_a_good_batch_never_break_the_decoder(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1000)))
    body = bytearray(random_batch(rng).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    _, rejects = decoded(envelope(bytes(body)))
    assert not any(reject.reason == "FAULT" for reject in rejects), rejects
