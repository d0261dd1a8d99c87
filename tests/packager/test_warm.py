"""Warm parents: clean, walled in, ended when idle, and never the reason why a job does not end.

That their children are as shut in as those that are started on their own, test_hostile_children.py and test_sandbox.py try with both.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.packager import sandbox as module
from services.packager.answer import parse_answer
from services.packager.errors import ModelRejected, Reason
from services.packager.isolation import parents
from services.packager.isolation.cage import Level
from services.packager.sandbox import Limits, Sandbox, open_sandbox
from tests.packager.conftest import environments
from tests.packager.hostile import hostile, marked, safe_levels

#: Answers with what it was told, after the time it was told; `spaces` are its namespaces.
BODY = """
time.sleep(job["seconds"])
spaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in job.get("spaces", ())}
return {"ok": True, "word": job["word"], "parent": os.getppid(), "pid": os.getpid(), "spaces": spaces}
"""

SPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    mark = f"latebind-test-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setattr(module.cage, "engine", hostile(BODY, mark))
    yield mark
    assert marked(mark) == []


@asynccontextmanager
async def opened(tmp_path: Path, level: Level, warm_s: float = 60) -> AsyncIterator[Sandbox]:
    async with open_sandbox(tmp_path / "scratch", Limits(seconds=60), environments(), [level], warm_s=warm_s) as sandbox:
        yield sandbox


async def ask(sandbox: Sandbox, word: str, seconds: float = 0, **more: Any) -> dict[str, Any]:
    async with sandbox.workspace() as workspace:
        answer = parse_answer(await sandbox.run(workspace, {"word": word, "seconds": seconds, **more}, lambda _step: None))
    assert answer["word"] == word
    return answer


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("level", safe_levels())
async def test_an_idle_parent_ends_and_comes_back_when_there_is_work(tmp_path: Path, mark: str, level: Level) -> None:
    async with opened(tmp_path, level, warm_s=0.05) as sandbox:
        assert sandbox.warm_parents == 0
        for word in ("first", "second"):
            await ask(sandbox, word)
            await until(lambda: sandbox.warm_parents == 0 and marked(mark) == [])
            await until(lambda: [entry.name for entry in (tmp_path / "scratch").glob("*/*")] == ["lock"])


@pytest.mark.parametrize("level", safe_levels())
async def test_a_job_ends_though_its_parent_was_killed(tmp_path: Path, mark: str, level: Level) -> None:
    """Jobs that were running are done by children of their own; the next one has a new parent."""
    async with opened(tmp_path, level) as sandbox:
        await ask(sandbox, "start")
        idle = set(marked(mark))
        jobs = [asyncio.create_task(ask(sandbox, word, 1.0)) for word in ("one", "two")]
        await until(lambda: len(set(marked(mark)) - idle) >= 4)
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
        assert [answer["word"] for answer in await asyncio.gather(*jobs)] == ["one", "two"]
        await ask(sandbox, "again")
        assert sandbox.warm_parents == 1
        assert not idle & set(marked(mark))


@pytest.mark.parametrize("level", safe_levels())
async def test_a_guard_that_is_killed_takes_only_its_job(tmp_path: Path, mark: str, level: Level) -> None:
    async with opened(tmp_path, level) as sandbox:
        await ask(sandbox, "start")
        idle = set(marked(mark))
        job = asyncio.create_task(ask(sandbox, "one", 1.0))
        await until(lambda: len(set(marked(mark)) - idle) == 2)
        # The guard was there first.
        os.kill(min(set(marked(mark)) - idle), signal.SIGKILL)
        assert (await job)["word"] == "one"
        assert set(marked(mark)) == idle


@pytest.mark.parametrize("level", safe_levels())
async def test_one_job_that_is_ended_does_not_touch_another(tmp_path: Path, mark: str, level: Level) -> None:
    async with opened(tmp_path, level) as sandbox:
        await ask(sandbox, "start")
        idle = set(marked(mark))
        sandbox.limits = Limits(seconds=1.0)
        late = asyncio.create_task(ask(sandbox, "late", 600))
        await until(lambda: len(set(marked(mark)) - idle) == 2)
        sandbox.limits = Limits(seconds=60)
        gone, good = (asyncio.create_task(ask(sandbox, word, seconds)) for word, seconds in (("gone", 600), ("good", 2)))
        await until(lambda: len(set(marked(mark)) - idle) == 6 or late.done())
        gone.cancel()
        with pytest.raises(ModelRejected) as caught:
            await late
        assert caught.value.reason is Reason.CHILD_TIMEOUT
        with pytest.raises(asyncio.CancelledError):
            await gone
        await good
        assert set(marked(mark)) == idle


@pytest.mark.parametrize("level", safe_levels())
async def test_children_share_no_namespace_and_know_no_parent(tmp_path: Path, mark: str, level: Level) -> None:
    async with opened(tmp_path, level) as sandbox:
        first, second = await asyncio.gather(*(ask(sandbox, word, 0.2, spaces=SPACES) for word in ("one", "two")))
        assert sandbox.warm_parents == 1
        if level is Level.STRONG:
            assert (first["pid"], first["parent"], second["pid"], second["parent"]) == (1, 0, 1, 0)
            own = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in SPACES}
            for name in SPACES:
                assert len({own[name], first["spaces"][name], second["spaces"][name]}) == 3, name


def reasons(logs: Sequence[Mapping[str, Any]]) -> str:
    return "".join(str(entry["reason"]) for entry in logs if entry["event"].startswith("no warm parent is to be had"))


#: What a parent must not have when it forks, and how that is called.
UNFIT = {
    "a thread": ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "2 threads"),
    "shared memory": ("import mmap; kept = mmap.mmap(-1, 4096)", "memory that children would share"),
    "a module that is not there": ("", "No module named"),
}


@pytest.mark.parametrize("name", UNFIT)
async def test_a_parent_that_is_not_fit_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, name: str) -> None:
    lines, words = UNFIT[name]
    runtime = module.cage.engine()
    unfit = module.cage.Runtime(runtime.python, f"{lines}\n{runtime.start}", runtime.read, () if lines else ("nowhere",))
    monkeypatch.setattr(module.cage, "engine", lambda: unfit)
    async with opened(tmp_path, safe_levels()[0]) as sandbox:
        with capture_logs() as logs:
            await ask(sandbox, "alone")
        assert sandbox.warm_parents == 0
        assert words in reasons(logs)
        # It is not tried again at once.
        with capture_logs() as logs:
            await ask(sandbox, "alone again")
        assert reasons(logs) == ""


@pytest.mark.parametrize("level", safe_levels())
async def test_a_parent_whose_children_could_get_out_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, level: Level
) -> None:
    whole = module.cage.parent_command

    def broken(*arguments: Any) -> list[str]:
        words = whole(*arguments)
        return [*words[:-1], json.dumps({**json.loads(words[-1]), "filter": False})]

    monkeypatch.setattr(parents.cage, "parent_command", broken)
    async with opened(tmp_path, level) as sandbox:
        with capture_logs() as logs:
            await ask(sandbox, "alone")
        assert sandbox.warm_parents == 0
        assert "could reach" in reasons(logs)
