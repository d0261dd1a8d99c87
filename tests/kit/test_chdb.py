"""What is particular to the column store inside the process (kit.olap.chdb)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from kit.errors import Unavailable
from kit.lockfile import held
from kit.olap import StatementFailed
from kit.olap.chdb import open_chdb
from kit.olap.migrate import read_migrations, split_statements

PROLOGUE = """
import asyncio, os, sys
from kit.logs import configure_logging
from kit.olap import open_olap
configure_logging()
url = sys.argv[1]
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
"""


async def run(program: str, *arguments: str) -> str:
    """Run a program to its end; an abnormal end is an error."""
    command = [sys.executable, "-c", PROLOGUE + program, *arguments]
    answer = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout


async def test_opening_starts_nothing_and_an_idle_engine_stays_small(tmp_path: Path) -> None:
    answer = await run(
        """
async def main():
    async with open_olap(url) as store:
        await store.ping()
        assert "chdb" not in sys.modules and "pyarrow" not in sys.modules
        before = resident_mb()
        await store.execute("CREATE TABLE t (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
        await store.query("SELECT count() AS number FROM t")
        started = resident_mb()
        for number in range(5):
            await store.insert("t", {"id": list(range(1000)), "name": ["n"] * 1000}, token=f"t{number}")
        assert await store.query("SELECT count() AS number FROM t") == [{"number": 5000}]
        assert "pandas" not in sys.modules
        print(round(started - before), round(resident_mb() - before))
asyncio.run(main())
""",
        f"chdb:{tmp_path}/olap",
    )
    started, used = (int(figure) for figure in answer.split())
    assert started < 320
    assert used < 380


@pytest.mark.parametrize("ending", ["pass", "sys.exit(0)", "raise KeyboardInterrupt"])
async def test_the_interpreter_ends_well_however_the_block_ends(tmp_path: Path, ending: str) -> None:
    answer = await run(
        f"""
async def main():
    async with open_olap(url) as store:
        await store.execute("CREATE TABLE t (id UInt64) ENGINE = MergeTree ORDER BY id")
        await asyncio.gather(*(store.insert("t", {{"id": [number]}}, token=f"t{{number}}") for number in range(5)))
        await asyncio.gather(*(store.query("SELECT count() AS number FROM t") for _ in range(5)))
        {ending}
try:
    asyncio.run(main())
except (KeyboardInterrupt, SystemExit):
    pass
print("ended")
""",
        f"chdb:{tmp_path}/olap",
    )
    assert answer.strip() == "ended"


async def test_queries_do_not_stop_the_event_loop(tmp_path: Path) -> None:
    async with open_chdb(f"chdb:{tmp_path}/olap") as store:
        await store.query("SELECT 1 AS one")
        query = asyncio.create_task(store.query("SELECT max(sipHash64(number)) AS most FROM numbers(20000000)"))
        turns = 0
        while not query.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert (await query)[0]["most"] > 0
    assert turns > 5


async def test_a_statement_over_its_memory_is_unavailable_and_the_engine_goes_on(tmp_path: Path) -> None:
    async with open_chdb(f"chdb:{tmp_path}/olap?max_memory_bytes=50000000") as store:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await store.query("SELECT groupArray(number) AS all FROM numbers(50000000)")
            assert await store.query("SELECT 1 AS one") == [{"one": 1}]


async def test_a_query_that_fails_half_way_leaves_nothing_for_the_next_one(tmp_path: Path) -> None:
    async with open_chdb(f"chdb:{tmp_path}/olap") as store:
        for rows in (1, 100, 100_000):
            with pytest.raises(StatementFailed):
                await store.query(f"SELECT throwIf(number = {rows - 1}) AS x, 'secret' AS text FROM numbers({rows})")
            assert await store.query("SELECT 1 AS one") == [{"one": 1}]


async def test_a_store_may_be_opened_again_elsewhere(tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        async with open_chdb(f"chdb:{tmp_path}/{name}") as store:
            await store.execute(f"CREATE TABLE IF NOT EXISTS of_{name} (id UInt8) ENGINE = MergeTree ORDER BY id")
            rows = await store.query("SELECT name FROM system.tables WHERE database = currentDatabase()")
            assert rows == [{"name": f"of_{name}"}]


async def test_a_second_owner_is_kept_out(tmp_path: Path) -> None:
    async with open_chdb(f"chdb:{tmp_path}/olap"):
        with pytest.raises(Unavailable, match="one process"):
            async with open_chdb(f"chdb:{tmp_path}/olap"):
                pass


@pytest.mark.parametrize("url", ["chdb:", "chdb://host/x", "chdb:/x?nope=1", "chdb:/x?max_threads=many", "chdb:/x%3Fy"])
async def test_a_wrong_url_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        async with open_chdb(url):
            pass


async def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "olap").write_bytes(b"a file, not a folder")
    async with open_chdb(f"chdb:{tmp_path}/olap") as store:
        with pytest.raises((Unavailable, StatementFailed)):
            await store.query("SELECT 1")


def test_a_lock_is_held_once_and_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with held(path, "the thing"), pytest.raises(Unavailable, match="the thing"), held(path, "the thing"):
        pass
    with held(path, "the thing"):
        pass


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        (";;\n ;", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1;\nSELECT 2;", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';' AS a; SELECT `;`", ["SELECT ';' AS a", "SELECT `;`"]),
        ("SELECT 'it''s; \\'; x'; SELECT 2", ["SELECT 'it''s; \\'; x'", "SELECT 2"]),
        ("-- one; two\nSELECT 1 -- end;\n", ["SELECT 1"]),
        ("/* a; \n b */ SELECT 1 /* ; */;", ["SELECT 1"]),
        ("SELECT '-- not a comment', '/* nor this */'", ["SELECT '-- not a comment', '/* nor this */'"]),
        ("SELECT 5 - -3", ["SELECT 5 - -3"]),
    ],
)
def test_statements_are_cut_at_semicolons(text: str, statements: list[str]) -> None:
    assert split_statements(text) == statements


@pytest.mark.parametrize("names", [["0002_a.sql"], ["0001_a.sql", "0001_b.sql"], ["0001_a.sql", "0003_b.sql"], ["1_a.sql"], ["0001_A.sql"]])
def test_migrations_are_numbered_without_gaps(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(ValueError, match=r"number|named"):
        read_migrations(tmp_path)
