"""Answers against what the senders know they sent."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.telemetry.errors import QueryInvalid
from services.telemetry.queries import Rows
from services.telemetry.selection import Selection
from tests.telemetry.factories import (
    NOW,
    NOW_MS,
    OLD_PHONE,
    PIXEL,
    History,
    batch,
    envelope,
    failure,
    package,
    random_batch,
    samples,
    sketch,
)
from tests.telemetry.stores import Stores

DIMENSIONS = ("model", "version", "variant", "device_model", "soc", "os", "api_level", "country", "app_version")


def select(account: str = "acme", **more: Any) -> Selection:
    return Selection(**{"account": account, "since": NOW - timedelta(days=7), "until": NOW + timedelta(days=1), **more})


async def sent(stores: Stores, history: History, *, seed: int, batches: int, installs: int = 6, account: str = "acme") -> None:
    """Random batches of some installs; one in five goes out twice, as after a lost answer."""
    rng = random.Random(seed)
    facts = [random_batch(rng).facts for _ in range(installs)]
    for _ in range(batches):
        number = rng.randrange(installs)
        one = random_batch(rng)
        one.facts.CopyFrom(facts[number])
        history.add(f"install-{number}", one)
        for copy in range(2 if rng.random() < 0.2 else 1):
            value = envelope(one, account=account, install=f"install-{number}", received_ms=NOW_MS + copy * 5000)
            await stores.send([value], f"{account}/install-{number}")


async def test_every_answer_equals_the_senders_history(stores: Stores) -> None:
    history, other = History(), History()
    await sent(stores, history, seed=1, batches=60)
    await sent(stores, other, seed=2, batches=20, account="rival")
    await stores.write_all()
    analytics = stores.analytics
    for by in ((), *((name,) for name in DIMENSIONS), ("model", "version", "soc"), DIMENSIONS):
        expected = history.latency(*by)
        rows = (await analytics.latency(select(group_by=by))).items
        assert {(*(row[name] for name in by), row["phase"]) for row in rows} == set(expected)
        for row in rows:
            figures = expected[(*(row[name] for name in by), row["phase"])]
            assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-6)
        counted = {tuple(row[name] for name in by): row["inferences"] for row in (await analytics.inferences(select(group_by=by))).items}
        assert counted == history.inferences(*by)
    assert (await analytics.inferences(select())).dropped_samples == history.dropped
    failures = (await analytics.failures(select())).items
    assert {(row["phase"], row["code"]): row["count"] for row in failures} == history.failed()
    active = (await analytics.active_installs(select())).items
    assert {row["start"].date().isoformat(): row["active_installs"] for row in active if row["active_installs"]} == history.actives()
    adopted = (await analytics.adoption(select())).items
    assert {(row["start"].date().isoformat(), row["model"], row["version"]): row["installs"] for row in adopted} == history.adoption()
    rival = (await analytics.inferences(select("rival"))).items[0]["inferences"]
    assert rival == other.inferences()[()]


async def test_filters_take_any_of_their_values_and_all_of_them_together(stores: Stores) -> None:
    await stores.send(
        [
            envelope(batch(samples([1000] * 3), facts=PIXEL), install="a"),
            envelope(batch(samples([2000] * 5), facts=OLD_PHONE), install="b"),
            envelope(batch(samples([4000] * 7, of=package(version=8)), facts={}), install="c"),
        ]
    )
    await stores.write_all()

    async def count(**where: Any) -> int:
        return int((await stores.analytics.inferences(select(where=where))).items[0]["inferences"])

    assert await count() == 15
    assert await count(soc=("tensor-g4",)) == 3
    assert await count(soc=("tensor-g4", "sm6225")) == 8
    assert await count(soc=("tensor-g4", "sm6225"), api_level=(30,)) == 5
    assert await count(soc=("",)) == 7
    assert await count(api_level=(0,), version=(8,)) == 7
    assert await count(model=("'; DROP TABLE samples; --",)) == 0
    rows = (await stores.analytics.latency(select(group_by=("soc",)))).items
    assert {row["soc"]: row["p50_ms"] for row in rows} == {"tensor-g4": 1.0, "sm6225": 2.0, None: 4.0}


async def test_time_bounds_are_exact_and_intervals_start_at_their_beginning(stores: Stores) -> None:
    base = int(datetime(2026, 11, 20, 23, 0, tzinfo=UTC).timestamp() * 1000)
    hour = 3_600_000
    await stores.send([envelope(batch(samples([10] * 4, at_ms=[base, base + hour - 1, base + hour, base + 2 * hour], base_ms=base)))])
    await stores.write_all()

    async def count(since: datetime, until: datetime) -> int:
        return int((await stores.analytics.inferences(select(since=since, until=until))).items[0]["inferences"])

    begin = datetime(2026, 11, 20, 23, 0, tzinfo=UTC)
    assert await count(begin, begin + timedelta(hours=1)) == 2
    assert await count(begin + timedelta(hours=1), begin + timedelta(hours=2)) == 1
    assert await count(begin, begin + timedelta(hours=2, seconds=1)) == 4
    assert await count(begin + timedelta(hours=3), begin + timedelta(hours=4)) == 0
    hourly = (await stores.analytics.inferences(select(), interval="hour")).items
    assert [(row["start"], row["inferences"]) for row in hourly] == [
        (begin, 2),
        (begin + timedelta(hours=1), 1),
        (begin + timedelta(hours=2), 1),
    ]
    daily = (await stores.analytics.inferences(select(), interval="day")).items
    assert [(row["start"].day, row["inferences"]) for row in daily] == [(20, 2), (21, 2)]
    monthly = (await stores.analytics.active_installs(select(), interval="month")).items
    assert [(row["start"], row["active_installs"]) for row in monthly] == [(datetime(2026, 11, 1, tzinfo=UTC), 1)]


async def test_nothing_is_an_answer(stores: Stores) -> None:
    analytics = stores.analytics
    assert (await analytics.inferences(select())).items == [{"inferences": 0, "installs": 0}]
    assert (await analytics.inferences(select(group_by=("soc",)))).items == []
    assert (await analytics.latency(select())).items == []
    assert (await analytics.failures(select())).items == []
    assert (await analytics.adoption(select())).items == []
    active = (await analytics.active_installs(select())).items
    assert [row["active_installs"] for row in active] == [0] * 8
    assert active[-1]["start"] == NOW.replace(hour=0)
    compared = await analytics.compare(select(), model="yolo", baseline=1, candidate=2)
    assert compared.items == []
    assert [side["failure_rate"] for side in compared.sides] == [None, None]


async def test_two_versions_side_by_side(stores: Stores) -> None:
    old, new = package(version=7), package(version=8)
    await stores.send(
        [
            envelope(batch(samples([2000] * 90 + [8000] * 10, of=old), samples([50_000], of=old, phase=1)), install="a"),
            envelope(batch(samples([1000] * 96, of=new), failures=[failure(of=new)] * 4), install="b"),
            envelope(batch(samples([500] * 4, of=old), facts=OLD_PHONE), install="c"),
            envelope(batch(samples([1] * 4, of=package("digits", 8))), install="d"),
        ]
    )
    await stores.write_all()
    found = await stores.analytics.compare(select(group_by=("soc",)), model="yolo", baseline=7, candidate=8)
    rows = {(row["soc"], row["phase"]): row for row in found.items}
    assert set(rows) == {("tensor-g4", "steady"), ("tensor-g4", "load"), ("sm6225", "steady")}
    both = rows["tensor-g4", "steady"]
    assert (both["baseline"]["count"], both["candidate"]["count"]) == (100, 96)
    assert both["ratio"] == {"mean": 0.3846, "p50": 0.5, "p90": 0.5, "p95": 0.125, "p99": 0.125}
    assert rows["sm6225", "steady"]["candidate"] is None
    assert rows["sm6225", "steady"]["ratio"] is None
    baseline, candidate = found.sides
    assert baseline == {"version": 7, "inferences": 104, "installs": 2, "failures": 0, "failure_rate": 0.0}
    assert candidate == {"version": 8, "inferences": 96, "installs": 1, "failures": 4, "failure_rate": 0.04}


async def test_sketches_weigh_what_they_count(stores: Stores) -> None:
    # 1.02^465 is 9,977 µs: 99 fast runs in one bucket, one of 1.02^700 µs.
    await stores.send([envelope(batch(sketch({465: 990, 700: 10}))), envelope(batch(samples([20_000])), install="b")])
    await stores.write_all()
    (row,) = (await stores.analytics.latency(select())).items
    assert row["count"] == 1001
    assert row["p50_ms"] == pytest.approx(9.88, rel=0.01)
    assert row["p95_ms"] == pytest.approx(9.88, rel=0.01)
    assert row["max_ms"] == pytest.approx(1.02**700 / 1000, rel=0.01)


async def test_answers_are_bounded_and_say_so(stores: Stores) -> None:
    await stores.send(
        [envelope(batch(samples([10]), facts={**PIXEL, "soc": f"soc-{number:02}"}), install=f"{number}") for number in range(12)]
    )
    await stores.write_all()
    for limit, truncated in ((11, True), (12, False)):
        answers: list[Rows] = [
            await stores.analytics.latency(select(group_by=("soc",), limit=limit)),
            await stores.analytics.inferences(select(group_by=("soc",), limit=limit)),
            await stores.analytics.active_installs(select(group_by=("soc",), limit=limit)),
            await stores.analytics.adoption(select(group_by=("soc",), limit=limit)),
        ]
        for answer in answers:
            assert (len(answer.items), answer.truncated) == (limit, truncated)


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_by": ("nothing",)},
        {"group_by": ("soc", "soc")},
        {"where": {"nothing": ("x",)}},
        {"where": {"soc": ("x",) * 101}},
        {"limit": 0},
        {"limit": 10_001},
        {"since": NOW, "until": NOW},
        {"since": NOW - timedelta(days=900)},
        {"since": datetime(1960, 1, 1, tzinfo=UTC), "until": datetime(1961, 1, 1, tzinfo=UTC)},
    ],
)
def test_impossible_queries_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(QueryInvalid):
        select(**wrong)


async def test_unknown_phases_and_intervals_are_refused(stores: Stores) -> None:
    with pytest.raises(QueryInvalid, match="phase"):
        await stores.analytics.latency(select(), phases=["warm"])
    with pytest.raises(QueryInvalid, match="interval"):
        await stores.analytics.inferences(select(), interval="week")
