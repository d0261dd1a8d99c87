"""Dead letters tried again: what can be read now counts once, what cannot is a letter again (SEC-C9)."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kit.clock import SystemClock
from kit.errors import Unavailable
from kit.eventlog import Message
from kit.identity import PrincipalSeal
from services.__main__ import main
from services.telemetry import events
from services.telemetry.replay import Outcome, Replay, Wanted
from services.telemetry.selection import Selection
from services.telemetry.service import GROUP
from tests.telemetry.factories import NOW, History, batch, envelope, random_batch, samples
from tests.telemetry.stores import Stores, open_stores

ALL = Wanted()
EVERYTHING = Selection("acme", NOW - timedelta(days=30), NOW + timedelta(days=1))


def replay_of(stores: Stores, **options: Any) -> Replay:
    return Replay(eventlog=stores.eventlog, database=stores.database, writer=stores.writer(**options), clock=stores.clock)


async def run(stores: Stores, wanted: Wanted = ALL, **options: Any) -> Outcome:
    async with asyncio.timeout(60):
        return await replay_of(stores, **options).replay(wanted, wait_s=1e9, tell=lambda _: None)


async def equal_to(stores: Stores, history: History) -> None:
    by = ("soc", "version")
    selection = Selection(EVERYTHING.account, EVERYTHING.since, EVERYTHING.until, group_by=by)
    found = await stores.analytics.inferences(selection)
    assert {tuple(row[name] for name in by): row["inferences"] for row in found.items} == history.inferences(*by)
    expected = history.latency(*by)
    latency = {(*(row[name] for name in by), row["phase"]): row for row in (await stores.analytics.latency(selection)).items}
    assert {key: row["count"] for key, row in latency.items()} == {key: figures["count"] for key, figures in expected.items()}
    failures = await stores.analytics.failures(EVERYTHING)
    assert {(row["phase"], row["code"]): row["count"] for row in failures.items} == history.failed()


async def test_one_percent_of_poison_becomes_letters_and_what_a_better_program_reads_counts_once(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(9)
    readable, all_of_them, unread, poison = History(), History(), set[bytes](), set[bytes]()
    values: list[tuple[str, bytes]] = []
    for number in range(400):
        install = f"install-{number % 40}"
        if number % 100 == 50:
            value = envelope(b"\xff poison %d" % number, install=install)
            poison.add(value)
        else:
            sent = random_batch(rng)
            many = number % 50 == 7  # so many series that this program refuses them
            if many:
                sent.series.extend(samples([number]) for _ in range(30))
            value = envelope(sent, install=install)
            all_of_them.add(install, sent)
            unread.add(value) if many else readable.add(install, sent)
        values.append((install, value))
    messages = [Message(f"acme/{install}", value, {"event-id": f"e{place}"}) for place, (install, value) in enumerate(values)]
    await stores.eventlog.append(events.RECEIVED, messages)
    with monkeypatch.context() as older:
        older.setattr("services.telemetry.decode.MAX_SERIES", 25)
        await stores.write_all()
    letters = await stores.dead_letters()
    assert {letter.value for letter in letters} == unread | poison
    assert Counter(letter.headers["reason"] for letter in letters) == {"TOO_MANY": len(unread), "MALFORMED": len(poison)}
    await equal_to(stores, readable)

    groups = await replay_of(stores).groups(Wanted())
    assert [(group.reason, group.letters, group.tried) for group in groups] == [("TOO_MANY", 8, 0), ("MALFORMED", 4, 0)]
    assert await stores.eventlog.lag(GROUP, events.RECEIVED) == 0  # looking changes nothing
    outcome = await run(stores)
    assert (outcome.letters, outcome.replayed, outcome.counted, outcome.unfinished) == (12, 12, 8, 0)
    assert outcome.rejected_again == {"MALFORMED": 4}
    await equal_to(stores, all_of_them)

    # The poison is there twice now, the second time with its history; the first ones were tried.
    groups = await replay_of(stores).groups(Wanted())
    assert {group.reason: (group.letters, group.tried) for group in groups} == {"TOO_MANY": (8, 8), "MALFORMED": (8, 4)}
    again = [letter for letter in await stores.dead_letters() if events.REPLAY in letter.headers]
    assert {letter.value for letter in again} == poison
    assert {letter.headers[events.REPLAY] for letter in again} == {outcome.run}
    for letter in again:
        (before,) = json.loads(letter.headers[events.HISTORY])
        assert before["reason"] == "MALFORMED"
        assert letter.headers["source-event-id"] == f"e{values.index((letter.key.removeprefix('acme/'), letter.value))}"
    # Everything once more, tried or not: no figure moves.
    outcome = await run(stores, Wanted(again=True))
    assert (outcome.letters, outcome.counted, outcome.rejected_again) == (16, 8, {"MALFORMED": 8})
    await equal_to(stores, all_of_them)


async def test_letters_are_chosen_by_reason_and_time(stores: Stores) -> None:
    await stores.send([envelope(b"\xff"), envelope(batch(samples([1], phase=9)))])
    await stores.write_all()
    now = datetime.now(UTC)  # letters carry the time of the log, which is the machine's
    for wanted, reasons in (
        (Wanted(frozenset({"PHASE"})), {"PHASE"}),
        (Wanted(frozenset({"PHASE", "MALFORMED"})), {"PHASE", "MALFORMED"}),
        (Wanted(frozenset({"NEVER"})), set()),
        (Wanted(since=now - timedelta(hours=1), until=now + timedelta(hours=1)), {"PHASE", "MALFORMED"}),
        (Wanted(since=now + timedelta(hours=1)), set()),
        (Wanted(until=now - timedelta(hours=1)), set()),
    ):
        assert {group.reason for group in await replay_of(stores).groups(wanted)} == reasons
    outcome = await run(stores, Wanted(frozenset({"PHASE"})))
    assert (outcome.letters, outcome.rejected_again) == (1, {"PHASE": 1})


async def test_a_replay_that_was_killed_is_done_again_without_effect_on_figures(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    await stores.send([envelope(batch(samples([1000] * 3), samples([5])))])
    with monkeypatch.context() as older:
        older.setattr("services.telemetry.decode.MAX_SERIES", 1)
        await stores.write_all()

    class Dying(Replay):
        """Dies when the letters are in the log again."""

        async def replay(self, wanted: Wanted, **options: Any) -> Outcome:
            self._database = None  # type: ignore[assignment]
            return await super().replay(wanted, **options)

        async def _letters(self, wanted: Wanted) -> Any:
            async for records in self._log.read(events.REJECTED):
                yield records, set()

    dying = Dying(eventlog=stores.eventlog, database=stores.database, writer=stores.writer(), clock=stores.clock)
    with pytest.raises(AttributeError):
        await dying.replay(Wanted(), wait_s=1, tell=lambda _: None)
    assert await stores.eventlog.lag(GROUP, events.RECEIVED) == 1
    outcome = await run(stores)
    assert (outcome.replayed, outcome.already_tried, outcome.counted) == (1, 0, 1)
    (row,) = (await stores.analytics.inferences(EVERYTHING)).items
    assert row == {"inferences": 4, "installs": 1}


async def test_letters_that_are_garbage_again_do_not_stop_the_writer(stores: Stores) -> None:
    await stores.send([envelope(b"\xff%d" % number, install=f"{number}") for number in range(60)])
    await stores.write_all(stores.writer(max_rejects_in_row=0))
    outcome = await run(stores, max_rejects_in_row=25)
    assert (outcome.replayed, outcome.rejected_again, outcome.unfinished) == (60, {"MALFORMED": 60}, 0)


async def test_what_no_writer_reached_in_time_is_said(stores: Stores) -> None:
    class Away(type(stores.tables)):  # type: ignore[misc]
        async def insert(self, table: str, columns: object, *, token: str) -> None:
            raise Unavailable("not now")

    await stores.send([envelope(batch(samples([1], phase=9))), envelope(batch(samples([2])), install="b")])
    await stores.write_all()
    await stores.send([envelope(batch(samples([3])), install=f"c{number}") for number in range(3)])
    stores.tables = Away(stores.olap)
    outcome = await replay_of(stores).replay(Wanted(), wait_s=0, tell=lambda _: None)
    assert (outcome.replayed, outcome.unfinished) == (1, 1)


def test_the_command_lists_and_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def prepare() -> None:
        async with open_stores(tmp_path, SystemClock(), PrincipalSeal(b"s" * 32)) as stores:
            await stores.send([envelope(b"\xff"), envelope(batch(samples([1000]), samples([5])), install="b")])
            with monkeypatch.context() as older:
                older.setattr("services.telemetry.decode.MAX_SERIES", 1)
                await stores.write_all()

    def answer(*arguments: str) -> Any:
        capsys.readouterr()
        assert main(["telemetry", "replay", "--data-dir", str(tmp_path), "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    asyncio.run(prepare())
    found = answer("--dry-run")
    assert (found["letters"], {group["reason"] for group in found["groups"]}) == (2, {"MALFORMED", "TOO_MANY"})
    found = answer()
    assert {name: found[name] for name in ("letters", "replayed", "counted", "rejected_again", "unfinished")} == {
        "letters": 2,
        "replayed": 2,
        "counted": 1,
        "rejected_again": {"MALFORMED": 1},
        "unfinished": 0,
    }
    assert answer("--reason", "TOO_MANY")["replayed"] == 0
    assert main(["telemetry", "replay", "--data-dir", str(tmp_path), "--dry-run"]) == 0
    assert "MALFORMED" in capsys.readouterr().out


def test_the_command_says_when_a_server_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def beside() -> int:
        async with open_stores(tmp_path, SystemClock(), PrincipalSeal(b"s" * 32)):
            return await asyncio.to_thread(main, ["telemetry", "replay", "--data-dir", str(tmp_path)])

    assert asyncio.run(beside()) == 1
    assert "another process" in capsys.readouterr().err
