"""What every column store promises (kit.olap)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest

from kit.errors import Unavailable
from kit.olap import SCHEMES, Coded, ColumnStore, StatementFailed, open_olap, row_count
from kit.olap.migrate import MigrationChanged, migrate
from tests import real_servers

URLS = {"chdb": lambda folder: f"chdb:{folder}/olap", "clickhouse": lambda _folder: real_servers.clickhouse()}
CASES = [name if name == "chdb" else pytest.param(name, marks=pytest.mark.cluster) for name in URLS]
EVENTS = """
    CREATE TABLE events (day Date, id UInt64, version UInt32, name String, value Float64)
    ENGINE = ReplacingMergeTree(version) PARTITION BY day ORDER BY id
"""
DAYS = [date(2026, 11, 20), date(2026, 11, 21)]


def test_every_adapter_has_cases() -> None:
    assert set(URLS) == set(SCHEMES)


@pytest.fixture(params=CASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return URLS[request.param](tmp_path)


@pytest.fixture
async def store(url: str) -> AsyncIterator[ColumnStore]:
    async with open_olap(url) as opened:
        await opened.execute(EVENTS)
        yield opened


def events(ids: range, version: int = 1) -> dict[str, Any]:
    return {
        "day": [DAYS[number % 2] for number in ids],
        "id": list(ids),
        "version": [version] * len(ids),
        "name": [f"name {number}" for number in ids],
        "value": [number / 2 for number in ids],
    }


async def count(store: ColumnStore, final: bool = False) -> int:
    rows = await store.query(f"SELECT count() AS number FROM events {'FINAL' if final else ''}")
    return int(rows[0]["number"])


async def test_what_was_inserted_is_read(store: ColumnStore) -> None:
    await store.insert("events", events(range(3)), token="a")
    rows = await store.query("SELECT day, id, name, value FROM events ORDER BY id")
    assert rows == [{"day": DAYS[number % 2], "id": number, "name": f"name {number}", "value": number / 2} for number in range(3)]


async def test_columns_may_be_lists_arrays_or_arrow(store: ColumnStore) -> None:
    await store.insert(
        "events",
        {
            "day": pyarrow.array(DAYS),
            "id": numpy.array([1, 2], dtype=numpy.uint64),
            "version": (1, 1),
            "name": pyarrow.array(["a", "b"]).dictionary_encode(),
            "value": numpy.array([0.5, numpy.inf]),
        },
        token="a",
    )
    assert await store.query("SELECT id, name, value FROM events ORDER BY id") == [
        {"id": 1, "name": "a", "value": 0.5},
        {"id": 2, "name": "b", "value": None},
    ]


async def test_a_text_column_may_be_coded(store: ColumnStore) -> None:
    names = Coded(["a", "b", "a"], numpy.array([2, 1, 1, 0], dtype=numpy.int32))
    await store.insert("events", events(range(4)) | {"name": names}, token="a")
    assert [row["name"] for row in await store.query("SELECT name FROM events ORDER BY id")] == ["a", "b", "b", "a"]


async def test_every_type_comes_back_as_it_went(store: ColumnStore) -> None:
    await store.execute(
        "CREATE TABLE kinds (id UInt8, at DateTime, maybe Nullable(DateTime), big UInt64, low Int64, text String, raw String,"
        " many Array(String), days Array(UInt16), small Float32) ENGINE = MergeTree ORDER BY id"
    )
    at = datetime(2026, 11, 22, 10, 30, 59, tzinfo=UTC)
    texts = ["", "ü€𝄞", "quote ' \" back\\slash", "tab\tline\nreturn\r", "\\N", "nul\0inside"]
    await store.insert(
        "kinds",
        {
            "id": list(range(len(texts))),
            "at": [at] * len(texts),
            "maybe": [None, at.astimezone(timezone(timedelta(hours=2)))] * (len(texts) // 2),
            "big": numpy.full(len(texts), 2**64 - 1, dtype=numpy.uint64),
            "low": [-(2**63)] * len(texts),
            "text": texts,
            "raw": [text.encode() for text in texts],
            "many": [texts[:number] for number in range(len(texts))],
            "days": [[number] * number for number in range(len(texts))],
            "small": [0.5] * len(texts),
        },
        token="a",
    )
    rows = await store.query("SELECT * FROM kinds ORDER BY id")
    assert [row["text"] for row in rows] == texts
    assert [row["raw"] for row in rows] == texts
    assert [row["many"] for row in rows] == [texts[:number] for number in range(len(texts))]
    assert [row["days"] for row in rows] == [[number] * number for number in range(len(texts))]
    assert [row["maybe"] for row in rows] == [None, at] * 3
    assert rows[0] | {"text": "", "raw": "", "many": [], "days": []} == {
        "id": 0,
        "at": at,
        "maybe": None,
        "big": 2**64 - 1,
        "low": -(2**63),
        "text": "",
        "raw": "",
        "many": [],
        "days": [],
        "small": 0.5,
    }


async def test_the_same_token_twice_is_one_insert(store: ColumnStore) -> None:
    await store.insert("events", events(range(1000)), token="log:0:0-999")
    await store.insert("events", events(range(1000)), token="log:0:0-999")
    assert await count(store, final=True) == 1000
    await store.insert("events", events(range(1000, 1010)), token="log:0:1000-1009")
    assert await count(store, final=True) == 1010


async def test_a_token_is_known_after_a_restart(url: str) -> None:
    async with open_olap(url) as store:
        await store.execute(EVENTS)
        await store.insert("events", events(range(10)), token="a")
    async with open_olap(url) as store:
        await store.insert("events", events(range(10)), token="a")
        assert await count(store, final=True) == 10


async def test_a_token_belongs_to_one_table(store: ColumnStore) -> None:
    await store.execute(EVENTS.replace("events", "others"))
    await store.insert("events", events(range(10)), token="a")
    await store.insert("others", events(range(10)), token="a")
    assert await store.query("SELECT count() AS number FROM others") == [{"number": 10}]


async def test_a_big_batch_is_one_insert(store: ColumnStore) -> None:
    rows = 1_500_000
    ids = numpy.arange(rows, dtype=numpy.uint64)
    batch = {
        "day": numpy.full(rows, "2026-11-20", dtype="datetime64[D]"),
        "id": ids,
        "version": numpy.ones(rows, dtype=numpy.uint32),
        "name": pyarrow.array(["n"]).take(pyarrow.array(numpy.zeros(rows, dtype=numpy.int32))),
        "value": numpy.zeros(rows),
    }
    for _ in range(2):
        await store.insert("events", batch, token="big")
    assert await count(store, final=True) == rows


async def test_rows_of_one_id_are_one_row_for_final(store: ColumnStore) -> None:
    await store.insert("events", events(range(100)), token="a")
    await store.insert("events", events(range(50, 150), version=2), token="b")
    assert await count(store) in range(150, 201)
    assert await count(store, final=True) == 150
    assert await store.query("SELECT sum(version) AS total FROM events FINAL") == [{"total": 50 + 200}]


async def test_a_bad_batch_adds_nothing_and_the_store_goes_on(store: ColumnStore) -> None:
    for broken in (
        events(range(3)) | {"value": ["x", "y", "z"]},
        events(range(3)) | {"day": [DAYS[0], DAYS[1], "never"]},
        events(range(3)) | {"nope": [1, 2, 3]},
        events(range(3)) | {"value": [object(), 1, 2]},
        events(range(3)) | {"id": [2**70, 1, 2]},
    ):
        with pytest.raises(StatementFailed):
            await store.insert("events", broken, token="a")
    with pytest.raises(StatementFailed):
        await store.insert("nowhere", events(range(3)), token="a")
    assert await count(store) == 0
    await store.insert("events", events(range(3)), token="a")
    assert await count(store) == 3


async def test_columns_of_different_length_are_refused(store: ColumnStore) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        await store.insert("events", events(range(3)) | {"id": [1]}, token="a")
    assert row_count({}) == 0
    await store.insert("events", events(range(0)), token="a")
    assert await count(store) == 0


@pytest.mark.parametrize("name", ["", "events; DROP TABLE events", "a b", "1a", "events`", "a" * 101])
async def test_a_name_cannot_be_sql(store: ColumnStore, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        await store.insert(name, events(range(1)), token="a")
    with pytest.raises(ValueError, match="name"):
        await store.insert("events", events(range(1)) | {name: [1]}, token="a")


@pytest.mark.parametrize("token", ["", "a'", "a', max_threads = 1", "a b", "x" * 201])
async def test_a_token_cannot_be_sql(store: ColumnStore, token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        await store.insert("events", events(range(1)), token=token)


HOSTILE = [
    "' OR 1 = 1 --",
    "'; DROP TABLE events; --",
    "\\' OR 1 = 1 --",
    "\\",
    "{other:String}",
    "%s",
    "a\tb\nc\0d",
    "\\N",
    "ü€𝄞",
    "",
    "]",
    "','x",
]


async def test_parameters_are_values_never_sql(store: ColumnStore) -> None:
    await store.insert("events", events(range(5)), token="a")
    for text in HOSTILE:
        assert await store.query("SELECT {value:String} AS value", {"value": text}) == [{"value": text}]
        found = await store.query(
            "SELECT id FROM events WHERE name = {name:String} OR has({names:Array(String)}, name)", {"name": text, "names": [text]}
        )
        assert found == []
    assert await store.query("SELECT {all:Array(String)} AS values", {"all": HOSTILE}) == [{"values": HOSTILE}]
    assert await count(store) == 5


async def test_parameters_have_types(store: ColumnStore) -> None:
    at = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
    params = {
        "number": -5,
        "ratio": 0.25,
        "yes": True,
        "day": DAYS[0],
        "at": at.astimezone(timezone(timedelta(hours=5))),
        "numbers": [1, 2],
        "none": None,
        "empty": [],
        "days": DAYS,
    }
    row = (
        await store.query(
            "SELECT {number:Int32} AS number, {ratio:Float64} AS ratio, {yes:UInt8} AS yes, {day:Date} AS day, {at:DateTime} AS at,"
            " {numbers:Array(UInt32)} AS numbers, {none:Nullable(String)} AS none, {empty:Array(String)} AS empty,"
            " arrayMap(x -> toString(x), {days:Array(Date)}) AS days",
            params,
        )
    )[0]
    assert row == params | {"yes": 1, "at": at, "days": [day.isoformat() for day in DAYS]}


@pytest.mark.parametrize("value", ["1 OR 1 = 1", "-1", "", "1; DROP TABLE events", None])
async def test_a_parameter_of_another_type_is_refused(store: ColumnStore, value: object) -> None:
    with pytest.raises(StatementFailed):
        await store.query("SELECT {id:UInt32} AS id", {"id": value})
    with pytest.raises(TypeError):
        await store.query("SELECT {id:UInt32} AS id", {"id": object()})


async def test_a_parameter_that_is_missing_is_refused(store: ColumnStore) -> None:
    with pytest.raises(StatementFailed):
        await store.query("SELECT {id:UInt32} AS id")


async def test_a_statement_that_is_wrong_says_so(store: ColumnStore) -> None:
    for sql in ("SELEC 1", "SELECT nope FROM events", "SELECT * FROM nowhere"):
        with pytest.raises(StatementFailed) as failed:
            await store.query(sql)
        assert failed.value.code > 0
    with pytest.raises(StatementFailed):
        await store.execute("CREATE TABLE")


async def test_no_rows_are_an_empty_list(store: ColumnStore) -> None:
    assert await store.query("SELECT id, day FROM events") == []


async def test_reading_and_writing_at_once(store: ColumnStore) -> None:
    async def write(part: int) -> None:
        await store.insert("events", events(range(part * 100, part * 100 + 100)), token=f"part-{part}")

    async def read() -> None:
        # 50 rows of a batch go into each of two partitions; each part appears whole, one after the other.
        assert await count(store) % 50 == 0

    await asyncio.gather(*(write(part) for part in range(10)), *(read() for _ in range(10)))
    assert await count(store) == 1000


async def test_ping_answers(store: ColumnStore) -> None:
    await store.ping()


async def test_migrations_are_applied_once_and_in_order(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "schema"
    folder.mkdir()
    (folder / "0001_first.sql").write_text(
        "-- events; with a semicolon in a comment\nCREATE TABLE IF NOT EXISTS one (id UInt8, text String) ENGINE = MergeTree ORDER BY id;\n"
        "/* another; */ INSERT INTO one SELECT 1, 'it\\'s; text';\n"
    )
    async with open_olap(url) as store:
        assert await migrate(store, folder) == ["0001_first"]
        (folder / "0002_second.sql").write_text("ALTER TABLE one ADD COLUMN more UInt8;")
        assert await migrate(store, folder) == ["0002_second"]
    async with open_olap(url) as store:
        assert await migrate(store, folder) == []
        assert await store.query("SELECT * FROM one") == [{"id": 1, "text": "it's; text", "more": 0}]
        (folder / "0001_first.sql").write_text("SELECT 1")
        with pytest.raises(MigrationChanged, match="0001_first"):
            await migrate(store, folder)


async def test_many_that_migrate_at_once_do_not_collide(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "schema"
    folder.mkdir()
    for number in range(1, 7):
        (folder / f"{number:04d}_table.sql").write_text(
            f"CREATE TABLE IF NOT EXISTS t{number} (day Date, id UInt8) ENGINE = MergeTree PARTITION BY day ORDER BY id;\n"
            f"ALTER TABLE t{number} ADD COLUMN more UInt8;"
        )
    async with AsyncExitStack() as stack:
        # An embedded store has one process; its connections race all the same.
        stores = [await stack.enter_async_context(open_olap(url)) for _ in range(1 if url.startswith("chdb:") else 4)]
        await asyncio.gather(*(migrate(store, folder) for store in stores * (4 // len(stores))))
        rows = await stores[0].query("SELECT number, name FROM schema_migrations FINAL ORDER BY number")
        assert [row["number"] for row in rows] == list(range(1, 7))
        for number in range(1, 7):
            assert await stores[0].query(f"SELECT * FROM t{number}") == []


async def test_too_many_statements_at_once_are_refused_and_the_others_are_answered(store: ColumnStore) -> None:
    answers = await asyncio.gather(*(store.query("SELECT 1 AS one") for _ in range(300)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert [answer for answer in answers if answer not in refused] == [[{"one": 1}]] * (300 - len(refused))
    assert 0 < len(refused) < 300
    assert await store.query("SELECT 1 AS one") == [{"one": 1}]


INSERTING = """
    import asyncio, datetime, sys
    from kit.logs import configure_logging
    from kit.olap import open_olap

    async def main():
        async with open_olap(sys.argv[1]) as store:
            await store.execute(sys.argv[2])
            for number in range(100000):
                ids = list(range(number * 50, number * 50 + 50))
                days = [datetime.date(2026, 11, 20 + one % 2) for one in ids]
                await store.insert(
                    "events", {"day": days, "id": ids, "version": [1] * 50, "name": ["n"] * 50, "value": [0.5] * 50}, token=f"t{number}"
                )
                print(number, flush=True)

    configure_logging()
    asyncio.run(main())
"""


async def test_what_insert_returned_for_survives_kill_and_can_be_repeated(url: str, victim: Callable[..., Any]) -> None:
    done = victim(INSERTING, url, EVENTS).kill_after(12)
    last = int(done[-1])
    async with open_olap(url) as store:
        rows = await store.query("SELECT intDiv(id, 50) AS batch, count() AS number FROM events FINAL GROUP BY batch ORDER BY batch")
        assert {int(row["batch"]) for row in rows} >= set(range(last + 1))
        assert all(int(row["number"]) == 50 for row in rows[: last + 1])
        before = await count(store, final=True)
        for number in (0, last):
            ids = range(number * 50, number * 50 + 50)
            await store.insert("events", events(ids) | {"name": ["n"] * 50, "value": [0.5] * 50}, token=f"t{number}")
        assert await count(store, final=True) == before
