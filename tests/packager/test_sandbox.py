"""Children that misbehave: each ends as a refusal within the limits, and leaves no process and no file.

The hostile part runs as the worker of a real guard, in place of the code that would have been taken over by a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.packager import sandbox as module
from services.packager.answer import inspection
from services.packager.errors import ModelRejected, Reason
from services.packager.isolation import cage
from services.packager.sandbox import Limits, Sandbox, open_sandbox
from tests.packager.conftest import environments

ROOT = Path(__file__).parents[2]


def hostile(body: str, mark: str = "") -> Callable[[], cage.Runtime]:
    """In place of the code that examines a model: a child that runs `body` as code that took it over would, inside all its walls."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    start = (
        f"# {mark}\nimport sys, json, os, time, signal; sys.path.insert(0, {str(ROOT)!r})\n"
        "from services.packager.isolation.entry import serve\n"
        "ANSWER = 3\n"
        f"def work(job):\n{lines}\n    return {{}}\n"
        "serve(lambda: work)"
    )
    runtime = cage.Runtime(Path(sys.executable), start, cage.engine().read)
    return lambda: runtime


def marked(mark: str) -> list[int]:
    """Processes that carry the mark in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"latebind-test-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    left = marked(mark)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    assert left == []


async def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, mark: str, limits: Limits) -> tuple[ModelRejected, float]:
    monkeypatch.setattr(module.cage, "engine", hostile(body, mark))
    began = time.monotonic()
    async with open_sandbox(tmp_path / "scratch", limits, environments()) as opened:
        with pytest.raises(ModelRejected) as caught:
            async with opened.workspace() as workspace:
                raw = await opened.run(workspace, {}, lambda _step: None)
                inspection(raw)
        took = time.monotonic() - began
        assert [entry.name for entry in (tmp_path / "scratch").iterdir() for entry in entry.iterdir()] == ["lock"]
    assert list((tmp_path / "scratch").iterdir()) == []
    return caught.value, took


FORKER = """
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        os._exit(0)
"""

CASES = {
    "loops": ("while True: pass", Reason.CHILD_TIMEOUT),
    "sleeps": ("time.sleep(600)", Reason.CHILD_TIMEOUT),
    "ignores signals": ("for one in range(1, 65):\n    try: signal.signal(one, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
                        "time.sleep(600)", Reason.CHILD_TIMEOUT),
    "eats memory": ("kept = []\nwhile True: kept.append(bytearray(2**24))", Reason.CHILD_OUT_OF_MEMORY),
    "fills a file": ("f = open('out/x', 'wb')\nwhile True: f.write(bytes(2**20))", Reason.CHILD_OUTPUT_TOO_LARGE),
    "fills many files": ("i = 0\nwhile True:\n    i += 1\n    open(f'out/{i}', 'wb').write(bytes(2**20))", Reason.CHILD_OUTPUT_TOO_LARGE),
    "makes folders without end": ("while True:\n    os.mkdir('d')\n    os.chdir('d')", None),
    "answers too much": ("while True: os.write(ANSWER, b'{' * 65536)", Reason.CHILD_ANSWER_INVALID),
    "prints too much": ("for _ in range(1000): os.write(2, b'x' * 65536)", Reason.CHILD_ANSWER_INVALID),
    "answers nonsense": ("os.write(ANSWER, b'[1, 2')", Reason.CHILD_ANSWER_INVALID),
    "answers deep": ("os.write(ANSWER, b'[' * 100000)", Reason.CHILD_ANSWER_INVALID),
    "answers yes and nothing else": ("os.write(ANSWER, b'{\"ok\": true}')\nos._exit(0)", Reason.CHILD_ANSWER_INVALID),
    "claims an unknown reason": ("os.write(ANSWER, b'{\"ok\": false, \"code\": \"X\", \"detail\": \"\"}')", Reason.CHILD_ANSWER_INVALID),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", Reason.CHILD_KILLED),
    "aborts": ("os.abort()", Reason.CHILD_KILLED),
    "exits early": ("os._exit(7)", Reason.CHILD_KILLED),
    "raises": ("raise RuntimeError('no')", Reason.CHILD_KILLED),
    "leaves daemons and ends": (FORKER, Reason.CHILD_ANSWER_INVALID),
    "leaves daemons and hangs": (FORKER + "time.sleep(600)", Reason.CHILD_TIMEOUT),
    "keeps stdout open in a daemon": (FORKER + "os._exit(0)", Reason.CHILD_ANSWER_INVALID),
    "forks without end": ("while True:\n    try: os.fork()\n    except OSError: time.sleep(0.01)", None),
    "stops its guard": (
        FORKER +
        "os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(600)",
        Reason.CHILD_TIMEOUT,
    ),
    "kills its guard": ("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)", Reason.CHILD_KILLED),
    "locks its folder": ("os.makedirs('out/a/b')\nopen('out/a/b/c', 'w')\nos.chmod('out/a', 0)\nos._exit(9)", Reason.CHILD_KILLED),
    "opens too many files": ("kept = []\nwhile True: kept.append(open('/dev/null'))", Reason.CHILD_KILLED),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_a_hostile_child_is_contained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, name: str) -> None:
    body, reason = CASES[name]
    # The deadline is short only where it is what ends the child.
    limits = Limits(seconds=1.0 if reason in {Reason.CHILD_TIMEOUT, None} else 20.0, memory_bytes=2**30, disk_bytes=8 * 2**20, processes=32)
    rejected, took = await misbehave(tmp_path, monkeypatch, body, mark, limits)
    if reason is not None:
        assert rejected.reason is reason
    assert took < limits.seconds + 15
    assert str(tmp_path) not in rejected.detail


async def test_cancelling_kills_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setattr(module.cage, "engine", hostile(FORKER + "time.sleep(600)", mark))
    async with open_sandbox(tmp_path / "scratch", Limits(), environments()) as opened:

        async def job() -> None:
            async with opened.workspace() as workspace:
                await opened.run(workspace, {}, lambda _step: None)

        task = asyncio.create_task(job())
        while len(marked(mark)) < 3:
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert marked(mark) == []


async def test_a_child_dies_with_its_service(tmp_path: Path, mark: str) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from services.packager import sandbox as module
from services.packager.environments import Environments
runtime = module.cage.Runtime(Path(sys.executable), {hostile(FORKER + "time.sleep(600)", mark)().start!r}, module.cage.engine().read)
module.cage.engine = lambda: runtime
async def main():
    environments = Environments(Path({str(tmp_path / "environments")!r}))
    async with module.open_sandbox(Path({str(tmp_path / "scratch")!r}), module.Limits(), environments) as opened:
        async with opened.workspace() as workspace:
            print("up", flush=True)
            await opened.run(workspace, {{}}, lambda step: None)
asyncio.run(main())
"""
    service = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert service.stdout is not None
    await service.stdout.readline()
    while len(marked(mark)) < 5:
        await asyncio.sleep(0.02)
    service.kill()
    await service.wait()
    for _ in range(400):
        if not marked(mark):
            break
        await asyncio.sleep(0.02)
    assert marked(mark) == []
    assert list((tmp_path / "scratch").iterdir()) != []
    async with open_sandbox(tmp_path / "scratch", Limits(), environments()):
        assert len(list((tmp_path / "scratch").iterdir())) == 1


async def test_folders_of_living_services_stay(tmp_path: Path) -> None:
    first, second = (open_sandbox(tmp_path, Limits(), environments()) for _ in range(2))
    async with first as opened, opened.workspace() as workspace, second:
        assert workspace.folder.is_dir()


async def test_golden_files_are_taken_only_when_plain(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    async with sandbox.workspace() as workspace:
        out = workspace.folder / "out"
        (out / "link").symlink_to(secret)
        (out / "hard").hardlink_to(secret)
        (out / "folder").mkdir()
        os.mkfifo(out / "pipe")
        (out / "large").write_bytes(bytes(2000))
        (out / "good").write_bytes(b"good")
        for name in ("link", "hard", "folder", "pipe", "absent", "../in/0"):
            with pytest.raises(ModelRejected) as caught:
                workspace.take(name, f"x-{name.replace('/', '-')}", 1000)
            assert caught.value.reason is Reason.CHILD_ANSWER_INVALID
        with pytest.raises(ModelRejected) as caught:
            workspace.take("large", "x", 1000)
        assert caught.value.reason is Reason.CHILD_OUTPUT_TOO_LARGE
        assert workspace.take("good", "good", 1000).read_bytes() == b"good"
