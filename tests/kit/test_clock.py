"""The fake clock, and how times are written."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from kit.clock import FakeClock, SystemClock, rfc3339, timestamp_ms


async def test_advancing_wakes_sleepers_in_the_order_of_their_time() -> None:
    clock = FakeClock()
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper(name, seconds)) for name, seconds in (("late", 10), ("early", 1), ("middle", 5), ("never", 99))]
    await asyncio.sleep(0)
    assert clock.sleepers == 4
    clock.advance(0.5)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(9.5)
    await asyncio.sleep(0)
    assert woken == ["early", "middle", "late"]
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert clock.sleepers == 0


def test_time_moves_only_when_it_is_advanced() -> None:
    clock = FakeClock(datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))))
    assert clock.now() == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert clock.now().tzinfo is UTC
    assert clock.monotonic() == 0
    clock.advance(1.5)
    assert (clock.now() - datetime(2026, 1, 1, 10, tzinfo=UTC)).total_seconds() == 1.5
    assert clock.monotonic() == 1.5
    clock.set_now(datetime(2020, 1, 1, tzinfo=UTC))
    assert (clock.now().year, clock.monotonic()) == (2020, 1.5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


async def test_the_system_clock_agrees_with_the_machine() -> None:
    clock = SystemClock()
    assert abs((clock.now() - datetime.now(UTC)).total_seconds()) < 5
    before = clock.monotonic()
    await clock.sleep(0)
    await clock.sleep(-1)
    assert clock.monotonic() >= before


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 11, 22, 10, 0, tzinfo=UTC), "2026-11-22T10:00:00Z"),
        (datetime(2026, 11, 22, 10, 0, 0, 5000, tzinfo=UTC), "2026-11-22T10:00:00.005Z"),
        (datetime(2026, 11, 22, 10, 0, tzinfo=timezone(timedelta(hours=-3))), "2026-11-22T13:00:00Z"),
        (datetime(2026, 11, 22, 10, 0, 0, 999, tzinfo=UTC), "2026-11-22T10:00:00Z"),
    ],
)
def test_times_are_written_in_utc(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


def test_milliseconds_of_a_moment() -> None:
    assert timestamp_ms(datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)) == 1500
