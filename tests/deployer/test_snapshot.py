"""A state of a collection starts and ends at the moment that is written in it, whenever this process heard of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.deployer.binding import Bound, Catalogue, VersionEntry, bind, compile_rules
from services.deployer.compatibility import Package
from services.deployer.rules import parse_rules
from services.deployer.snapshot import FARTHEST_START, Live, Snapshot

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
CATALOGUE = Catalogue({("m", 1): VersionEntry((Package("digest", "m", 1, "v", 1, "onnxruntime"),))}, {})


def rules(mark: int, *windows: tuple[str, str]) -> Bound:
    listed = [
        {"id": f"r{number}", "active": {"from": opens, "until": closes}, "serve": {"model": "m", "version": 1}}
        for number, (opens, closes) in enumerate(windows)
    ]
    document = {"rules": listed, "default": {"model": "m", "version": 1}}
    return bind(compile_rules(parse_rules(document)), CATALOGUE, collection="c", revision=mark, content=str(mark), mark=mark)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def live(mark: int, starts: datetime | None = None) -> Live:
    return Live(rules(mark), mark, str(mark)) if starts is None else Live(rules(mark), mark, str(mark), starts)


def served(snapshot: Snapshot, now: datetime) -> int | None:
    """The mark that a device is answered from."""
    found = snapshot.find("acme", "c")
    assert found is not None
    bound = found.at(now)
    return None if bound is None else bound.mark


def test_the_state_before_serves_until_the_new_one_starts() -> None:
    snapshot = Snapshot()
    snapshot.swap("acme", "c", live(1))
    snapshot.swap("acme", "c", live(2, after(0.5)))
    assert [served(snapshot, after(seconds)) for seconds in (0, 0.499999, 0.5, 0.6)] == [1, 1, 2, 2]
    assert served(snapshot, after(0.7)) == 2


def test_states_that_follow_each_other_quickly_each_have_their_time() -> None:
    snapshot = Snapshot()
    snapshot.swap("acme", "c", live(1))
    for mark, start in ((2, 0.3), (3, 0.4), (4, 0.5)):
        snapshot.swap("acme", "c", live(mark, after(start)))
    assert [served(snapshot, after(seconds)) for seconds in (0, 0.29, 0.3, 0.4, 0.49, 0.5)] == [1, 1, 2, 3, 3, 4]


def test_the_same_state_loaded_again_keeps_the_one_before_it() -> None:
    snapshot = Snapshot()
    snapshot.swap("acme", "c", live(1))
    snapshot.swap("acme", "c", live(2, after(0.5)))
    snapshot.swap("acme", "c", live(2, after(0.5)))
    assert [served(snapshot, after(seconds)) for seconds in (0, 0.5)] == [1, 2]


def test_an_older_state_that_was_loaded_later_is_dropped() -> None:
    snapshot = Snapshot()
    snapshot.swap("acme", "c", live(2))
    snapshot.swap("acme", "c", live(1))
    assert served(snapshot, NOW) == 2


def test_a_process_that_knows_only_the_coming_state_waits_for_its_start() -> None:
    snapshot = Snapshot()
    snapshot.swap("acme", "c", live(2, after(0.5)))
    assert [served(snapshot, after(seconds)) for seconds in (0, 0.5)] == [None, 2]


def test_a_state_that_is_announced_and_not_loaded_ends_the_one_before_it_in_time() -> None:
    snapshot = Snapshot()
    snapshot.swap("acme", "c", live(1))
    assert served(snapshot, NOW) == 1
    assert snapshot.announce("acme", "c", 2, after(0.5))
    assert snapshot.awaits("acme", "c")
    assert [served(snapshot, after(seconds)) for seconds in (0, 0.499, 0.5, 9)] == [1, 1, None, None]
    snapshot.swap("acme", "c", live(2, after(0.5)))
    assert not snapshot.awaits("acme", "c")
    assert [served(snapshot, after(seconds)) for seconds in (0.4, 0.5)] == [1, 2]
    assert not snapshot.announce("acme", "c", 2, after(0.5))


def test_an_unknown_collection_can_be_announced() -> None:
    snapshot = Snapshot()
    assert snapshot.announce("acme", "c", 2, after(0.5))
    assert snapshot.awaits("acme", "c")
    snapshot.swap("acme", "c", live(1))
    assert snapshot.awaits("acme", "c")  # that was not yet the one
    snapshot.swap("acme", "c", live(2))
    assert not snapshot.awaits("acme", "c")


def test_a_start_that_is_far_away_is_a_wrong_clock_and_counts_as_started() -> None:
    snapshot = Snapshot()
    snapshot.swap("acme", "c", live(2, after(3600)))
    assert served(snapshot, NOW) == 2
    assert served(snapshot, after(3600) - FARTHEST_START / 2) == 2


def test_positions_rise_over_edges_of_windows_and_over_marks() -> None:
    window = ("2026-11-22T10:00:10Z", "2026-11-22T10:00:20Z")
    first, second = rules(1 << 15, window), rules(2 << 15)
    positions = [first.at(after(seconds).timestamp()).position for seconds in (0, 10, 15, 20)]
    assert positions == [1 << 15, (1 << 15) + 1, (1 << 15) + 1, (1 << 15) + 2]
    assert positions[-1] < second.at(NOW.timestamp()).position
    tags = [first.at(after(seconds).timestamp()).tag for seconds in (0, 10, 20)]
    assert len(set(tags)) == 3
    assert tags == sorted(tags)


def test_the_next_turn_is_the_next_moment_at_which_an_answer_may_change() -> None:
    window = ("2026-11-22T10:00:10Z", "2026-11-22T10:00:20Z")
    one = Live(rules(1, window), 1, "1")
    one.at(NOW)
    assert one.next_turn(NOW) == after(10)
    one.at(after(25))
    assert one.next_turn(after(25)) is None
    coming = live(2, after(0.5))
    assert coming.next_turn(NOW) == after(0.5)
