"""One look-up per key at a time."""

from __future__ import annotations

import asyncio

import pytest

from kit.single_flight import SingleFlight


class Source:
    """Answers when it is told to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def look_up(self) -> str:
        self.asked += 1
        return await asyncio.shield(self.answer)


async def test_all_who_ask_meanwhile_share_one_look_up_and_the_next_makes_another() -> None:
    source, flight = Source(), SingleFlight[str, str]()
    waiting = [asyncio.create_task(flight.get("key", source.look_up)) for _ in range(1000)]
    other = asyncio.create_task(flight.get("other", source.look_up))
    await asyncio.sleep(0)
    source.answer.set_result("found")
    assert set(await asyncio.gather(*waiting, other)) == {"found"}
    assert source.asked == 2
    await flight.get("key", source.look_up)
    assert source.asked == 3


async def test_a_failure_reaches_everyone_and_is_not_kept() -> None:
    source, flight = Source(), SingleFlight[str, str]()
    waiting = [asyncio.create_task(flight.get("key", source.look_up)) for _ in range(3)]
    await asyncio.sleep(0)
    source.answer.set_exception(OSError("down"))
    assert [str(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == ["down"] * 3
    source.answer = asyncio.get_running_loop().create_future()
    source.answer.set_result("up")
    assert await flight.get("key", source.look_up) == "up"


async def test_who_came_first_may_leave() -> None:
    source, flight = Source(), SingleFlight[str, str]()
    first, second = (asyncio.create_task(flight.get("key", source.look_up)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    source.answer.set_result("found")
    assert await second == "found"
    assert source.asked == 1
